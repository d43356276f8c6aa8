package filter

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sshbroker/filter/egrep"
)

// plainRule is a rule as people say it. plainDecide and plainPseudo are the
// semantics as people say them: rule after rule, every condition is worked out, in
// no particular order, and nothing is kept, shared or saved.
type plainRule struct {
	network                    string
	application, host, address string // patterns
	prefix                     string
	ports                      string
	users, groups              []string
	action                     Action
	pseudo                     bool
}

// plain is a list of such rules, where a host is.
type plain struct {
	rules []plainRule
	def   Action
	here  []string // networks
	match func(pattern string, ignoreCase bool, text string) bool
}

// decide returns the number of the rule, 0 where none matches.
func (p plain) decide(f *Flow) (number int, action Action, name string) {
	latest := ""
	if len(f.Names) > 0 {
		latest = f.Names[0]
	}
	addr := f.Addr.Unmap().WithZone("")
	for i, r := range p.rules {
		name = latest
		holds := r.ports == ""
		for _, item := range strings.Split(r.ports, ",") {
			lo, hi, isRange := strings.Cut(item, "-")
			if !isRange {
				hi = lo
			}
			l, _ := strconv.Atoi(lo)
			h, _ := strconv.Atoi(hi)
			holds = holds || l <= int(f.Port) && int(f.Port) <= h
		}
		holds = holds && (r.network == "" || slices.Contains(p.here, r.network))
		switch {
		case r.host != "" && len(f.Names) == 0:
			holds = holds && addr.IsValid() && p.match(r.host, true, addr.String())
		case r.host != "":
			found := false
			for _, n := range f.Names {
				if !found && p.match(r.host, true, n) {
					found, name = true, n
				}
			}
			holds = holds && found
		case r.address != "":
			holds = holds && addr.IsValid() && p.match(r.address, false, addr.String())
		case r.prefix != "":
			holds = holds && netip.MustParsePrefix(r.prefix).Contains(addr)
		}
		if r.users != nil {
			found := false
			for _, u := range r.users {
				found = found || u == f.User
			}
			holds = holds && found
		}
		if r.groups != nil {
			found := false
			for _, g := range r.groups {
				for _, have := range f.Groups {
					found = found || g == have
				}
			}
			holds = holds && found
		}
		if r.application != "" {
			exe := f.Program()
			base := exe
			if strings.Contains(exe, "/") {
				_, base = path.Split(exe)
			}
			holds = holds && exe != "" && (p.match(r.application, false, exe) || p.match(r.application, false, base))
		}
		if holds {
			return i + 1, r.action, name
		}
	}
	return 0, p.def, latest
}

// pseudo is the answer to a query for name.
func (p plain) pseudo(name string) bool {
	for _, r := range p.rules {
		anyAddress := (r.address == "" || r.address == ".*") && r.prefix == ""
		switch {
		case r.network != "" && !slices.Contains(p.here, r.network):
		case r.host != "" && !p.match(r.host, true, name):
		case r.host == "" && !anyAddress:
		case r.action == Tunnel && r.pseudo && (r.host != "" || r.address == "" && r.prefix == ""):
			return true
		case (r.ports == "" || slices.Contains(strings.Split(r.ports, ","), "1-65535")) &&
			r.users == nil && r.groups == nil && r.application == "":
			return false
		}
	}
	return false
}

// goMatch reads patterns as Go does, which is the same for those of randomRules.
func goMatch() func(pattern string, ignoreCase bool, text string) bool {
	known := make(map[string]*regexp.Regexp)
	return func(pattern string, ignoreCase bool, text string) bool {
		expr := `^(?:` + pattern + `)$`
		if ignoreCase {
			expr = `(?i)` + expr
		}
		re := known[expr]
		if re == nil {
			re = regexp.MustCompile(expr)
			known[expr] = re
		}
		return re.MatchString(text)
	}
}

func (r plainRule) rule() Rule {
	out := Rule{Network: r.network, Ports: ports(r.ports), Users: r.users, Groups: r.groups,
		Action: r.action, Profile: "p", PseudoIP: r.pseudo}
	if r.application != "" {
		out.Application = text(r.application)
	}
	if r.host != "" {
		out.Host = host(r.host)
	}
	if r.address != "" {
		out.Address = text(r.address)
	}
	if r.prefix != "" {
		out.Prefix = netip.MustParsePrefix(r.prefix)
	}
	return out
}

