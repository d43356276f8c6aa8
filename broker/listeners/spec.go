package listeners

import (
	"fmt"
	"net/netip"

	"sshbroker/profiles"
)

// Kind is what is spoken at a port.
type Kind uint8

// The zero Kind is refused.
const (
	TCP         Kind = iota + 1 // nothing: all goes to one destination
	SOCKS                       // SOCKS4, SOCKS4A and SOCKS5 without authentication
	HTTPConnect                 // CONNECT, RFC 9110 section 9.3.6
)

// Spec is one tunnel. Two that are equal are the same tunnel.
type Spec struct {
	Kind   Kind
	Listen netip.AddrPort // where; port 0: any, which the kernel chooses

	// Judged has the filter rules decide about each connection; else all go through
	// Way, or where that is nil through the profile of that id.
	Judged  bool
	Profile string
	Way     *profiles.Profile

	Host string // where a TCP tunnel leads
	Port uint16
	// Service is one of the gateway behind Way or Profile; a TCP tunnel to one has no Host
	// and Port.
	Service string

	Relay  bool   // other users and other hosts may use it
	Source string // who wants it, for people
}

// Type is the word of the configuration for it.
func (s Spec) Type() string {
	switch {
	case s.Kind == TCP:
		return "tcp"
	case s.Kind == HTTPConnect && s.Judged:
		return "http-connect"
	case s.Kind == HTTPConnect:
		return "http-connect-chain"
	case s.Kind == SOCKS && s.Judged:
		return "socks-proxy"
	case s.Kind == SOCKS:
		return "socks"
	}
	return fmt.Sprintf("kind %d", s.Kind)
}
