// Package script holds ssh-capture and ssh-broker to what they promise at the command
// line: options and messages, exit codes, signals, job control under a terminal, what
// a command inherits, and what is left when all has ended.
//
// Every test runs the real programs, as root and as an ordinary uid where the tests
// run as root. Messages are in testdata/*.txtar, a script each. Traffic stays on the
// loopback. What needs servers or a network is test/interop's business.
//
// Captures are by namespaces, or by cgroups of the ssh-captured whose socket
// SSHBROKER_TEST_CAPTURED names.
package script
