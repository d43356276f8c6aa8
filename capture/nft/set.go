package nft

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sshbroker/capture"
)

// Types of keys as nft numbers them (its include/datatype.h), so that it can show them;
// parts of a concatenation are joined. To the kernel they mean nothing.
const (
	typeIPv4     = 7
	typeIPv6     = 8
	typePort     = 13
	typeUID      = 24
	typeCgroup   = 46
	typeJoinBits = 6
)

// register32 is the first of the 32-bit registers, which register 1 covers four of.
const register32 = unix.NFT_REG32_00

// set is a set or a verdict map. It belongs to the one rule that looks it up, unless it
// is large, or of ranges, see Table.stage: then it has a name, by what is in it, and
// stays for rules that want the same.
type set struct {
	name    string
	keyType uint32
	spans   []span
	ranges  bool // of spans, each of which is two elements: a first key, and the first one beyond
}

const largeSet = 200 // spans; a thousand cost a transaction some milliseconds

// span is an inclusive range of keys in network order, and what it is called.
type span struct {
	first, last []byte
	text        string
	chain       string // of a verdict map: where to go
}

func (s span) several() bool { return !bytes.Equal(s.first, s.last) }

// field is what a rule compares with spans.
type field struct {
	name    string
	keyType uint32
	load    []expr.Any
}

var (
	portField  = field{"th dport", typePort, []expr.Any{transport(2, 2)}}
	ownerField = field{"meta skuid", typeUID, []expr.Any{meta(expr.MetaKeySKUID),
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4}}}
)

// families are the two, whose addresses lie elsewhere in the packet.
var families = []struct {
	match       Term
	destination field
	ipv6        bool
}{
	{say("meta nfproto ipv4", meta(expr.MetaKeyNFPROTO), equal(unix.NFPROTO_IPV4)), field{"ip daddr", typeIPv4, []expr.Any{network(16, 4)}}, false},
	{say("meta nfproto ipv6", meta(expr.MetaKeyNFPROTO), equal(unix.NFPROTO_IPV6)), field{"ip6 daddr", typeIPv6, []expr.Any{network(24, 16)}}, true},
}

// within returns the ways for a field to be within spans: one or two comparisons, or
// the lookup of a set. No span is no way.
func (f field) within(spans []span) (ways []Term) {
	if spans = merge(spans); len(spans) > 2 {
		return []Term{f.lookup(spans)}
	}
	for _, s := range spans {
		compare := []expr.Any{&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: s.first, ToData: s.last}}
		if mask := s.mask(); mask != nil { // which the kernel does faster
			compare = []expr.Any{masked(mask, host32(0)), equal(s.first...)}
		} else if !s.several() {
			compare = []expr.Any{equal(s.first...)}
		}
		ways = append(ways, say(f.name+" { "+s.text+" }", slices.Concat(f.load, compare)...))
	}
	return ways
}

func (f field) lookup(spans []span) Term {
	texts := make([]string, len(spans))
	for i, s := range spans {
		texts[i] = s.text
	}
	text := fmt.Sprintf("%s { %s }", f.name, strings.Join(texts, ", "))
	s := &set{keyType: f.keyType, spans: spans, ranges: slices.ContainsFunc(spans, span.several)}
	if s.ranges || len(spans) >= largeSet && spans[0].chain == "" {
		content := sha256.Sum256([]byte(text))
		s.name = fmt.Sprintf("set_%x", content[:16])
	}
	return Term{text: text, exprs: f.load, set: s}
}

// mask is that of an IPv4 prefix with several addresses; nil for everything else.
func (s span) mask() []byte {
	if len(s.first) != 4 || !s.several() {
		return nil
	}
	first, last := binary.BigEndian.Uint32(s.first), binary.BigEndian.Uint32(s.last)
	if differ := first ^ last; differ&(differ+1) == 0 && first&differ == 0 {
		return be32(^differ)
	}
	return nil
}