// sometimes returns one of the values in one of n cases.
func sometimes[T any](rng *rand.Rand, n int, values ...T) (v T) {
	if rng.IntN(n) == 0 {
		v = values[rng.IntN(len(values))]
	}
	return v
}

func randomName(rng *rand.Rand) string {
	name := sometimes(rng, 1, "a", "b", "db", "Web", "mail", "web-mail", "10") + sometimes(rng, 3, "1", "17", "2")
	return sometimes(rng, 2, "x.", "www.") + name + sometimes(rng, 1, ".example", ".corp.example", ".Corp.Example", "", ".b.example")
}

func randomAddr(rng *rand.Rand) netip.Addr {
	few := func() byte { return sometimes[byte](rng, 1, 0, 1, 2, 10, 17, 128, 255) }
	v4 := netip.AddrFrom4([4]byte{10, few(), few(), few()})
	switch rng.IntN(6) {
	case 0:
		return netip.AddrFrom16(v4.As16())
	case 1, 2:
		return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 4: few(), 7: few(), 8: few(), 15: few()}).WithZone(sometimes(rng, 4, "eth0"))
	case 3:
		return sometimes(rng, 1, netip.Addr{}, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::1"))
	}
	return v4
}

func randomHost(rng *rand.Rand) string {
	name := randomName(rng)
	exact := strings.ReplaceAll(name, ".", `\.`)
	first, rest, _ := strings.Cut(exact, `\.`)
	switch rng.IntN(12) {
	case 0, 1, 2:
		return exact
	case 3:
		return `.*\.` + exact
	case 4:
		return `(.*\.)?` + exact
	case 5:
		return first + `\..*`
	case 6:
		return `.*` + first + `.*`
	case 7:
		return first + `[0-9]+(\.` + rest + `)?`
	case 8:
		return `(` + first + `|mail|[xyz]{1,2})\.` + rest
	case 9:
		return name // the dots not quoted
	case 10:
		return strings.ReplaceAll(randomAddr(rng).String(), ".", `\.`)
	}
	return sometimes(rng, 1, `.*`, `[a-z]+`, `10\..*`, `.*:.*`, `.*[0-9]`, `()`, `.+\.example`)
}

func randomAddress(rng *rand.Rand) string {
	exact := strings.ReplaceAll(randomAddr(rng).WithZone("").Unmap().String(), ".", `\.`)
	return sometimes(rng, 1, `.*`, `10\..*`, `10\.1\..*`, exact, exact, `.*:.*`, `.*\.1`, `10\.[0-9]+\.17\..*`, `2001:db8:.*`, `10.1.17.2`)
}

func randomRules(rng *rand.Rand, most int) []plainRule {
	rules := make([]plainRule, rng.IntN(most))
	for i := range rules {
		r := plainRule{
			network:     sometimes(rng, 6, "office", "home"),
			application: sometimes(rng, 4, `telnet`, `.*/telnet`, `/usr/bin/.*`, `(curl|telnet)`, `.*`, `(.*/)?curl[0-9.]*`, `.*net`, `psql`),
			ports:       sometimes(rng, 3, "80", "1-1023", "22,80-90", "443,80", "1-65535", "1024-65535", "79-81,443", "2-65534"),
			users:       sometimes(rng, 5, names("alice"), names("bob", "alice")),
			groups:      sometimes(rng, 5, names("ops"), names("dba", "ops")),
			action:      Action(rng.IntN(5)),
			pseudo:      rng.IntN(2) == 0,
		}
		if rng.IntN(2) == 0 {
			r.host = randomHost(rng)
		}
		switch rng.IntN(4) {
		case 0:
			r.address = randomAddress(rng)
		case 1:
			if addr := randomAddr(rng).WithZone("").Unmap(); addr.IsValid() {
				bits := rng.IntN(addr.BitLen() + 1)
				if addr.Is6() && rng.IntN(2) == 0 {
					bits = 57 + rng.IntN(16) // around the middle, at single bits
				}
				r.prefix = netip.PrefixFrom(addr, bits).Masked().String()
			}
		}
		rules[i] = r
	}
	return rules
}

