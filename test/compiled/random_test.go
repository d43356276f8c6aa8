package compiled

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"sshbroker/broker/plan"
	"sshbroker/capture"
	"sshbroker/filter"
	"sshbroker/filter/egrep"
)

var oneSeed = flag.Int64("seed", -1, "try this one rule set")

func long() bool { return os.Getenv("SSHBROKER_LONG") == "1" }

// seeds returns those to try: n, or many times more, or the one of the flag.
func seeds(n, more uint64) (first, count uint64) {
	switch {
	case *oneSeed >= 0:
		return uint64(*oneSeed), 1
	case long():
		return 0, n * more
	}
	return 0, n
}

// world is one rule set with all that is made of it.
type world struct {
	seed    uint64
	rules   []filter.Rule
	def     filter.Action
	options plan.Options

	set  *filter.Set
	spec capture.Spec
}

// flow is one connection: what Decide is told, and whose socket it is.
type flow struct {
	filter.Flow
	program string
	uid     uint32
	local   bool // goes to an address of the host's own
}

func (f flow) String() string {
	return fmt.Sprintf("%s of uid %d, names %q, program %q, user %q %q",
		netip.AddrPortFrom(f.Addr, f.Port), f.uid, f.Names, f.program, f.User, f.Groups)
}

func pick[T any](rng *rand.Rand, values ...T) T { return values[rng.IntN(len(values))] }

func sometimes[T any](rng *rand.Rand, n int, values ...T) (v T) {
	if rng.IntN(n) == 0 {
		v = pick(rng, values...)
	}
	return v
}

func compilePattern(text string, ignoreCase bool) *egrep.Pattern {
	p, err := egrep.Compile(text, egrep.Options{IgnoreCase: ignoreCase})
	if err != nil {
		panic(err)
	}
	return p
}

// prefixes near one another, so that rules overlap.
func randomPrefix(rng *rand.Rand) netip.Prefix {
	p := netip.MustParsePrefix(pick(rng,
		"0.0.0.0/0", "::/0", "0.0.0.0/1", "8000::/1", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "203.0.113.0/24",
		"2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::/64", "2001:db8:1::5/128", "fd00::/8", "::ffff:10.1.0.0/112", "198.18.0.0/15"))
	if rng.IntN(3) == 0 { // somewhere inside it, as long as that may be
		addr := within(rng, p)
		p = netip.PrefixFrom(addr, p.Bits()+rng.IntN(addr.BitLen()-p.Bits()+1)).Masked()
	}
	return p
}

func randomPattern(rng *rand.Rand) string {
	a, b := rng.IntN(4), rng.IntN(256)
	return pick(rng,
		`.*`, `10\.1\.2\.3`, `10.1.2.3`, `10\.1\..*`, `10\..*`, `.*\.1`, `.*:.*`, `.*\..*`,
		`10\.1\.2\.[0-9]+`, `10\.1\.2\.[0-9]`, `10\.[0-3]\.[0-9]+\.[0-9]+`, `(10\.1|203\.0)\..*`,
		fmt.Sprintf(`10\.%d\.%d\..*`, a, b), fmt.Sprintf(`10\.%d\.2\.%d`, a, b), fmt.Sprintf(`203\.0\.113\.(%d|%d)`, a, b),
		fmt.Sprintf(`203\.0\.113\.1?%d`, a), fmt.Sprintf(`10\.1\.2\.[%d-9].*`, a),
		`2001:db8:.*`, `2001:db8:1:.*`, `2001:db8::.*`, `2001:db8:1::5`, `2001:db8:[0-9a-f]+:.*`, `fd.*`, `fd00:.*`, `(fd00|2001):.*`,
		fmt.Sprintf(`2001:db8:%d::%x`, a, b), fmt.Sprintf(`2001:db8:%x:.*`, b+1), fmt.Sprintf(`2001:db8:1::[0-%d]`, a), `no\.address`)
}

func randomPorts(rng *rand.Rand) []filter.PortRange {
	var ranges []filter.PortRange
	for range pick(rng, 0, 0, 1, 1, 2, 3) {
		lo := pick(rng, 1, 22, 80, 443, 1024, 65535, 1+rng.IntN(65535))
		hi := min(65535, lo+pick(rng, 0, 0, 1, 10, 1000, 65535))
		ranges = append(ranges, filter.PortRange{Lo: uint16(lo), Hi: uint16(hi)})
	}
	return ranges
}

