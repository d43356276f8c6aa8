// Package ca is a small certificate authority for gateways: certificates for clients and
// servers, and the list of those that are revoked.
//
// An Issuer signs: what it makes is a function of facts that somebody has verified, of a
// public key and of a span of time. It does not know where facts come from; here they
// come from a command line, and logins may bring them another day. An Authority is an
// Issuer whose key, index and list are files of one directory, locked while it is open.
//
// The package does not say who may reach what, and does not judge certificates of
// others: that is the gateway's, which takes any authority's. Nothing here reads the
// clock; callers say what time it is.
//
// An Issuer is safe for concurrent use. An Authority is for one goroutine.
package ca
