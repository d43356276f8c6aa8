// Package nft holds the netfilter rules of a capture: a pure function makes the
// rule set from a Spec, with each rule as text beside its expressions, and Load
// puts it into the kernel in one transaction.
//
// It owns the table's name, its chains, their priorities and every expression. It
// decides nothing about flows: the rules only carry out what a verdict's mark says,
// and drop whatever lost its mark on the way.
package nft
