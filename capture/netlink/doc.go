// Package netlink is what our netlink sockets have in common: to open one or take it
// over from another process, to send and receive, to write messages and attributes and
// read them, and to ask the kernel one question after the other.
//
// It owns the socket and the format of linux/netlink.h. What a message says, and which
// losses matter, is the business of the packages that speak.
package netlink
