package plan

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
)

// Bounds of what patterns may cost: steps for one and for all of a rule set, and
// prefixes that one may become. Beyond them a pattern is asked about.
const (
	maxPatternWork = 1 << 19
	maxWork        = 1 << 25
	maxPrefixes    = 1024
	maxInexact     = 256 // octets or groups that are uncertain beyond one place
)

// addresses is what an address condition takes: every address, or those of the
// prefixes. Unless exact it takes some of these only.
type addresses struct {
	every    bool
	prefixes []netip.Prefix
	exact    bool
}

var (
	everyAddress = addresses{every: true, exact: true}
	everywhere   = []netip.Prefix{
		netip.PrefixFrom(netip.IPv4Unspecified(), 0),
		netip.PrefixFrom(netip.IPv6Unspecified(), 0),
	}
)

// translate finds the addresses whose text a regular expression matches, by what
// its automaton does with the texts of all of them: for IPv4 octet by octet, for
// IPv6 group by group in the form of RFC 5952, which is that of netip.
//
// Where runs of zero groups decide, which no prefix can say, or where it would take
// too many prefixes, the result is not exact but the least that is surely enough.
func translate(expr string, work *int) addresses {
	share := min(*work, maxPatternWork)
	left := share
	defer func() { *work -= share - max(left, 0) }()

	a, ok := build(expr, &left)
	if !ok {
		return addresses{every: true}
	}
	four := expander{automaton: a, work: &left, memo: make(map[place]region)}
	six := expander{automaton: a, work: &left, memo: make(map[place]region)}
	r4, r6 := four.octet(0, a.start), six.group(0, a.start)
	found := addresses{exact: r4.exact && r6.exact}
	for _, p := range r4.prefixes {
		found.prefixes = append(found.prefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte(p.addr[:4])), p.bits))
	}
	for _, p := range r6.prefixes {
		found.prefixes = append(found.prefixes, netip.PrefixFrom(netip.AddrFrom16(p.addr), p.bits))
	}
	if slices.Equal(found.prefixes, everywhere) {
		found.every, found.prefixes = true, nil
	}
	return found
}

// part is a prefix whose leading bits, those that a place comes after, are zero.
type part struct {
	addr [16]byte
	bits int
}

// region is the addresses that are matched beyond a place, as disjoint prefixes.
type region struct {
	prefixes []part
	exact    bool
}

// place is the beginning of an octet or group, the depth-th from 0, in a state.
type place struct{ depth, state int }

// expander finds the regions of one family.
type expander struct {
	*automaton
	work *int
	memo map[place]region
}

func none() region { return region{exact: true} }

// whole is everything behind the first bits.
func whole(bits int, exact bool) region { return region{[]part{{bits: bits}}, exact} }

func (r region) isWhole(bits int) bool { return len(r.prefixes) == 1 && r.prefixes[0].bits == bits }

func (x *expander) step(q, sym int) int {
	*x.work--
	return x.states[q].next[sym]
}

// at returns what is known of a place, or else what find finds.
func (x *expander) at(p place, find func() region) region {
	r, ok := x.memo[p]
	if !ok {
		r = find()
		x.memo[p] = r
	}
	return r
}

// octet returns the IPv4 addresses that are matched from state q on, when depth
// octets and their dots have been read.
func (x *expander) octet(depth, q int) region {
	switch s := &x.states[q]; {
	case !s.live4:
		return none()
	case s.all4:
		return whole(8*depth, true)
	}
	return x.at(place{depth, q}, func() region {
		c := collector{depth: depth, width: 8, exact: true}
		for v := range 256 {
			q := q
			for divisor := 100; divisor > 0; divisor /= 10 {
				if v >= divisor || divisor == 1 {
					q = x.step(q, v/divisor%10)
				}
			}
			switch {
			case depth < 3:
				c.add(v, x.octet(depth+1, x.step(q, symDot)))
			case x.states[q].accepts:
				c.add(v, whole(32, true))
			}
		}
		return c.region()
	})
}

// group returns the IPv6 addresses that are matched from state q on, when depth
// groups, none of them zero, and their colons have been read.
func (x *expander) group(depth, q int) region {
	switch s := &x.states[q]; {
	case !s.live6:
		return none()
	case s.all6:
		return whole(16*depth, true)
	case *x.work < 0:
		return whole(16*depth, false)
	}
	return x.at(place{depth, q}, func() region {
		c := collector{depth: depth, width: 16, exact: true}
		c.add(0, x.zero(depth, q))
		for v := 1; v < 16; v++ {
			x.digits(&c, x.step(q, v), v, 1)
		}
		return c.region()
	})
}

// digits adds the groups whose text begins with the n digits of v; q is the state
// after them.
func (x *expander) digits(c *collector, q, v, n int) {
	s := &x.states[q]
	switch {
	case !s.live6 || c.hopeless:
		return
	case *x.work < 0:
		c.hopeless = true
		return
	case s.all6:
		for more := range 5 - n {
			c.addRun(v<<(4*more), (v+1)<<(4*more)-1)
		}
		return
	case c.depth == 7 && s.accepts:
		c.add(v, whole(128, true))
	case c.depth < 7:
		c.add(v, x.group(c.depth+1, x.step(q, symColon)))
	}
	for d := 0; n < 4 && d < 16; d++ {
		x.digits(c, x.step(q, d), v<<4|d, n+1)
	}
}

