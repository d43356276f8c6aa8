// Package owner finds out whose socket something came from: a name query, by the address
// it was sent from, or the far end of a connection within the host.
//
// It lists the sockets that there are and names nobody rather than guess. It is for
// brokers: package origin, which ssh-captured has, knows connections by both addresses.
package owner
