// Package listeners owns the tunnels that a program connects to by itself: TCP ports of
// this host whose connections go to one destination, and the servers of SOCKS and of HTTP
// CONNECT, where the program says where it wants to go.
//
// It opens ports and keeps trying where one is taken, looks who connects, speaks the
// protocol as far as the request, and hands over attempts (capture.Source) that the
// broker decides about and carries as all others. It does not know rules, open tunnels or
// move bytes, and what the configuration says of tunnels comes to it as Specs.
//
// Unless a Spec allows relaying, nobody but programs of the broker's own user, or for a
// system broker of this host's users, gets further than the accept: everybody else is
// reset before a byte is read.
package listeners