// zero returns what is matched where the group after depth others is zero. It is
// written as "0", or, with those after it, as nothing between two colons: that
// depends on the groups to come, so prefixes say it only where the pattern matches
// both or neither, or few addresses.
func (x *expander) zero(depth, q int) region {
	bits := 16 * (depth + 1)
	if depth == 7 { // a single one is never left out
		if x.states[x.step(q, 0)].accepts {
			return whole(bits, true)
		}
		return none()
	}
	written := x.step(x.step(q, 0), symColon)
	omitted := x.step(q, symColon)
	gap := ":"
	if depth == 0 {
		omitted = x.step(omitted, symColon)
		gap = "::"
	}
	w, o := &x.states[written], &x.states[omitted]
	switch {
	case !w.live6 && !o.live6:
		return none()
	case w.all6 && o.all6:
		return whole(bits, true)
	}
	before := strings.Repeat("1:", depth) // stands for any groups but zero
	texts, ok := x.texts(nil, before+"0:", written)
	if ok {
		texts, ok = x.texts(texts, before+gap, omitted)
	}
	if ok {
		return single(texts, depth)
	}
	if !w.live6 {
		bits += 16 // the next one is left out as well
	}
	return whole(bits, false)
}

// texts appends all texts that begin with before and go on from q to a match, as
// long as they are few.
func (x *expander) texts(found []string, before string, q int) (texts []string, few bool) {
	const fewTexts, longest = 64, len("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
	s := &x.states[q]
	switch {
	case !s.live6:
		return found, true
	case len(before) > longest: // no address, but it may go on for ever
		return found, false
	}
	if s.accepts {
		found = append(found, before)
	}
	for sym := range symDot {
		var ok bool
		if found, ok = x.texts(found, before+letters[sym:sym+1], x.step(q, sym)); !ok || len(found) > fewTexts || *x.work < 0 {
			return nil, false
		}
	}
	return found, true
}

// single returns the region of single addresses, of which depth groups are known
// already, by those of the texts that are how an address is written.
func single(texts []string, depth int) region {
	var addrs []netip.Addr
	for _, text := range texts {
		// Mapped addresses are written as IPv4 by the time that rules see them.
		if addr, err := netip.ParseAddr(text); err == nil && addr.Is6() && !addr.Is4In6() && addr.String() == text {
			addrs = append(addrs, addr)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	r := none()
	for _, addr := range addrs {
		p := part{addr.As16(), 128}
		clear(p.addr[:2*depth])
		r.prefixes = append(r.prefixes, p)
	}
	return r
}

// collector puts a region together out of those of the values of its next octet or
// group.
type collector struct {
	depth, width int
	exact        bool
	inexact      int      // regions of values that are not exact
	hopeless     bool     // taking the whole is all that can be done
	runs         [][2]int // values that are in as a whole
	rest         []part
}

// add puts in the region of one value.
func (c *collector) add(v int, r region) {
	if !r.exact {
		c.exact = false
		c.inexact++
	}
	switch {
	case c.inexact > maxInexact || len(c.rest)+len(r.prefixes) > maxPrefixes:
		c.hopeless = true
	case r.isWhole((c.depth + 1) * c.width):
		c.addRun(v, v)
	default:
		for _, p := range r.prefixes {
			c.rest = append(c.rest, c.under(v, p))
		}
	}
}

func (c *collector) addRun(lo, hi int) { c.runs = append(c.runs, [2]int{lo, hi}) }

// under returns p with v before it.
func (c *collector) under(v int, p part) part {
	if c.width == 8 {
		p.addr[c.depth] = byte(v)
	} else {
		binary.BigEndian.PutUint16(p.addr[2*c.depth:], uint16(v))
	}
	return p
}

// region returns what has been collected, the whole where it takes too many prefixes.
func (c *collector) region() region {
	if c.hopeless {
		return whole(c.width*c.depth, false)
	}
	prefixes := c.rest
	slices.SortFunc(c.runs, func(a, b [2]int) int { return a[0] - b[0] })
	for i := 0; i < len(c.runs); {
		lo, hi := c.runs[i][0], c.runs[i][1]
		for i++; i < len(c.runs) && c.runs[i][0] <= hi+1; i++ {
			hi = max(hi, c.runs[i][1])
		}
		for lo <= hi {
			free := 0 // the bits that a block which begins with lo leaves open
			for free < c.width && lo&(1<<free) == 0 && lo+2<<free-1 <= hi {
				free++
			}
			prefixes = append(prefixes, c.under(lo, part{bits: c.width*(c.depth+1) - free}))
			lo += 1 << free
		}
	}
	if len(prefixes) > maxPrefixes {
		return whole(c.width*c.depth, false)
	}
	return region{prefixes, c.exact}
}
