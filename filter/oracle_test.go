package filter

import (
	"math/rand/v2"
	"net/netip"
	"path"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// plainRule is a rule as people say it, and plainDecide the semantics as people
// say them: every condition is worked out, in no particular order, and nothing is
// kept, shared or saved.
type plainRule struct {
	application, host, address string // patterns of the kind that Go reads the same
	prefix                     string
	ports                      string
	users, groups              []string
	action                     Action
}

func plainDecide(rules []plainRule, def Action, f *Flow) (number int, action Action, name string) {
	latest := ""
	if len(f.Names) > 0 {
		latest = f.Names[0]
	}
	addr := f.Addr.Unmap().WithZone("")
	for i, r := range rules {
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
		switch {
		case r.host != "" && len(f.Names) == 0:
			holds = holds && plainMatch("(?i)"+r.host, addr.String())
		case r.host != "":
			found := false
			for _, n := range f.Names {
				if !found && plainMatch("(?i)"+r.host, n) {
					found, name = true, n
				}
			}
			holds = holds && found
		case r.address != "":
			holds = holds && plainMatch(r.address, addr.String())
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
			holds = holds && exe != "" && (plainMatch(r.application, exe) || plainMatch(r.application, path.Base(exe)))
		}
		if holds {
			return i + 1, r.action, name
		}
	}
	return 0, def, latest
}

func plainMatch(pattern, s string) bool {
	flags := ""
	if rest, ok := strings.CutPrefix(pattern, "(?i)"); ok {
		flags, pattern = "(?i)", rest
	}
	return regexp.MustCompile(flags + `^(?:` + pattern + `)$`).MatchString(s)
}

func (r plainRule) rule() Rule {
	out := Rule{Ports: ports(r.ports), Users: r.users, Groups: r.groups, Action: r.action, Profile: "p"}
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

func randomRules(rng *rand.Rand) []plainRule {
	rules := make([]plainRule, rng.IntN(8))
	for i := range rules {
		r := plainRule{
			application: sometimes(rng, 4, `telnet`, `.*/telnet`, `/usr/bin/.*`, `(curl|telnet)`, `.*`),
			host:        sometimes(rng, 2, `.*`, `a\.example`, `.*\.example`, `(.*\.)?b\.example`, `10\..*`, `[ab]\..*`, `.*:.*`),
			ports:       sometimes(rng, 3, "80", "1-1023", "22,80-90", "443,80", "1-65535"),
			users:       sometimes(rng, 5, names("alice"), names("bob", "alice")),
			groups:      sometimes(rng, 5, names("ops"), names("dba", "ops")),
			action:      Action(rng.IntN(5)),
		}
		if rng.IntN(2) == 0 {
			r.address = sometimes(rng, 2, `.*`, `10\..*`, `10\.0\.0\.1`, `.*:.*`, `.*\.1`)
		} else {
			r.prefix = sometimes(rng, 2, "10.0.0.0/8", "10.0.0.1/32", "2001:db8::/32", "0.0.0.0/0", "::/0")
		}
		rules[i] = r
	}
	return rules
}

func randomFlow(rng *rand.Rand) Flow {
	exe := sometimes(rng, 1, "", "/usr/bin/telnet", "/opt/telnet", "/usr/bin/curl", "curl")
	f := Flow{
		Addr:    netip.MustParseAddr(sometimes(rng, 1, "10.0.0.1", "10.2.0.1", "::ffff:10.0.0.1", "2001:db8::1", "fe80::1%eth0", "192.0.2.1")),
		Port:    sometimes[uint16](rng, 1, 22, 80, 85, 443, 1023, 1024, 65535),
		Program: func() string { return exe },
		User:    sometimes(rng, 1, "", "alice", "bob", "carol"),
		Groups:  sometimes(rng, 1, nil, names("ops"), names("users", "dba"), names("users")),
	}
	for range rng.IntN(4) {
		f.Names = append(f.Names, sometimes(rng, 1, "a.example", "B.Example", "x.b.example", "10.example", "localhost", "c.a.example"))
	}
	return f
}

// TestAgainstPlainReading holds Decide to the plain reading of the rules, and
// Explain to Decide.
func TestAgainstPlainReading(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	byRule, byDefault := 0, 0
	for range 4_000 {
		plain := randomRules(rng)
		def := Action(rng.IntN(5))
		rules := make([]Rule, len(plain))
		for i, r := range plain {
			rules[i] = r.rule()
		}
		s := mustSet(t, rules, def)
		for range 10 {
			f := randomFlow(rng)
			number, action, name := plainDecide(plain, def, &f)
			want := Decision{Action: action, Name: name}
			if number > 0 {
				byRule++
				want.Rule = &s.Rules()[number-1]
			} else {
				byDefault++
			}
			got := s.Decide(&f)
			if got != want {
				t.Fatalf("rules %+v, default %v, flow %+v of %q:\n decided %+v\nbut should %+v", plain, def, f, f.Program(), got, want)
			}
			checkExplain(t, s, &f, got)
		}
	}
	t.Logf("%d flows by a rule, %d by default", byRule, byDefault)
	if byRule < 10_000 || byDefault < 10_000 {
		t.Errorf("the test has lost its grip: %d flows by a rule, %d by default", byRule, byDefault)
	}
}

// checkExplain demands that Explain decides as Decide did, looks at the same
// rules in order, and that every reason it gives is true: the rule would match
// nothing else if it had only the condition that is said to fail.
func checkExplain(t *testing.T, s *Set, f *Flow, decided Decision) {
	t.Helper()
	asked := 0
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
		if d := mustSet(t, []Rule{alone}, Block).Decide(f); d.Rule != nil {
			t.Fatalf("step %d: condition %v holds for %+v", i, st.Failed, f)
		}
	}
}
