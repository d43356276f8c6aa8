// Package nft holds the netfilter rules of captures. Rule sets are made by pure functions
// out of terms, each of which has its text beside its expressions: Host for all captures
// of a host in one table; those of a namespace are in package netns. Table keeps a rule
// set in the kernel, as its owner where the kernel knows owners, changes it in one
// transaction, and reads its counters. Watch tells when somebody else changed rules.
//
// It owns the host's table, the chains' priorities and every expression, and its own
// writer of transactions, as google/nftables can neither set a table's flags nor use a
// socket that lasts. It decides nothing about flows: the rules only carry out what a
// Spec, or a verdict's mark, says, and drop whatever lost its mark on the way.
package nft
