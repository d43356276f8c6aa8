// Package inherit keeps what a program inherits from whoever started it and what the
// Go runtime changes before main: which signals are ignored, which are blocked, and
// which of the standard descriptors are closed. A program that starts another in its
// own place hands them on with it.
//
// The runtime installs a handler for nearly every signal, and what was there before
// is lost to Go code; an exec then resets the signal to its default. So the state is
// read by a few instructions that run before the runtime, where the program was
// linked with them as its entry point (Entry). A program linked without still works,
// and knows of SIGHUP, SIGINT and SIGQUIT alone.
//
// What survives by itself, such as the working directory, limits or the environment,
// is none of this package's business.
package inherit
