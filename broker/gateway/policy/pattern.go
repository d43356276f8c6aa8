package policy

import (
	"errors"
	"net/netip"
	"slices"
)

// Pattern covers destinations: those for which each part that is given holds. A part holds
// if one of its entries does. A Pattern without parts is refused by New.
type Pattern struct {
	Hostnames []HostPattern
	CIDRs     []netip.Prefix
	Ports     []PortRange
}

// PortRange is the ports from Min to Max, both included.
type PortRange struct{ Min, Max uint16 }

func (r PortRange) contains(port uint16) bool { return r.Min <= port && port <= r.Max }

// Check tells what makes a pattern useless or ambiguous.
func (p *Pattern) Check() error {
	if len(p.Hostnames) == 0 && len(p.CIDRs) == 0 && len(p.Ports) == 0 {
		return errors.New("the pattern is empty")
	}
	for _, c := range p.CIDRs {
		switch {
		case !c.IsValid():
			return errors.New("the pattern has an invalid CIDR")
		case c.Addr().Is4In6():
			return errors.New("the pattern has a CIDR of IPv4 addresses in IPv6")
		}
	}
	for _, r := range p.Ports {
		if r.Min == 0 || r.Min > r.Max {
			return errors.New("the pattern has a range of ports that is empty or begins with 0")
		}
	}
	return nil
}

func (p *Pattern) matchHost(h Host) bool {
	return len(p.Hostnames) == 0 || slices.ContainsFunc(p.Hostnames, func(e HostPattern) bool { return e.match(h) })
}

func (p *Pattern) matchPort(port uint16) bool {
	return len(p.Ports) == 0 || slices.ContainsFunc(p.Ports, func(r PortRange) bool { return r.contains(port) })
}

func (p *Pattern) matchAddr(addr netip.Addr) bool {
	return len(p.CIDRs) == 0 || slices.ContainsFunc(p.CIDRs, func(c netip.Prefix) bool { return c.Contains(addr) })
}

// matchEither is matchAddr for exclusions: an IPv6 address that stands for an IPv4 one is
// covered by the CIDRs of both.
func (p *Pattern) matchEither(addr netip.Addr) bool {
	inner := embedded(addr)
	return p.matchAddr(addr) || inner.IsValid() && p.matchAddr(inner)
}

// writesDown tells whether the pattern has a CIDR with addr that does not reach beyond the
// reserved range that addr is in.
func (p *Pattern) writesDown(addr netip.Addr, within netip.Prefix) bool {
	return slices.ContainsFunc(p.CIDRs, func(c netip.Prefix) bool {
		return c.Contains(addr) && c.Bits() >= within.Bits()
	})
}

// MayCover tells whether the pattern can cover a name that was asked for and replaced by
// another host, for the port; with port 0 for some port. What a name leads to is not known,
// so it passes any CIDR.
func (p *Pattern) MayCover(asked, host Host, port uint16) bool {
	return p.matchHost(asked) && (port == 0 || p.matchPort(port)) && (!host.addr.IsValid() || p.matchAddr(host.addr))
}
