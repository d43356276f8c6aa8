package filter

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

func TestShadowed(t *testing.T) {
	prefix := func(s string) netip.Prefix { return netip.MustParsePrefix(s) }
	block := func(r Rule) Rule { r.Action = Block; return r }
	for _, tt := range []struct {
		name  string
		rules []Rule
		want  []Shadow
	}{
		{"equal", []Rule{{Host: host(`a\.x`)}, {Host: host(`A\.x`)}}, []Shadow{{1, 0}}},
		{"after everything", []Rule{{}, {Host: host(`a`)}, {Address: text(`10\..*`)}, {Prefix: prefix("10.0.0.0/8")}, {}}, []Shadow{{1, 0}, {2, 0}, {3, 0}, {4, 0}}},
		{"after .*", []Rule{{Host: host(`.*`)}, {Address: text(`.*`)}, {}, {Host: host(`a`)}}, []Shadow{{1, 0}, {2, 0}, {3, 0}}},
		{"before .*", []Rule{{Host: host(`a`)}, {Host: host(`.*`)}}, nil},
		{"ports", []Rule{{Ports: ports("1-100,101-200")}, {Ports: ports("50-150")}, {Ports: ports("50-201")}, {}}, []Shadow{{1, 0}}},
		{"every port", []Rule{{Ports: ports("1-65535")}, {Ports: ports("80")}, {}}, []Shadow{{1, 0}, {2, 0}}},
		{"ports in pieces", []Rule{{Ports: ports("1-10,20-30")}, {Ports: ports("5,25-30")}, {Ports: ports("5-25")}}, []Shadow{{1, 0}}},
		{"suffix", []Rule{{Host: host(`.*\.x`)}, {Host: host(`.*\.a\.x`)}, {Host: host(`b\.x`)}, {Host: host(`x`)}}, []Shadow{{1, 0}, {2, 0}}},
		{"prefix of text", []Rule{{Address: text(`10\..*`)}, {Address: text(`10\.1\.2\.3`)}, {Address: text(`10\.2\..*`)}, {Prefix: prefix("10.1.0.0/17")}, {Prefix: prefix("10.0.0.0/7")}}, []Shadow{{1, 0}, {2, 0}, {3, 0}}},
		{"address prefix", []Rule{{Prefix: prefix("10.0.0.0/8")}, {Prefix: prefix("10.1.0.0/16")}, {Address: text(`10\.1\.2\.3`)}, {Prefix: prefix("10.0.0.0/7")}, {Prefix: prefix("::/0")}, {Address: text(`fd00::1`)}, {Address: text(`11\.0\.0\.1`)}},
			[]Shadow{{1, 0}, {2, 0}, {5, 4}, {6, 3}}},
		{"mapped prefix", []Rule{{Prefix: prefix("::ffff:10.0.0.0/104")}, {Prefix: prefix("10.1.0.0/16")}}, []Shadow{{1, 0}}},
		{"one address of a prefix", []Rule{{Address: text(`10\.1\.2\.3`)}, {Prefix: prefix("10.1.2.3/32")}, {Prefix: prefix("10.1.2.2/31")}}, []Shadow{{1, 0}}},
		{"name and address are apart", []Rule{{Host: host(`10\..*`)}, {Address: text(`10\.1\..*`)}, {Prefix: prefix("10.1.0.0/16")}, {Host: host(`10\.1\.2\.3`)}}, []Shadow{{2, 1}, {3, 0}}},
		{"address does not count beside host", []Rule{{Host: host(`.*`), Address: text(`10\..*`)}, {Host: host("a")}}, []Shadow{{1, 0}}},
		{"users", []Rule{{Users: names("a", "b")}, {Users: names("b")}, {Users: names("b", "c")}, {}}, []Shadow{{1, 0}}},
		{"groups", []Rule{{Groups: names("a", "b")}, {Groups: names("b")}, {Users: names("b")}}, []Shadow{{1, 0}}},
		{"application", []Rule{{Application: text(`/opt/.*`)}, {Application: text(`/opt/x/.*`)}, {Application: text(`/opt`)}, {}}, []Shadow{{1, 0}}},
		{"network", []Rule{{Network: "n"}, {Network: "n", Host: host("a")}, {Host: host("a")}, {Network: "m", Host: host("a")}}, []Shadow{{1, 0}, {3, 2}}},
		{"pattern of no form", []Rule{{Host: host(`(.*\.)?x`)}, {Host: host(`a\.x`)}, {Host: host(`(.*\.)?x`), Ports: ports("1")}, {Host: host(`(.*\.)?y`)}}, []Shadow{{1, 0}, {2, 0}}},
		{"the first one is named", []Rule{{Host: host(`.*\.x`), Ports: ports("1-9")}, {Ports: ports("5-9")}, {Host: host(`a\.x`), Ports: ports("7")}}, []Shadow{{2, 0}}},
		{"through one that never decides", []Rule{{Ports: ports("1-9")}, {Ports: ports("2-8")}, {Ports: ports("3-7")}}, []Shadow{{1, 0}, {2, 0}}},
	} {
		for i := range tt.rules {
			tt.rules[i] = block(tt.rules[i])
		}
		if got, all := Shadowed(tt.rules); !reflect.DeepEqual(got, tt.want) || !all {
			t.Errorf("%s: %v, all %v, want %v", tt.name, got, all, tt.want)
		}
	}
}

