package nft

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"net"
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
	name     string
	keyType  uint32
	keyLen   int
	ranges   bool // elements come in pairs: a first key, and the first one beyond
	verdicts bool
	elements []element
}

const largeSet = 200 // elements; a thousand cost a transaction some milliseconds

// named gives s its name, if it is to have one.
func (s *set) named() *set {
	if !s.ranges && len(s.elements) < largeSet {
		return s
	}
	h := sha256.New()
	fmt.Fprint(h, s.keyType, s.keyLen, s.ranges)
	for _, e := range s.elements {
		h.Write(e.key)
		fmt.Fprint(h, e.end)
	}
	s.name = fmt.Sprintf("set_%x", h.Sum(nil)[:16])
	return s
}

type element struct {
	key   []byte
	end   bool   // the key is the first one beyond a range
	chain string // of a verdict map: where to go; "" accepts
}

// span is an inclusive range of keys in network order.
type span struct{ first, last []byte }

// field is what a rule compares with spans.
type field struct {
	name    string
	keyType uint32
	load    []expr.Any
	show    func([]byte) string
}

func destination(ipv6 bool) field {
	f := field{name: "ip daddr", keyType: typeIPv4, show: showAddr}
	load := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
	if ipv6 {
		f.name, f.keyType, load.Offset, load.Len = "ip6 daddr", typeIPv6, 24, 16
	}
	f.load = []expr.Any{load}
	return f
}

func port() field {
	return field{name: "th dport", keyType: typePort, show: showNumber, load: []expr.Any{transport(2, 2)}}
}

func owner() field {
	return field{name: "meta skuid", keyType: typeUID, show: showNumber, load: []expr.Any{
		meta(expr.MetaKeySKUID),
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
	}}
}

// family matches one of the two; the other's addresses lie elsewhere in the packet.
func family(ipv6 bool) term {
	if ipv6 {
		return say("meta nfproto ipv6", meta(expr.MetaKeyNFPROTO), equal(unix.NFPROTO_IPV6))
	}
	return say("meta nfproto ipv4", meta(expr.MetaKeyNFPROTO), equal(unix.NFPROTO_IPV4))
}

// within returns the ways for a field to be within spans: one or two comparisons, or
// the lookup of a set. No span is no way.
func (f field) within(spans []span) []term {
	spans = merge(spans)
	if len(spans) > 2 {
		return []term{f.lookup(spans)}
	}
	var ways []term
	for _, s := range spans {
		compare := []expr.Any{&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: s.first, ToData: s.last}}
		if bytes.Equal(s.first, s.last) {
			compare = []expr.Any{equal(s.first...)}
		} else if p, ok := s.prefix(); ok && f.keyType == typeIPv4 { // which the kernel does faster
			compare = []expr.Any{masked(net.CIDRMask(p.Bits(), 32), host32(0)), equal(s.first...)}
		}
		ways = append(ways, say(f.name+" "+f.text(s), append(slices.Clone(f.load), compare...)...))
	}
	return ways
}

func (f field) lookup(spans []span) term {
	texts := make([]string, len(spans))
	s := &set{keyType: f.keyType, keyLen: len(spans[0].first), ranges: true}
	for i, sp := range spans {
		texts[i] = f.text(sp)
		s.elements = append(s.elements, element{key: sp.first})
		if beyond := next(sp.last); beyond != nil {
			s.elements = append(s.elements, element{key: beyond, end: true})
		}
	}
	return term{text: fmt.Sprintf("%s { %s }", f.name, strings.Join(texts, ", ")), exprs: f.load, set: s.named()}
}

func (f field) text(s span) string {
	if bytes.Equal(s.first, s.last) {
		return f.show(s.first)
	}
	if p, ok := s.prefix(); ok && f.keyType != typeUID {
		return p.String()
	}
	return f.show(s.first) + "-" + f.show(s.last)
}

// prefix is what s covers, if it is one.
func (s span) prefix() (p netip.Prefix, ok bool) {
	addr, ok := netip.AddrFromSlice(s.first)
	if !ok { // a port
		return p, false
	}
	p = netip.PrefixFrom(addr, common(s.first, s.last))
	all := spanOf(p)
	return p, bytes.Equal(all.first, s.first) && bytes.Equal(all.last, s.last)
}

