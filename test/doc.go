// Package test holds what is true of the whole tree: who may import whom, what
// stands at the top level, how each package introduces itself, and that the
// code is formatted.
//
// Below it: netns builds topologies of network namespaces with real servers,
// sut builds the programs under test, programs holds small programs that tests
// run inside a capture. Nothing outside test imports any of them.
package test
