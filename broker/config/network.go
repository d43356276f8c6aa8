package config

import (
	"net/netip"
	"strings"

	"sshbroker/broker/config/schema"
	"sshbroker/filter"
	"sshbroker/profiles"
)

// Network is a place where a host may be. The host is there if all that is given holds;
// where nothing is, it is everywhere.
type Network struct {
	ID string

	// Address is the network's: an address of the host is in this prefix. Where Exact,
	// its Addr is the first address of a network that an interface of the host is on,
	// however large. The zero Prefix is not considered.
	Address netip.Prefix
	Exact   bool

	Domain string // the host's is this one, in any letter case; "" is not considered

	Pool4, Pool6 netip.Prefix // pseudo addresses for captures that begin here; zero: see Pools
}

// Pools are the prefixes of pseudo addresses for a capture that begins while the host
// is where on says: those of the first of networks that has any, else pool4 and pool6.
func Pools(networks []Network, pool4, pool6 netip.Prefix, on func(network string) bool) (netip.Prefix, netip.Prefix) {
	for _, n := range networks {
		if (n.Pool4.IsValid() || n.Pool6.IsValid()) && on(n.ID) {
			if n.Pool4.IsValid() {
				pool4 = n.Pool4
			}
			if n.Pool6.IsValid() {
				pool6 = n.Pool6
			}
			break
		}
	}
	return pool4, pool6
}

// Presences tells of each network, by its id, whether the host is on it, as on says of
// what makes a network out.
func Presences(networks []Network, on func(address netip.Prefix, exact bool, domain string) filter.Presence) map[string]filter.Presence {
	by := make(map[string]filter.Presence, len(networks))
	for _, n := range networks {
		by[n.ID] = on(n.Address, n.Exact, n.Domain)
	}
	return by
}

// networks reads the network elements, those with an id of their own.
func (r *reader) networks(n *schema.Node) []Network {
	used := make(map[string]bool)
	for _, c := range n.All("dns") {
		used[c.Str("network-id")] = true
	}
	seen := make(map[string]bool)
	var list []Network
	for _, c := range n.All("network") {
		network := Network{ID: c.Str("id"), Domain: r.domain(c)}
		network.Address, network.Exact = r.networkAddress(c)
		r.pools(c, &network.Pool4, &network.Pool6)
		if _, given := c.Get("id"); !given {
			continue // which is reported
		}
		switch {
		case network.ID == "":
			r.Fail(c.At("id"), c.Name, "", "the network has no id")
		case seen[network.ID]:
			r.Fail(c.At("id"), c.Name, "give each network an id of its own", "there is a second network %q", network.ID)
		case !used[network.ID] && c.Str("ip-generate-start") == "" && c.Str("ip6-generate-start") == "":
			r.Warn(schema.General, c.Pos, c.Name, "", "no dns refers to network %q: it has no effect", network.ID)
		}
		seen[network.ID] = true
		list = append(list, network)
	}
	return list
}

// networkAddress reads the address of a network: a prefix, or without a length the
// address of a network of any length.
func (r *reader) networkAddress(n *schema.Node) (prefix netip.Prefix, exact bool) {
	const hint = "write it as 10.1.0.0/16 or fd00::/8, or as the address of the network, 10.1.0.0"
	text := n.Str("address")
	if text == "" {
		return netip.Prefix{}, false
	}
	addr, err := netip.ParseAddr(text)
	if exact = err == nil; exact {
		prefix = netip.PrefixFrom(addr.WithZone(""), addr.BitLen())
	} else {
		prefix, err = netip.ParsePrefix(text)
	}
	switch {
	case err != nil || addr.Zone() != "":
		r.Fail(n.At("address"), n.Name, hint, "address: %q is neither a prefix nor an address", text)
	case prefix.Addr().Is4In6():
		r.Fail(n.At("address"), n.Name, "write the IPv4 address", "address: %s: an IPv4 address inside IPv6 is IPv4", text)
	case prefix.Masked() != prefix:
		r.Fail(n.At("address"), n.Name, "write "+prefix.Masked().String(), "address: %s has bits set after its first %d", prefix, prefix.Bits())
	default:
		return prefix, exact
	}
	return netip.Prefix{}, false
}

// domain reads the domain of a network.
func (r *reader) domain(n *schema.Node) string {
	text := n.Str("domain")
	domain := strings.TrimSuffix(text, ".")
	switch {
	case text == "":
	case strings.Trim(domain, ".*") != domain || domain == "":
		r.Fail(n.At("domain"), n.Name, "write the domain itself: office.example.com", "domain: %q is not a domain; there are no patterns here", text)
	default:
		if err := profiles.CheckHost(domain); err != nil {
			r.Fail(n.At("domain"), n.Name, "write the domain itself: office.example.com", "domain: %v", err)
		}
	}
	return strings.ToLower(domain)
}

func ids(list []*schema.Node) map[string]bool {
	known := make(map[string]bool, len(list))
	for _, n := range list {
		if id, ok := n.Get("id"); ok {
			known[id] = true
		}
	}
	return known
}
