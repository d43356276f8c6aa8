package plan

import (
	"net/netip"
	"slices"

	"sshbroker/capture"
	"sshbroker/filter"
)

// Options are what a Spec says besides the rules, in any order and form; see
// capture.Spec. The zero Options leave all of it out.
type Options struct {
	Pools     []netip.Prefix
	Exempt    []netip.AddrPort // zones are left out
	Local     bool
	Users     []capture.UIDRange
	RefuseUDP bool // RefusesUDP says what the rules want
	Open      bool // MayOpen says what the rules allow
}

// Compile translates rules, in their order. A rule becomes a verdict of the
// kernel's where it says DIRECT or BLOCK by nothing but ports and an address
// condition that prefixes can say exactly; a host of ".*" is no condition. Any
// other rule is asked about, for every flow that it could possibly take: its
// ports, and its addresses only where the rule has no host, as names lead anywhere.
//
// A Spec outlives the broker, and the host may move meanwhile. So a rule for a network
// lets nothing through by itself where it is in force, and where it is not is asked
// about all the same, unless it is DIRECT.
//
// Lists in the Spec are sorted and do not overlap. Nil rules refuse everything.
// The cost is linear in the rules, and bounded for each whatever its pattern.
func Compile(rules *filter.Set, o Options) capture.Spec {
	spec := capture.Spec{
		Pools: joinPrefixes(slices.Clone(o.Pools)), Exempt: servers(o.Exempt), Users: joinUsers(o.Users),
		Local: o.Local, RefuseUDP: o.RefuseUDP, Open: o.Open,
		Rest: outcome(rules.Default()),
	}
	c := compiler{work: maxWork, seen: make(map[string]addresses)}
	all := rules.Rules()
	for i := range all {
		r := &all[i]
		away := !rules.InForce(i)
		if away && r.Action == filter.Direct {
			continue
		}
		taken, exact := c.conditions(r)
		if r.Network != "" && (away || r.Action == filter.Direct) {
			exact = false
		}
		switch {
		case !taken.every && len(taken.prefixes) == 0:
			continue // holds for no address at all
		case exact:
			taken.Outcome = outcome(r.Action)
		}
		if taken.every && len(taken.Ports) == 0 {
			spec.Rest = taken.Outcome // for nothing gets past it
			break
		}
		c.add(taken)
	}
	spec.Rules = c.finish(spec.Rest)
	return spec
}

// outcome is what the kernel can do by itself about an action.
func outcome(a filter.Action) capture.Outcome {
	switch a {
	case filter.Direct:
		return capture.Pass
	case filter.Block:
		return capture.Reset
	}
	return capture.Ask
}

// rule is a SpecRule in the making: without prefixes it takes every address only
// where it says so.
type rule struct {
	capture.SpecRule
	addresses
}

type compiler struct {
	rules []rule
	asks  map[string]int // the last rules, as long as they ask, by their ports

	work int                  // left for address patterns
	seen map[string]addresses // of patterns
}

// conditions returns what r takes at most, and whether it takes all of that.
func (c *compiler) conditions(r *filter.Rule) (taken rule, exact bool) {
	taken.Number = r.Number
	taken.Ports = joinPorts(r.Ports)
	taken.addresses = everyAddress
	switch {
	case r.Host != nil: // the address is not looked at
		taken.exact = r.Host.Any()
	case r.Address != nil:
		taken.addresses = c.pattern(r.Address.Regexp())
	case r.Prefix.IsValid():
		taken.addresses = addresses{prefixes: []netip.Prefix{r.Prefix}, exact: true}
	}
	return taken, taken.exact && r.Anyone()
}

func (c *compiler) pattern(expr string) addresses {
	found, ok := c.seen[expr]
	if !ok {
		found = translate(expr, &c.work)
		c.seen[expr] = found
	}
	return found
}

// add appends r. Rules that ask, one after the other, may stand in any order, so
// those of the same ports become one.
func (c *compiler) add(r rule) {
	if r.Outcome != capture.Ask {
		c.rules, c.asks = append(c.rules, r), nil
		return
	}
	key := portsKey(r.Ports)
	at, ok := c.asks[key]
	if !ok {
		if c.asks == nil {
			c.asks = make(map[string]int)
		}
		c.asks[key] = len(c.rules)
		r.prefixes = slices.Clone(r.prefixes) // of c.seen, perhaps
		c.rules = append(c.rules, r)
		return
	}
	earlier := &c.rules[at]
	earlier.every = earlier.every || r.every
	earlier.prefixes = append(earlier.prefixes, r.prefixes...)
}

// finish returns the rules before a rest. Rules at the end that ask say nothing
// where the rest is asked about too.
func (c *compiler) finish(rest capture.Outcome) []capture.SpecRule {
	if rest == capture.Ask {
		for len(c.rules) > 0 && c.rules[len(c.rules)-1].Outcome == capture.Ask {
			c.rules = c.rules[:len(c.rules)-1]
		}
	}
	var finished []capture.SpecRule
	for _, r := range c.rules {
		if r.Prefixes = joinPrefixes(r.prefixes); r.every || slices.Equal(r.Prefixes, everywhere) {
			r.Prefixes = nil
		}
		finished = append(finished, r.SpecRule)
	}
	return finished
}
