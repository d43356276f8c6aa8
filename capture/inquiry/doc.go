// Package inquiry is a netlink socket on which the kernel is asked one question after
// the other, each with one message for an answer.
//
// It owns the socket, which may be made in one process and used in another, and the
// numbers by which answers are told apart. What a question or an answer says is the
// business of the packages that ask.
package inquiry
