// Package compiled proves that compiled rules decide as the rules do: random rule
// sets go through broker/plan, once into an interpreter of capture.Spec and once
// into the nftables of a real kernel, and what becomes of random flows is held to
// filter.Set.Decide. Flows are at the edges of the rules' addresses and ports.
//
// A failure prints the seed of its rule set and the least part of the rules that
// still shows it. -seed=N tries that rule set alone; SSHBROKER_LONG=1 tries many more.
package compiled
