package filter

import (
	"fmt"
	"net/netip"
	"strings"

	"sshbroker/filter/egrep"
)

// Shadow is a rule that never decides, because an earlier one takes every flow that it
// could take. Both are places in the list of rules.
type Shadow struct{ Rule, By int }

// maxCompared bounds the work of Shadowed: pairs of rules that are compared.
const maxCompared = 50_000_000

// Shadowed returns the rules that never decide, in their order, each with the first
// rule that leaves nothing to it. It finds what one earlier rule alone takes; that
// several do together, or that two patterns of no simple form mean the same, is not
// found out. What it returns is true in each case: such a rule decides no flow,
// wherever the host is. all is false where there were more pairs to compare than are
// worth the time.
//
// rules are as NewSet takes them, without errors.
func Shadowed(rules []Rule) (found []Shadow, all bool) {
	x := newShadowIndex()
	for i := range rules {
		c := newCandidate(i, rules[i].normal())
		if by := x.cover(c); by >= 0 {
			found = append(found, Shadow{i, by}) // what it would shadow, by does as well
			continue
		}
		x.add(c)
	}
	return found, x.compared <= maxCompared
}

// place is how a rule says which hosts it is for.
type place uint8

const (
	anywhere place = iota
	byName
	byText   // a pattern over the address
	byPrefix // an address prefix
)

// candidate is a rule with what comparing it needs.
type candidate struct {
	at      int
	rule    Rule
	place   place
	pattern *egrep.Pattern // byName, byText; byPrefix: what holds all its addresses as text, or nil
	addr    netip.Addr     // byText: the one address that it may be; the zero one else

	head, tail, inside string // of pattern, see egrep.Pattern.Literals
	text               string // of pattern, where it is a plain text
	appHead, appTail   string // of the rule's Application
}

func newCandidate(at int, r Rule) *candidate {
	c := &candidate{at: at, rule: r}
	switch {
	case r.Host != nil:
		if !r.Host.Any() {
			c.place, c.pattern = byName, r.Host
		}
	case r.Address != nil:
		if !r.Address.Any() {
			c.place, c.pattern = byText, r.Address
			if text, ok := r.Address.Literal(); ok {
				c.addr, _ = netip.ParseAddr(text)
			}
		}
	case r.Prefix.IsValid():
		c.place, c.pattern = byPrefix, prefixText(r.Prefix)
	}
	if c.pattern != nil {
		c.head, c.tail, c.inside = c.pattern.Literals()
		c.text, _ = c.pattern.Literal()
	}
	if r.Application != nil {
		c.appHead, c.appTail, _ = r.Application.Literals()
	}
	return c
}

// prefixText returns a pattern that matches every address of an IPv4 prefix, and maybe
// more; nil where that would be all of them.
func prefixText(p netip.Prefix) *egrep.Pattern {
	octets := p.Bits() / 8
	if !p.Addr().Is4() || octets == 0 {
		return nil
	}
	a := p.Addr().As4()
	var b strings.Builder
	for i := range octets {
		fmt.Fprintf(&b, "%d", a[i])
		if i < 3 {
			b.WriteString(`\.`)
		}
	}
	if octets < 4 {
		b.WriteString(".*")
	}
	pattern, err := egrep.Compile(b.String(), egrep.Options{})
	if err != nil {
		return nil
	}
	return pattern
}

// covers tells whether every flow that d holds for is one that c holds for. The
// comparisons that cost least come first.
func (c *candidate) covers(d *candidate) bool {
	r, s := &c.rule, &d.rule
	switch {
	case r.Network != "" && r.Network != s.Network:
		return false
	case !portsWithin(s.Ports, r.Ports):
		return false
	case !someOf(s.Users, r.Users), !someOf(s.Groups, r.Groups):
		return false
	case r.Application == nil:
	case s.Application == nil, !strings.HasPrefix(d.appHead, c.appHead), !strings.HasSuffix(d.appTail, c.appTail):
		return false
	case !r.Application.Contains(s.Application):
		return false
	}
	switch c.place {
	case anywhere:
		return true
	case byName, byText:
		switch {
		case d.pattern == nil, c.place == byName != (d.place == byName):
			return false
		case d.text != "" && !strings.Contains(d.text, c.inside): // spares most of what costs
			return false
		}
		return c.pattern.Contains(d.pattern)
	}
	switch d.place {
	case byPrefix:
		return r.Prefix.Bits() <= s.Prefix.Bits() && r.Prefix.Contains(s.Prefix.Addr())
	case byText:
		return r.Prefix.Contains(d.addr.Unmap())
	}
	return false
}

