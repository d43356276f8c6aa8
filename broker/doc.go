// Package broker is the life of one flow: it takes attempts from captures, has the
// filter decide, opens the way, lets the program in, carries the bytes, and records
// what happened, exactly once on every path.
//
// A flow of another user's may be handed over to that user's own broker, which then
// opens the way and carries it; Order is what the two say of it.
//
// It knows filter, capture and profiles, which do not know each other. It does not
// know the kernel, SSH or file formats: those are behind the contracts of the three.
// What a daemon needs around this (sockets, configuration, lifetime) is in
// broker/daemon.
package broker