func randomFlow(rng *rand.Rand) Flow {
	exe := sometimes(rng, 1, "", "/usr/bin/telnet", "/opt/telnet", "/usr/bin/curl", "curl", "/usr/bin/curl8.1", "/", "/opt/")
	f := Flow{
		Addr:    randomAddr(rng),
		Port:    sometimes[uint16](rng, 1, 0, 1, 22, 79, 80, 85, 443, 1023, 1024, 65534, 65535),
		Program: func() string { return exe },
		User:    sometimes(rng, 1, "", "alice", "bob", "carol", "Alice"),
		Groups:  sometimes(rng, 1, nil, names("ops"), names("users", "dba"), names("users")),
	}
	for range rng.IntN(4) {
		f.Names = append(f.Names, randomName(rng))
	}
	return f
}

// TestAgainstPlainReading holds Decide and Pseudo to the plain reading of the
// rules, and Explain to Decide.
func TestAgainstPlainReading(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	byRule, byDefault, pseudo := 0, 0, 0
	match := goMatch()
	for i := range 2_000 {
		p := plain{rules: randomRules(rng, 3+i%40), def: Action(rng.IntN(5)), here: sometimes(rng, 2, names("office"), names("home", "office")), match: match}
		s := p.set(t)
		for range 10 {
			f := randomFlow(rng)
			if p.check(t, s, &f).Rule != nil {
				byRule++
			} else {
				byDefault++
			}
			if p.checkPseudo(t, s, randomName(rng)) {
				pseudo++
			}
		}
	}
	t.Logf("%d flows by a rule, %d by default; %d pseudo addresses", byRule, byDefault, pseudo)
	if byRule < 5_000 || byDefault < 2_500 || pseudo < 2_000 {
		t.Errorf("the test has lost its grip: %d flows by a rule, %d by default, %d pseudo addresses", byRule, byDefault, pseudo)
	}
}

// set makes the Set of p.
func (p plain) set(t testing.TB) *Set {
	t.Helper()
	rules := make([]Rule, len(p.rules))
	for i, r := range p.rules {
		rules[i] = r.rule()
	}
	return mustSet(t, rules, p.def).On(func(network string) bool { return slices.Contains(p.here, network) })
}

func (p plain) check(t testing.TB, s *Set, f *Flow) Decision {
	t.Helper()
	number, action, name := p.decide(f)
	want := Decision{Action: action, Name: name}
	if number > 0 {
		want.Rule = &s.Rules()[number-1]
	}
	asked := 0
	counting := *f
	counting.Program = func() string { asked++; return f.Program() }
	got := s.Decide(&counting)
	if got != want {
		t.Fatalf("rules %s\nhere %v, default %v, flow %+v of %q:\n decided %+v\nbut should %+v", p, p.here, p.def, *f, f.Program(), got, want)
	}
	if by := checkExplain(t, s, f, got); by != asked {
		t.Fatalf("rules %s\nhere %v, flow %+v:\n Decide asks for the program %d times, Explain %d", p, p.here, *f, asked, by)
	}
	return got
}

func (p plain) checkPseudo(t testing.TB, s *Set, name string) bool {
	t.Helper()
	got := s.Pseudo(name)
	if got != p.pseudo(name) {
		t.Fatalf("rules %s\nhere %v, query for %q: %v", p, p.here, name, got)
	}
	return got
}

func (p plain) String() string {
	var b strings.Builder
	for i, r := range p.rules {
		fmt.Fprintf(&b, "\n%3d %+v", i+1, r)
	}
	return b.String()
}

