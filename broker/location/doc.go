// Package location knows where the host is: the networks that its interfaces are on, and
// its domain. It says of a network whether the host is on it, and tells when that may
// have changed, by the kernel's and the files' own events.
//
// It asks nobody on the network: what it knows is what the host was told. Which networks
// there are, and what becomes of rules, is the business of others.
package location
