// Package client is the programs' and the broker's side of what ssh-captured says: see
// package service for the words.
//
// A [Client] asks single things. A [Source] serves a capture, or carries what the system
// broker hands over, as a capture.Source; it outlives ssh-captured, connects again when
// that has been restarted, and sees to it that whoever uses its attempts need not know.
//
// The package owns the connection, and which attempts are waiting and which were decided
// on both sides of a restart. It decides nothing and touches no packet.
package client
