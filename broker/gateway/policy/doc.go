// Package policy says who may reach what through the gateway. It is pure: it opens no
// file and no socket, reads no clock, and asks for addresses only through the Resolver
// that it is handed.
//
// A certificate that was verified becomes an Identity. A Service is made of a Spec by New,
// and is asked twice: Admit for a connection, Decide for each flow.
//
// # What a flow has to pass
//
// First who: the identity has a role that one of the service's policies names, or the
// service admits any certificate. Then where to: one of the allow patterns of the service
// holds, and no exclude pattern does. Then what the policies with such a role say: none
// denies it, and one allows it. Nothing said means nobody and nowhere, in each of the three.
//
// Parts inside a pattern are joined by AND, the entries of a part and patterns by OR.
// Names of hosts are matched as they were asked for, before dns_overrides; exclusions and
// denials match the name after it as well. A CIDR is tested against the address that will be
// dialled and against nothing else: Decide looks a name up once and returns the addresses
// that passed, so that a second answer of the same name can never be dialled. The name is
// looked up as it stands, without a search list. One that no pattern can allow is not looked
// up at all.
//
// An address that is asked for in place of a name matches no pattern of names, "*"
// included, but one that is this address letter for letter after parsing; CIDRs match it.
// In exclusions and denials an address among the names covers whatever name leads to it.
//
// # Addresses that no name leads to
//
// Loopback, link-local, multicast and unspecified addresses, and the gateway's own
// listeners, are reachable only where somebody wrote them down: as a CIDR that lies within
// the range (for a listener: that holds one address), as the address itself among the
// hostnames, as the address of a target, or as the address in dns_overrides. Neither a
// pattern of names nor 0.0.0.0/0 opens them.
//
// # Enforcing and permissive
//
// A permissive service lets through what its policies refuse and says so in the Verdict.
// It never lets through what its patterns refuse, and it still wants a verified certificate.
//
// All types are safe for concurrent use as long as nobody changes them.
package policy