// shadowRules makes rules that often cover one another.
func shadowRules(rng *rand.Rand) []Rule {
	rules := make([]Rule, 2+rng.IntN(10))
	for i := range rules {
		r := Rule{
			Ports:   ports(sometimes(rng, 2, "80", "1-1023", "22,80-90", "443,80", "1-65535", "*")),
			Users:   sometimes(rng, 4, names("alice"), names("bob", "alice")),
			Groups:  sometimes(rng, 4, names("ops"), names("dba", "ops")),
			Network: sometimes(rng, 5, "office"),
			Action:  Block,
		}
		if p := sometimes(rng, 3, `telnet`, `.*/telnet`, `/usr/.*`, `/usr/bin/.*`, `.*`, `(curl|telnet)`); p != "" {
			r.Application = text(p)
		}
		switch rng.IntN(4) {
		case 0:
			r.Host = host(sometimes(rng, 1, `.*`, `a\.example`, `.*\.example`, `.*\.a\.example`, `(.*\.)?b\.example`, `10\..*`, `[ab]\..*`, `A\..*`))
		case 1:
			r.Address = text(sometimes(rng, 1, `.*`, `10\..*`, `10\.0\..*`, `10\.0\.0\.1`, `.*:.*`, `.*\.1`, `2001:db8::1`))
		case 2:
			r.Prefix = netip.MustParsePrefix(sometimes(rng, 1, "10.0.0.0/8", "10.0.0.0/9", "10.0.0.1/32", "2001:db8::/32", "0.0.0.0/0", "::/0", "::ffff:10.0.0.0/104"))
		}
		rules[i] = r
	}
	return rules
}

// checkShadows decides random flows, and fails where a rule decides one that is said
// never to do so.
func checkShadows(t *testing.T, rng *rand.Rand, rules []Rule, flows int) (shadows, decided int) {
	t.Helper()
	found, _ := Shadowed(rules)
	dead := make(map[int]int)
	for _, s := range found {
		if s.By >= s.Rule {
			t.Fatalf("rule %d by the later rule %d", s.Rule, s.By)
		}
		dead[s.Rule] = s.By
	}
	inOffice := rng.IntN(2) == 0
	at := mustSet(t, rules, Direct).On(func(string) bool { return inOffice })
	for range flows {
		f := Flow{
			Addr:   netip.MustParseAddr(sometimes(rng, 1, "10.0.0.1", "10.2.0.1", "10.200.0.1", "::ffff:10.0.0.1", "2001:db8::1", "fe80::1%eth0", "192.0.2.1")),
			Port:   sometimes[uint16](rng, 1, 1, 22, 80, 85, 443, 1023, 1024, 65535),
			User:   sometimes(rng, 1, "alice", "bob", "carol", "1000"),
			Groups: sometimes(rng, 1, nil, names("ops"), names("dba"), names("users", "dba")),
			Names:  sometimes(rng, 2, names("a.example"), names("x.a.example"), names("b.example", "y.b.example"), names("A.other"), names("10.1.2.3")),
		}
		exe := sometimes(rng, 1, "", "/usr/bin/telnet", "/opt/telnet", "/usr/bin/curl", "curl")
		f.Program = func() string { return exe }
		d := at.Decide(&f)
		if d.Rule == nil {
			continue
		}
		decided++
		if by, never := dead[d.Rule.Number-1]; never {
			t.Fatalf("rule %d decides %+v, but was said to be covered by rule %d\n%+v\n%+v", d.Rule.Number, f, by+1, rules[d.Rule.Number-1], rules[by])
		}
	}
	return len(found), decided
}

