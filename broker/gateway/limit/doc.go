// Package limit counts what clients of a gateway hold, and says when it is enough: for
// one identity and in all.
//
// It knows identities as keys alone, and what is counted only by name. Time limits are
// not its subject.
package limit
