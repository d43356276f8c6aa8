package plan

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"sshbroker/capture"
	"sshbroker/filter"
)

// The kernel's interval sets refuse elements that overlap, so every list is sorted
// and joined here.

// joinPrefixes returns the least list of prefixes with the addresses of those given,
// which it overwrites.
func joinPrefixes(prefixes []netip.Prefix) []netip.Prefix {
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int {
		return cmp.Or(a.Masked().Addr().Compare(b.Masked().Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	joined := prefixes[:0]
	for _, p := range prefixes {
		if !p.IsValid() {
			continue
		}
		p = p.Masked()
		if n := len(joined); n > 0 && joined[n-1].Overlaps(p) {
			continue // sorted so, the earlier one is the wider
		}
		joined = append(joined, p)
		for n := len(joined); n >= 2; n = len(joined) {
			both := parent(joined[n-1])
			if joined[n-1].Bits() == 0 || both != parent(joined[n-2]) || joined[n-2].Bits() != joined[n-1].Bits() {
				break
			}
			joined = append(joined[:n-2], both)
		}
	}
	return joined
}

// parent returns the prefix that is one bit shorter, where there is one.
func parent(p netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(p.Addr(), max(p.Bits()-1, 0)).Masked()
}

func joinPorts(ports []filter.PortRange) []capture.PortRange {
	sorted := slices.SortedFunc(slices.Values(ports), func(a, b filter.PortRange) int { return cmp.Compare(a.Lo, b.Lo) })
	var joined []capture.PortRange
	for _, r := range sorted {
		if n := len(joined); n > 0 && int(r.Lo) <= int(joined[n-1].Hi)+1 {
			joined[n-1].Hi = max(joined[n-1].Hi, r.Hi)
			continue
		}
		joined = append(joined, capture.PortRange{Lo: r.Lo, Hi: r.Hi})
	}
	return joined
}

func portsKey(ports []capture.PortRange) string {
	var key []byte
	for _, r := range ports {
		key = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(key, r.Lo), r.Hi)
	}
	return string(key)
}

func joinUsers(users []capture.UIDRange) []capture.UIDRange {
	sorted := slices.SortedFunc(slices.Values(users), func(a, b capture.UIDRange) int { return cmp.Compare(a.Lo, b.Lo) })
	var joined []capture.UIDRange
	for _, r := range sorted {
		if n := len(joined); n > 0 && uint64(r.Lo) <= uint64(joined[n-1].Hi)+1 {
			joined[n-1].Hi = max(joined[n-1].Hi, r.Hi)
			continue
		}
		joined = append(joined, r)
	}
	return joined
}

// servers returns destinations as packets have them.
func servers(list []netip.AddrPort) []netip.AddrPort {
	var plain []netip.AddrPort
	for _, s := range list {
		if s.IsValid() {
			plain = append(plain, netip.AddrPortFrom(s.Addr().Unmap().WithZone(""), s.Port()))
		}
	}
	slices.SortFunc(plain, netip.AddrPort.Compare)
	return slices.Compact(plain)
}
