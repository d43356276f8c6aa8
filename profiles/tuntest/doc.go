// Package tuntest owns what tunnels are tested with: one conformance suite for every
// kind of tunnel, an SSH server inside the process that can misbehave on purpose, and
// starters for the real servers of OpenSSH and Dropbear.
//
// Nothing of it runs in production; the server inside the process also serves
// `make demo`.
package tuntest
