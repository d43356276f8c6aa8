// Package message sends JSON and descriptors over SOCK_SEQPACKET sockets, where one
// message is one packet.
//
// It owns the framing and the limits. What messages say is the business of the
// packages that use it.
package message
