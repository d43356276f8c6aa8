// Package origin finds out who is behind a connection: the state and inode of its
// socket by socket diagnostics, and the process that holds the socket by /proc.
//
// It says "unknown" rather than guess. It decides nothing and remembers nothing.
package origin