// randomWorld makes a rule set. Most of its rules can be compiled, or nearly every
// flow would be asked about; in every fourth one, all of them.
func randomWorld(seed uint64) *world {
	rng := rand.New(rand.NewPCG(seed, 1))
	w := &world{seed: seed, def: pick(rng, filter.Direct, filter.Block, filter.Direct, filter.Block, filter.Tunnel)}
	plain := rng.IntN(4) == 0
	if plain {
		w.def = pick(rng, filter.Direct, filter.Block)
	}
	for range rng.IntN(9) {
		if plain {
			w.rules = append(w.rules, filter.Rule{Prefix: randomPrefix(rng), Ports: randomPorts(rng), Action: pick(rng, filter.Direct, filter.Block)})
			continue
		}
		r := filter.Rule{
			Ports:   randomPorts(rng),
			Users:   sometimes(rng, 12, []string{"alice"}, []string{"alice", "bob"}),
			Groups:  sometimes(rng, 12, []string{"ops"}, []string{"ops", "dba"}),
			Action:  pick(rng, filter.Block, filter.Block, filter.Block, filter.Direct, filter.Direct, filter.Direct, filter.Tunnel, filter.FTPTunnel, filter.FTPProxy),
			Profile: "p",
			Network: sometimes(rng, 16, here, "elsewhere"),
		}
		if app := sometimes(rng, 12, `telnet`, `.*`, `/usr/bin/.*`); app != "" {
			r.Application = compilePattern(app, false)
		}
		if host := sometimes(rng, 8, `.*`, `a\.example`, `.*\.example`, `10\.1\..*`, `.*:.*`, `10\.1\.2\.3`); host != "" {
			r.Host = compilePattern(host, true)
		}
		switch rng.IntN(5) {
		case 0, 1:
			r.Prefix = randomPrefix(rng)
		case 2, 3:
			r.Address = compilePattern(randomPattern(rng), false)
		default:
			if len(r.Ports) == 0 && rng.IntN(3) > 0 { // else little is left for rules after it
				r.Ports = []filter.PortRange{{Lo: 80, Hi: 443}}
			}
		}
		w.rules = append(w.rules, r)
	}
	w.options = plan.Options{Local: rng.IntN(3) == 0, RefuseUDP: rng.IntN(2) == 0, Users: []capture.UIDRange{{Lo: 1000, Hi: 59999}, {Lo: 0, Hi: 0}}}
	if rng.IntN(3) == 0 {
		w.options.Pools = []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("fd00:198::/64")}
	}
	for range rng.IntN(3) {
		w.options.Exempt = append(w.options.Exempt, netip.AddrPortFrom(randomAddr(rng), pick[uint16](rng, 22, 443, 2222)))
	}
	w.compile()
	return w
}

func (w *world) compile() {
	set, err := filter.NewSet(w.rules, w.def)
	if err != nil {
		panic(err)
	}
	w.set = set.On(func(network string) bool { return network == here })
	w.spec = plan.Compile(w.set, w.options)
}

// here is the network that the host is on.
const here = "here"

func randomAddr(rng *rand.Rand) netip.Addr {
	return within(rng, netip.MustParsePrefix(pick(rng,
		"0.0.0.0/0", "10.0.0.0/14", "10.1.2.0/24", "10.1.2.3/32", "203.0.113.0/28", "198.18.0.0/30",
		"::/0", "2001:db8::/46", "2001:db8:1::/124", "2001:db8:1::5/128", "fd00::/62", "fd00:198::/126")))
}

