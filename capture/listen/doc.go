// Package listen accepts the connections that were diverted to a capture's
// listener and tells which connection each of them is.
//
// It owns the sockets' options, those for name queries included, and the two facts by
// which an accepted connection is recognised: the sequence number of its SYN and its
// original destination. It never trusts the peer's port, which the redirect may rewrite.
package listen