// portsWithin tells whether each port of inner is in outer.
func portsWithin(inner, outer []PortRange) bool {
	if everyPort(outer) {
		return true
	}
	if len(inner) == 0 {
		inner = []PortRange{{1, 65535}}
	}
	for _, p := range inner {
		for next := int(p.Lo); next <= int(p.Hi); {
			end := -1
			for _, q := range outer {
				if int(q.Lo) <= next && next <= int(q.Hi) {
					end = max(end, int(q.Hi))
				}
			}
			if end < 0 {
				return false
			}
			next = end + 1
		}
	}
	return true
}

// someOf tells whether whoever is in inner is in outer; an empty list is everybody.
func someOf(inner, outer []string) bool {
	if len(outer) == 0 {
		return true
	}
	for _, name := range inner {
		if !shareOne([]string{name}, outer) {
			return false
		}
	}
	return len(inner) > 0
}

// shadowIndex finds the earlier rules that may cover one: those whose pattern begins
// or ends as its own does. Only rules that are not covered themselves are in it.
type shadowIndex struct {
	anywhere []*candidate
	tails    map[ending][]*candidate
	heads    map[ending][]*candidate // of those without a tail
	others   [byPrefix][]*candidate  // by place, those without either,
	written  map[ending][]*candidate // and by their whole text
	prefixes map[netip.Prefix][]*candidate
	compared int
}

// ending is one end of a pattern, of one place.
type ending struct {
	place place
	text  string
}

func newShadowIndex() *shadowIndex {
	return &shadowIndex{
		tails:    make(map[ending][]*candidate),
		heads:    make(map[ending][]*candidate),
		written:  make(map[ending][]*candidate),
		prefixes: make(map[netip.Prefix][]*candidate),
	}
}

func (x *shadowIndex) add(c *candidate) {
	into := func(m map[ending][]*candidate, text string) {
		m[ending{c.place, text}] = append(m[ending{c.place, text}], c)
	}
	switch {
	case c.place == anywhere:
		x.anywhere = append(x.anywhere, c)
	case c.place == byPrefix:
		x.prefixes[c.rule.Prefix] = append(x.prefixes[c.rule.Prefix], c)
	case c.tail != "":
		into(x.tails, c.tail)
	case c.head != "":
		into(x.heads, c.head)
	default:
		x.others[c.place] = append(x.others[c.place], c)
		into(x.written, c.pattern.String())
	}
}

// cover returns the place of the first rule that covers d, below zero where there is
// none.
func (x *shadowIndex) cover(d *candidate) int {
	best := -1
	try := func(list []*candidate) {
		for _, c := range list {
			if best >= 0 && c.at > best {
				return // the list is in order
			}
			if x.compared++; x.compared > maxCompared {
				return
			}
			if c.covers(d) {
				best = c.at
				return
			}
		}
	}
	try(x.anywhere)
	if at := d.place; at == byName || at == byText || at == byPrefix {
		if at == byPrefix {
			at = byText // a pattern may hold all of the prefix
		}
		switch {
		case d.text != "":
			try(x.others[at])
		case d.pattern != nil: // those without an end are not compared but as they are written
			try(x.written[ending{at, d.pattern.String()}])
		}
		for i := range d.tail {
			try(x.tails[ending{at, d.tail[i:]}])
		}
		for i := range d.head {
			try(x.heads[ending{at, d.head[:i+1]}])
		}
	}
	inner := d.rule.Prefix
	if d.place == byText && d.addr.IsValid() {
		inner = netip.PrefixFrom(d.addr.Unmap(), d.addr.Unmap().BitLen())
	}
	if (d.place == byText || d.place == byPrefix) && inner.IsValid() {
		for bits := inner.Bits(); bits >= 0; bits-- {
			outer, err := inner.Addr().Prefix(bits)
			if err == nil {
				try(x.prefixes[outer])
			}
		}
	}
	return best
}