// FuzzDecide reads rules out of text, a line each: a letter for each of the other
// conditions, and a pattern of any kind.
func FuzzDecide(f *testing.F) {
	f.Add("h mail\\.example\nhp .*\\.example\nhau (.*\\.)?corp\\.example\nx 10\\.1\\..*\nd", "a.corp.Example", "mail.example", "/usr/bin/telnet", []byte{10, 1, 2, 3}, uint16(443))
	f.Add("e .*/telnet\nhe .*\\<mail\\>.*\nhnt [a-c]{2,}[0-9]\nhs .*\ng", "web-mail", "ab1", "/opt/telnet", []byte{0x20, 1, 0xd, 0xb8, 11: 1}, uint16(80))
	f.Add("hq é+|k.*\nx .*:.*\nhpug (a|b|)c?\nep x", "éé", "K", "", []byte{}, uint16(0))
	f.Fuzz(func(t *testing.T, rules, name1, name2, exe string, ip []byte, port uint16) {
		compiled := make(map[string]*egrep.Pattern)
		p := plain{def: Direct, here: names("home")}
		p.match = func(pattern string, ignoreCase bool, text string) bool {
			key := fmt.Sprint(ignoreCase, pattern)
			if compiled[key] == nil {
				compiled[key], _ = egrep.Compile(pattern, egrep.Options{IgnoreCase: ignoreCase})
			}
			return compiled[key].Match(text)
		}
		for i, line := range strings.Split(rules, "\n") {
			if i == 50 {
				break
			}
			flags, pattern, _ := strings.Cut(line, " ")
			if _, err := egrep.Compile(pattern, egrep.Options{}); err != nil {
				pattern = "" // which is none
			}
			r := plainRule{action: Action(i % 5)}
			for _, c := range flags {
				switch c {
				case 'h':
					r.host = pattern
				case 'x':
					r.address = pattern
				case 'e':
					r.application = pattern
				case 'n':
					r.network = sometimes(rand.New(rand.NewPCG(uint64(i), 0)), 1, "home", "office")
				case 'p':
					r.ports = sometimes(rand.New(rand.NewPCG(uint64(i), 1)), 1, "80", "1-1023,443", "443-444", "1-65535")
				case 'u':
					r.users = names("alice", fmt.Sprint("user", i))
				case 'g':
					r.groups = names("ops", fmt.Sprint("group", i))
				case 't', 'q':
					r.action, r.pseudo = Tunnel, c == 'q'
				case 'd':
					r.prefix = "10.0.0.0/8"
				case 's':
					r.prefix = "2001:db8::/33"
				}
			}
			if r.address != "" {
				r.prefix = ""
			}
			p.rules = append(p.rules, r)
		}
		flow := Flow{Port: port, Program: func() string { return exe }}
		if flow.Addr, _ = netip.AddrFromSlice(ip); port%3 == 0 {
			flow.User, flow.Groups = "alice", names("users", "ops")
		}
		for _, name := range []string{name1, name2} {
			if name != "" && len(name) < 300 {
				flow.Names = append(flow.Names, name)
			}
		}
		s := p.set(t)
		p.check(t, s, &flow)
		p.checkPseudo(t, s, name1)
	})
}

// checkExplain demands that Explain decides as Decide did, looks at every rule up to
// the one that decides, in order, and that every reason it gives is true: the rule would match
// nothing else if it had only the condition that is said to fail.
func checkExplain(t testing.TB, s *Set, f *Flow, decided Decision) (asked int) {
	t.Helper()
	counting := *f
	counting.Program = func() string { asked++; return f.Program() }
	var steps []Step
	if d := s.Explain(&counting, func(st Step) { steps = append(steps, st) }); d != decided {
		t.Fatalf("Explain says %+v, Decide %+v", d, decided)
	}
	if asked > 1 {
		t.Fatalf("the program was asked for %d times", asked)
	}
	looked := len(s.Rules())
	if decided.Rule != nil {
		looked = decided.Rule.Number
	}
	if len(steps) != looked {
		t.Fatalf("%d steps for %d rules", len(steps), looked)
	}
	for i, st := range steps {
		if st.Rule != &s.Rules()[i] || st.Matched != (st.Rule == decided.Rule) || st.Matched != (st.Failed == 0) {
			t.Fatalf("step %d: %+v, decided %+v", i, st, decided)
		}
		if st.Matched {
			continue
		}
		if st.Failed == Network {
			if s.InForce(i) {
				t.Fatalf("step %d: the host is on network %q", i, st.Rule.Network)
			}
			continue
		}
		alone := Rule{Action: Direct}
		switch st.Failed {
		case Application:
			alone.Application = st.Rule.Application
		case Host:
			alone.Host = st.Rule.Host
		case Address:
			alone.Address, alone.Prefix = st.Rule.Address, st.Rule.Prefix
		case Ports:
			alone.Ports = st.Rule.Ports
		case Users:
			alone.Users = st.Rule.Users
		case Groups:
			alone.Groups = st.Rule.Groups
		}
		if reflect.DeepEqual(alone, Rule{Action: Direct}) {
			t.Fatalf("step %d: rule has no condition %v", i, st.Failed)
		}
		if m := newMatcher(f); !fails(&m, &alone) {
			t.Fatalf("step %d: condition %v holds for %+v", i, st.Failed, f)
		}
	}
	return asked
}

func fails(m *matcher, r *Rule) bool {
	failed, _ := m.fails(r)
	return failed != 0
}
