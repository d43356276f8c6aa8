// Package udprelay carries the UDP that programs of a capture send: each of their
// addresses gets a socket of its own in the host's network, and what comes back goes
// to the program as if from the address that it asked.
//
// Unlike a TCP connection a redirected datagram does not say where it was meant to
// go, so connection tracking is asked once for each new peer. A peer is a program's
// address as the relay sees it: where one socket of a program sends to several
// destinations, the kernel gives all but the first a port of their own, as it could not
// tell the answers apart either.
//
// The package owns the host's sockets. It does not own the sockets that programs are
// redirected to, nor the one to connection tracking, and knows nothing of rules:
// Config.Allow decides.
package udprelay