func showAddr(b []byte) string {
	addr, _ := netip.AddrFromSlice(b)
	return addr.String()
}

func showNumber(b []byte) string { return fmt.Sprint(number(b)) }

// merge sorts spans and joins those that overlap or touch, as a set's must not. One
// that ends before it begins is left out.
func merge(spans []span) []span {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b span) int { return bytes.Compare(a.first, b.first) })
	var out []span
	for _, s := range spans {
		if bytes.Compare(s.first, s.last) > 0 {
			continue
		}
		if n := len(out) - 1; n >= 0 {
			if beyond := next(out[n].last); beyond == nil || bytes.Compare(s.first, beyond) <= 0 {
				if bytes.Compare(s.last, out[n].last) > 0 {
					out[n].last = s.last
				}
				continue
			}
		}
		out = append(out, s)
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
	return span{first, last}
}

// common counts the bits that a and b begin with alike.
func common(a, b []byte) (n int) {
	for i := range a {
		same := bits.LeadingZeros8(a[i] ^ b[i])
		if n += same; same < 8 {
			break
		}
	}
	return n
}

// inPrefixes returns the ways for a packet's destination to be within prefixes, in
// either family. No prefix is no way.
func inPrefixes(prefixes []netip.Prefix) []rule {
	var ways []rule
	for _, ipv6 := range []bool{false, true} {
		var spans []span
		for _, p := range prefixes {
			if p.IsValid() && p.Addr().Is6() == ipv6 {
				spans = append(spans, spanOf(p))
			}
		}
		for _, way := range destination(ipv6).within(spans) {
			ways = append(ways, rule{family(ipv6), way})
		}
	}
	return ways
}

func inPorts(ranges []capture.PortRange) []term {
	var spans []span
	for _, r := range ranges {
		spans = append(spans, span{be16(r.Lo), be16(r.Hi)})
	}
	return port().within(spans)
}

func inUsers(ranges []capture.UIDRange) []term {
	var spans []span
	for _, r := range ranges {
		spans = append(spans, span{be32(r.Lo), be32(r.Hi)})
	}
	return owner().within(spans)
}

// toServers returns the ways for a packet to go to one of servers.
func toServers(servers []netip.AddrPort) []rule {
	var ways []rule
	for _, ipv6 := range []bool{false, true} {
		var texts []string
		var elements []element
		there := map[string]bool{}
		for _, s := range servers {
			s = netip.AddrPortFrom(s.Addr().WithZone(""), s.Port())
			text := fmt.Sprintf("%s . %d", s.Addr(), s.Port())
			if !s.IsValid() || s.Addr().Is6() != ipv6 || there[text] {
				continue
			}
			there[text] = true
			texts = append(texts, text)
			elements = append(elements, element{key: append(append(s.Addr().AsSlice(), be16(s.Port())...), 0, 0)})
		}
		if elements == nil {
			continue
		}
		// The parts of the key lie behind one another, each in registers of its own.
		f, to := destination(ipv6), port()
		second := *to.load[0].(*expr.Payload)
		second.DestRegister = register32 + uint32(len(elements[0].key)/4) - 1
		ways = append(ways, rule{family(ipv6), {
			text:  fmt.Sprintf("%s . %s { %s }", f.name, to.name, strings.Join(texts, ", ")),
			exprs: []expr.Any{f.load[0], &second},
			set:   (&set{keyType: f.keyType<<typeJoinBits | typePort, keyLen: len(elements[0].key), elements: elements}).named(),
		}})
	}
	return ways
}

// bySocket goes where a map says, by a socket's cgroup at a level and its owner. It
// goes on where the map says nothing, or the socket has no cgroup at that level.
func bySocket(level uint32, elements []element, texts []string) term {
	return term{
		text: fmt.Sprintf("socket cgroupv2 level %d . meta skuid vmap { %s }", level, strings.Join(texts, ", ")),
		exprs: []expr.Any{
			&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: level, Register: 1},
			&expr.Meta{Key: expr.MetaKeySKUID, Register: register32 + 2},
		},
		set: &set{keyType: typeCgroup<<typeJoinBits | typeUID, keyLen: 12, verdicts: true, elements: elements},
	}
}

// socketKey is a key of such a map, in host order.
func socketKey(cgroup uint64, uid uint32) []byte {
	return binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint64(nil, cgroup), uid)
}