// merge sorts spans and joins those that overlap, or where there are ranges touch, as a
// set's must not. One that ends before it begins is left out.
func merge(spans []span) (out []span) {
	spans = slices.Clone(spans)
	ranges := slices.ContainsFunc(spans, span.several)
	slices.SortFunc(spans, func(a, b span) int { return cmp.Or(bytes.Compare(a.first, b.first), bytes.Compare(b.last, a.last)) })
	for _, s := range spans {
		last := len(out) - 1
		switch {
		case bytes.Compare(s.first, s.last) > 0, last >= 0 && bytes.Compare(s.last, out[last].last) <= 0:
		case last >= 0 && (bytes.Compare(s.first, out[last].last) <= 0 || ranges && bytes.Equal(s.first, next(out[last].last))):
			begin, _, _ := strings.Cut(out[last].text, "-")
			out[last].last, out[last].text = s.last, begin+"-"+s.text[strings.LastIndex(s.text, "-")+1:]
		default:
			out = append(out, s)
		}
	}
	return out
}

// next is the key after b; nil after the last one.
func next(b []byte) []byte {
	b = bytes.Clone(b)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]++; b[i] != 0 {
			return b
		}
	}
	return nil
}

func spanOf(p netip.Prefix) span {
	p = p.Masked()
	first := p.Addr().AsSlice()
	last := bytes.Clone(first)
	for i := p.Bits(); i < len(last)*8; i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	if p.IsSingleIP() {
		return span{first: first, last: last, text: p.Addr().String()}
	}
	return span{first: first, last: last, text: p.String()}
}

// inPrefixes returns the ways for a packet's destination to be within prefixes, in
// either family. No prefix is no way.
func inPrefixes(prefixes []netip.Prefix) []Rule {
	var ways []Rule
	for _, f := range families {
		var spans []span
		for _, p := range prefixes {
			if p.IsValid() && p.Addr().Is6() == f.ipv6 {
				spans = append(spans, spanOf(p))
			}
		}
		for _, way := range f.destination.within(spans) {
			ways = append(ways, Rule{f.match, way})
		}
	}
	return ways
}

func inPorts(ranges ...capture.PortRange) []Term {
	var spans []span
	for _, r := range ranges {
		spans = append(spans, span{first: be16(r.Lo), last: be16(r.Hi), text: numbers(r.Lo, r.Hi)})
	}
	return portField.within(spans)
}

func inUsers(ranges ...capture.UIDRange) []Term {
	var spans []span
	for _, r := range ranges {
		spans = append(spans, span{first: be32(r.Lo), last: be32(r.Hi), text: numbers(r.Lo, r.Hi)})
	}
	return ownerField.within(spans)
}

func numbers[T uint16 | uint32](lo, hi T) string {
	if lo == hi {
		return fmt.Sprint(lo)
	}
	return fmt.Sprintf("%d-%d", lo, hi)
}

// toServers returns the ways for a packet to go to one of servers.
func toServers(servers []netip.AddrPort) (ways []Rule) {
	at := map[uint16][]netip.Prefix{}
	for _, s := range servers {
		at[s.Port()] = append(at[s.Port()], netip.PrefixFrom(s.Addr(), s.Addr().BitLen()))
	}
	for _, port := range slices.Sorted(maps.Keys(at)) {
		ways = append(ways, ending(inPrefixes(at[port]), DestPort(port))...)
	}
	return ways
}

// toLoopback returns the ways for a packet to go to one of ports on both of its addresses.
func toLoopback(ports ...uint16) []Rule {
	var ranges []capture.PortRange
	for _, p := range ports {
		ranges = append(ranges, capture.PortRange{Lo: p, Hi: p})
	}
	addresses := []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 32), netip.PrefixFrom(netip.IPv6Loopback(), 128)}
	return product(inPrefixes(addresses), inPorts(ranges...))
}

// socketAt is a socket's cgroup at a level and its owner, in host order. A map of such
// keys goes on where it says nothing, or the socket has no cgroup at that level.
func socketAt(level uint32) field {
	return field{fmt.Sprintf("socket cgroupv2 level %d . meta skuid vmap", level), typeCgroup<<typeJoinBits | typeUID, []expr.Any{
		&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: level, Register: 1},
		&expr.Meta{Key: expr.MetaKeySKUID, Register: register32 + 2},
	}}
}
