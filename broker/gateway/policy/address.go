package policy

import "net/netip"

// reserved are the ranges that no name leads to, with what they are called.
var reserved = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "an unspecified address"}, // RFC 1122, section 3.2.1.3; Linux connects 0.0.0.0 to itself
	{netip.MustParsePrefix("127.0.0.0/8"), "a loopback address"},   // RFC 1122, section 3.2.1.3
	{netip.MustParsePrefix("169.254.0.0/16"), "a link-local address"},
	{netip.MustParsePrefix("224.0.0.0/4"), "a multicast address"},
	{netip.MustParsePrefix("255.255.255.255/32"), "the broadcast address"},
	{netip.MustParsePrefix("::/128"), "an unspecified address"},
	{netip.MustParsePrefix("::1/128"), "a loopback address"},
	{netip.MustParsePrefix("fe80::/10"), "a link-local address"},
	{netip.MustParsePrefix("ff00::/8"), "a multicast address"},
}

// reservedRange returns the range that addr is in and what it is called, or an invalid
// prefix. An IPv6 address that stands for an IPv4 address of such a range is in a range of
// its own.
func reservedRange(addr netip.Addr) (netip.Prefix, string) {
	for _, r := range reserved {
		if r.prefix.Contains(addr) {
			return r.prefix, r.what
		}
	}
	if inner := embedded(addr); inner.IsValid() {
		if _, what := reservedRange(inner); what != "" {
			return netip.PrefixFrom(addr, addr.BitLen()), what + " in IPv6"
		}
	}
	return netip.Prefix{}, ""
}

var (
	nat64      = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052, section 2.1
	sixToFour  = netip.MustParsePrefix("2002::/16")    // RFC 3056, section 2
	compatible = netip.MustParsePrefix("::/96")        // RFC 4291, section 2.5.5.1
)

// embedded returns the IPv4 address behind an IPv6 address that a translator or relay on
// the way, or the kernel, may turn into it; else an invalid one. Mapped addresses do not
// come here, as hosts and answers are unmapped before.
func embedded(addr netip.Addr) netip.Addr {
	if !addr.Is6() {
		return netip.Addr{}
	}
	b := addr.As16()
	switch {
	case nat64.Contains(addr), compatible.Contains(addr) && b[12] != 0: // so not :: and ::1
		return netip.AddrFrom4([4]byte(b[12:]))
	case sixToFour.Contains(addr):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return netip.Addr{}
}
