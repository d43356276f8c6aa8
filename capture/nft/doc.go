// Package nft holds the netfilter rules of captures. Pure functions make a rule set from
// a Spec, with each rule as text beside its expressions: Namespace for a capture with a
// network namespace to itself, Host for all captures of a host in one table. Load puts
// the one into the kernel, Table keeps the other there, as its owner where the kernel
// knows owners, changes it in one transaction, and reads its counters. Watch tells when
// somebody else changed rules.
//
// It owns the tables' names, their chains, priorities and every expression, and its own
// writer of transactions, as google/nftables can neither set a table's flags nor use a
// socket that lasts. It decides nothing about flows: the rules only carry out what a
// Spec, or a verdict's mark, says, and drop whatever lost its mark on the way.
package nft