// Of a rule that is said never to decide no flow is decided, of whatever kind.
func TestShadowedNeverDecide(t *testing.T) {
	shadows, decided := 0, 0
	for seed := range uint64(4000) {
		rng := rand.New(rand.NewPCG(seed, 3))
		s, d := checkShadows(t, rng, shadowRules(rng), 60)
		shadows += s
		decided += d
	}
	if shadows < 1000 || decided < 10_000 {
		t.Errorf("only %d rules never decide, and %d flows were decided", shadows, decided)
	}
}

func FuzzShadowed(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 4))
		checkShadows(t, rng, shadowRules(rng), 100)
	})
}

// manyRules are 10,000 rules of the kinds that files have, none of which covers
// another, and rules that all look alike but for one condition.
func manyRules(kind string) []Rule {
	rules := make([]Rule, 10_000)
	for i := range rules {
		r := Rule{Action: Block}
		switch kind {
		case "mixed":
			switch i % 5 {
			case 0:
				r.Host = host(fmt.Sprintf(`h%d\.example`, i))
			case 1:
				r.Host = host(fmt.Sprintf(`.*\.d%d\.example`, i))
			case 2:
				r.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
			case 3:
				r.Host = host(fmt.Sprintf(`(.*\.)?z%d\.example`, i))
			case 4:
				r.Host = host(fmt.Sprintf(`.*n%d-[0-9]+.*`, i))
			}
		case "ports":
			r.Ports = []PortRange{{uint16(i + 1), uint16(i + 1)}}
		case "applications":
			r.Application = text(fmt.Sprintf(`/opt/%d/.*`, i))
		case "patterns":
			r.Host = host(fmt.Sprintf(`.*[x-z]%d.*`, i))
		}
		rules[i] = r
	}
	return rules
}

func TestShadowedOfManyRulesEnds(t *testing.T) {
	for _, kind := range []string{"mixed", "ports", "applications", "patterns"} {
		rules := manyRules(kind)
		begin := time.Now()
		found, all := Shadowed(rules)
		t.Logf("%s: %v", kind, time.Since(begin))
		if len(found) != 0 || !all {
			t.Errorf("%s: %d rules are covered: %.1v, all of them: %v", kind, len(found), found, all)
		}
		if found, all = Shadowed(append([]Rule{{Action: Block}}, rules...)); len(found) != len(rules) || !all {
			t.Errorf("%s: after a rule for everything %d rules are covered", kind, len(found))
		}
	}
}

// What is more than is worth the time is said to be.
func TestShadowedGivesUp(t *testing.T) {
	rules := manyRules("ports")
	for range 2 {
		rules = append(rules, Rule{Action: Block, Ports: ports("20000,30000")})
		rules = append(rules, Rule{Action: Block, Ports: ports("40000")})
	}
	if found, all := Shadowed(rules); all {
		t.Errorf("all pairs were looked at: %v", found)
	}
}

func BenchmarkShadowed(b *testing.B) {
	for _, kind := range []string{"mixed", "ports", "applications", "patterns"} {
		rules := manyRules(kind)
		b.Run(kind, func(b *testing.B) {
			for b.Loop() {
				Shadowed(rules)
			}
		})
	}
}
