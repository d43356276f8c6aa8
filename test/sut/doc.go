// Package sut builds the programs under test, and the ones that tests use,
// once for a test process, and gives their paths.
//
// Programs are static, as `make build` makes them, and lie together in one
// directory that every user can read, so that one finds the other beside itself.
// The directory is gone when the process ends as Main ends it.
//
// It knows the names of programs and nothing of what they do.
package sut