// within returns an address of p in which zeros and small numbers are as likely as
// anything.
func within(rng *rand.Rand, p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := range b {
		free := byte(0xff)
		if bits := p.Bits() - 8*i; bits >= 8 {
			continue
		} else if bits > 0 {
			free >>= bits
		}
		b[i] |= free & pick(rng, 0, 0, 0, 1, 2, 0xff, byte(rng.Uint32()))
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// last returns the last address of p.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// edges returns the addresses and ports at which w's rules begin and end, and those
// beside them, as the rules and their compiled form name them.
func (w *world) edges() (addrs []netip.Addr, ports []uint16) {
	var prefixes []netip.Prefix
	for _, r := range w.rules {
		if r.Prefix.IsValid() {
			prefixes = append(prefixes, r.Prefix)
		}
		for _, p := range r.Ports {
			ports = append(ports, p.Lo-1, p.Lo, p.Hi, p.Hi+1)
		}
	}
	for _, r := range w.spec.Rules {
		prefixes = append(prefixes, r.Prefixes...)
	}
	prefixes = append(prefixes, w.spec.Pools...)
	for _, e := range w.spec.Exempt {
		prefixes = append(prefixes, netip.PrefixFrom(e.Addr(), e.Addr().BitLen()))
		ports = append(ports, e.Port(), e.Port()+1)
	}
	for _, p := range prefixes {
		lo, hi := p.Masked().Addr(), last(p)
		for _, addr := range []netip.Addr{lo.Prev(), lo, hi, hi.Next()} {
			if addr.IsValid() {
				addrs = append(addrs, addr)
			}
		}
	}
	return addrs, append(ports, 1, 22, 80, 443, 65535)
}

// randomFlows makes flows to w, most of them at its edges.
func (w *world) randomFlows(rng *rand.Rand, n int) []flow {
	addrs, ports := w.edges()
	flows := make([]flow, n)
	for i := range flows {
		f := &flows[i]
		f.Addr, f.Port = randomAddr(rng), uint16(rng.Uint32())
		if len(addrs) > 0 && rng.IntN(3) > 0 {
			f.Addr = pick(rng, addrs...)
		}
		if rng.IntN(5) > 0 {
			f.Port = pick(rng, ports...)
		}
		if len(w.spec.Exempt) > 0 && rng.IntN(10) == 0 {
			e := pick(rng, w.spec.Exempt...)
			f.Addr, f.Port = e.Addr(), e.Port()
		}
		f.program = pick(rng, "", "/usr/bin/telnet", "/usr/bin/curl")
		f.Program = func() string { return f.program }
		f.User = pick(rng, "", "alice", "bob", "carol")
		f.Groups = pick(rng, nil, []string{"ops"}, []string{"users", "dba"})
		for range rng.IntN(3) {
			f.Names = append(f.Names, pick(rng, "a.example", "b.a.example", "localhost", "10.1.2.3"))
		}
	}
	return flows
}

// want says what has to become of f: an outcome that is not Ask is for the kernel
// alone. asked tells whether the kernel has to ask, whatever the rules make of it.
func (w *world) want(f flow) (outcome capture.Outcome, asked bool) {
	addr := f.Addr.Unmap().WithZone("")
	dst := netip.AddrPortFrom(addr, f.Port)
	switch {
	case slices.ContainsFunc(w.options.Pools, func(p netip.Prefix) bool { return p.Contains(addr) }):
		return capture.Ask, true
	case f.local && !w.options.Local, slices.Contains(w.options.Exempt, dst):
		return capture.Pass, false
	}
	switch w.set.Decide(&f.Flow).Action {
	case filter.Direct:
		return capture.Pass, false
	case filter.Block:
		return capture.Reset, false
	}
	return capture.Ask, true
}

// verify returns what is wrong with an outcome, "" where nothing is. Asking is
// never wrong.
func (w *world) verify(f flow, got capture.Outcome) string {
	want, asked := w.want(f)
	switch {
	case got == capture.Ask:
		return ""
	case asked:
		return fmt.Sprintf("%s: %v, but has to be asked about", f, got)
	case got != want:
		return fmt.Sprintf("%s: %v, but the rules say %v", f, got, want)
	}
	return ""
}

// compilable tells whether the kernel has no reason to ask about a rule: the test's
// own view of it, not the compiler's.
func compilable(r filter.Rule) bool {
	if r.Network != "" || r.Action != filter.Direct && r.Action != filter.Block || r.Application != nil || r.Users != nil || r.Groups != nil {
		return false
	}
	if r.Host != nil {
		return r.Host.String() == ".*"
	}
	if r.Address == nil {
		return true
	}
	switch text := r.Address.String(); {
	case strings.HasPrefix(text, `10`), strings.HasPrefix(text, `203`), strings.HasPrefix(text, `(10\.1|203`):
		return !strings.HasSuffix(text, `.1`)
	default:
		return text == `.*` || text == `2001:db8:1::5` || text == `2001:db8:.*`
	}
}

// fullyCompilable tells whether the kernel can decide everything in w but what
// comes before the rules.
func (w *world) fullyCompilable() bool {
	return (w.def == filter.Direct || w.def == filter.Block) && !slices.ContainsFunc(w.rules, func(r filter.Rule) bool { return !compilable(r) })
}

// report fails the test with the least part of w's rules about which still says
// that something is wrong.
func (w *world) report(t *testing.T, wrong string, still func(*world) bool) {
	t.Helper()
	least := *w
	for i := 0; i < len(least.rules); {
		smaller := least
		smaller.rules = slices.Delete(slices.Clone(least.rules), i, i+1)
		smaller.compile()
		if still(&smaller) {
			least = smaller
		} else {
			i++
		}
	}
	t.Errorf("-seed=%d: %s\n%s", w.seed, wrong, &least)
}

func (w *world) String() string {
	var b strings.Builder
	for i, r := range w.rules {
		fmt.Fprintf(&b, "  %d %v", i+1, r.Action)
		if r.Network != "" {
			fmt.Fprintf(&b, " at=%s", r.Network)
		}
		for _, c := range []struct {
			name string
			p    *egrep.Pattern
		}{{"host", r.Host}, {"ip", r.Address}, {"app", r.Application}} {
			if c.p != nil {
				fmt.Fprintf(&b, " %s=%s", c.name, c.p)
			}
		}
		if r.Prefix.IsValid() {
			fmt.Fprintf(&b, " net=%s", r.Prefix)
		}
		fmt.Fprintf(&b, " ports=%v users=%v groups=%v\n", r.Ports, r.Users, r.Groups)
	}
	return fmt.Sprintf("rules:\n%s  default %v\noptions: %+v\ncompiled: %+v", b.String(), w.def, w.options, w.spec)
}
