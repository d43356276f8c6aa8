// Package eventlog owns the events that the element logging of the configuration sends
// to files and to the system's log: their table with numbers, severities and arguments
// (event.go), the line that one makes (line.go), where each goes (routing.go), and the
// targets themselves.
//
// It is the log that administrators of the Tectia Connection Broker know. It is not the
// audit record, which has every flow with all its fields and cannot be turned off, nor
// the broker's own log of its running, which is slog's.
//
// Raising an event never waits: each target has a goroutine and a bounded queue of its
// own, what does not fit is dropped and counted. While nothing is routed anywhere, an
// event costs one atomic load.
//
// The package does not know what happened, nor what may be told of it: those who raise
// events leave secrets out. It imports nothing of this module.
package eventlog
