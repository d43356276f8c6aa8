package plan

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sshbroker/capture"
	"sshbroker/filter"
	"sshbroker/filter/egrep"
)

func pattern(t testing.TB, text string) *egrep.Pattern {
	t.Helper()
	p, err := egrep.Compile(text, egrep.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestNewConditionsAreAskedAbout: a condition that Compile has never heard of must not
// be left to the kernel. It is for whoever adds a field to filter.Rule.
func TestNewConditionsAreAskedAbout(t *testing.T) {
	known := []string{"Address", "Prefix", "Ports", "Host", // what TestCompile is about
		"Number", "Source", "Action", "Profile", "Destination", "DestinationPort", "Username", "UsernameFile",
		"PseudoIP", "HostnameFromApp", "UsernameFromApp", "FallbackToPlain", "ShowServerBanner"}
	for field := range reflect.TypeFor[filter.Rule]().Fields() {
		if slices.Contains(known, field.Name) {
			continue
		}
		r := filter.Rule{Action: filter.Direct, Prefix: netip.MustParsePrefix("192.0.2.0/24")}
		value := reflect.ValueOf(&r).Elem().FieldByName(field.Name)
		switch value.Interface().(type) {
		case string:
			value.SetString("x")
		case []string:
			value.Set(reflect.ValueOf([]string{"x"}))
		case *egrep.Pattern:
			value.Set(reflect.ValueOf(pattern(t, "x")))
		default:
			t.Errorf("%s: this test has no value for a condition of type %v", field.Name, field.Type)
			continue
		}
		set, err := filter.NewSet([]filter.Rule{r}, filter.Block)
		if err != nil {
			t.Fatal(err)
		}
		for _, compiled := range Compile(set, Options{}).Rules {
			if compiled.Outcome != capture.Ask {
				t.Errorf("a rule that has %s is decided by the kernel, which knows nothing of it: see Anyone in filter/match.go", field.Name)
			}
		}
	}
}

// parseRules reads rules like "DIRECT ip=10\.1\..* ports=80,443"; the last one may be
// "default ACTION".
func parseRules(t testing.TB, lines ...string) *filter.Set {
	t.Helper()
	var rules []filter.Rule
	def := filter.Direct
	for _, line := range lines {
		fields := strings.Fields(line)
		if fields[0] == "default" {
			action, err := filter.ParseAction(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			def = action
			continue
		}
		action, err := filter.ParseAction(fields[0])
		if err != nil {
			t.Fatal(err)
		}
		r := filter.Rule{Action: action, Profile: "p"}
		for _, field := range fields[1:] {
			key, value, _ := strings.Cut(field, "=")
			switch key {
			case "ip":
				r.Address = pattern(t, value)
			case "net":
				r.Prefix = netip.MustParsePrefix(value)
			case "host":
				r.Host = pattern(t, value)
			case "app":
				r.Application = pattern(t, value)
			case "users":
				r.Users = strings.Split(value, ",")
			case "groups":
				r.Groups = strings.Split(value, ",")
			case "ports":
				if r.Ports, err = filter.ParsePorts(value); err != nil {
					t.Fatal(err)
				}
			case "fallback":
				r.FallbackToPlain = true
			case "at":
				r.Network = value
			default:
				t.Fatalf("rule %q: %s", line, key)
			}
		}
		rules = append(rules, r)
	}
	set, err := filter.NewSet(rules, def)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// show writes the rules of a Spec one after the other.
func show(spec capture.Spec) string {
	var b strings.Builder
	for _, r := range spec.Rules {
		fmt.Fprintf(&b, "%d:%s", r.Number, r.Outcome)
		for _, p := range r.Prefixes {
			fmt.Fprintf(&b, " %s", p)
		}
		for i, p := range r.Ports {
			fmt.Fprintf(&b, "%s%d-%d", []string{",", " :"}[min(1, max(0, 1-i))], p.Lo, p.Hi)
		}
		b.WriteString("; ")
	}
	return b.String() + spec.Rest.String()
}

func TestCompile(t *testing.T) {
	for _, c := range []struct {
		name  string
		rules []string
		want  string
	}{
		{"nothing", nil, "pass"},
		{"defaults", []string{"default BLOCK"}, "reset"},
		{"tunnel by default", []string{"default TUNNEL"}, "ask"},
		{"prefix and ports", []string{`DIRECT net=10.0.0.0/8 ports=443,80-90,91,85-100`, `BLOCK net=2001:db8::/32`},
			"1:pass 10.0.0.0/8 :80-100,443-443; 2:reset 2001:db8::/32; pass"},
		{"address", []string{`BLOCK ip=10\.1\.2\.3 ports=25`, `DIRECT ip=192\.0\.2\.[0-9]+`},
			"1:reset 10.1.2.3/32 :25-25; 2:pass 192.0.2.0/24; pass"},
		{"address that no prefix says", []string{`BLOCK ip=10\..*\.1`}, "1:ask 10.0.0.0/8; pass"},
		{"address that no address has", []string{`BLOCK ip=10\.1`, `TUNNEL ip=example\.com`, "default BLOCK"}, "reset"},
		{"every address", []string{`BLOCK ip=.* ports=25`, `DIRECT host=.* ports=80`}, "1:reset :25-25; 2:pass :80-80; pass"},
		{"both families", []string{`BLOCK net=0.0.0.0/0`, `DIRECT net=::/0`, `TUNNEL ports=1`},
			"1:reset 0.0.0.0/0; 2:pass ::/0; 3:ask :1-1; pass"},
		{"mapped", []string{`BLOCK net=::ffff:10.0.0.0/104`, `BLOCK net=::ffff:0:0/96`}, "1:reset 10.0.0.0/8; 2:reset 0.0.0.0/0; pass"},
		{"tunnel", []string{`TUNNEL net=10.0.0.0/8 ports=23`, `DIRECT net=10.0.0.0/8`, "default BLOCK"},
			"1:ask 10.0.0.0/8 :23-23; 2:pass 10.0.0.0/8; reset"},
		{"FTP", []string{`FTP-TUNNEL ports=21`, `FTP-PROXY ports=2121`}, "1:ask :21-21; 2:ask :2121-2121; pass"},
		{"owner and program", []string{`BLOCK net=10.0.0.0/8 users=a`, `DIRECT net=11.0.0.0/8 groups=g`, `DIRECT net=12.0.0.0/8 app=.*`, "default BLOCK"},
			"1:ask 10.0.0.0/7 12.0.0.0/8; reset"},
		// A host's rule may take any address: that of the name, or one written out.
		{"host", []string{`BLOCK host=a\.example ports=80`, `DIRECT host=10\.1\.2\.3 ip=10\.1\.2\.3 ports=81`, `TUNNEL host=b net=10.0.0.0/8 ports=82`},
			"1:ask :80-80; 2:ask :81-81; 3:ask :82-82; pass"},
		{"host of any kind beside an address", []string{`BLOCK host=.* ip=10\..* ports=1-1023`}, "1:reset :1-1023; pass"},

		{"nothing gets past", []string{`DIRECT net=10.0.0.0/8`, `BLOCK`, `DIRECT net=11.0.0.0/8`}, "1:pass 10.0.0.0/8; reset"},
		{"all is asked", []string{`DIRECT net=10.0.0.0/8`, `BLOCK app=telnet`, `DIRECT net=11.0.0.0/8`}, "1:pass 10.0.0.0/8; ask"},
		{"port 0 gets past", []string{`BLOCK ports=1-65535`, `TUNNEL ports=1`}, "1:reset :1-65535; 2:ask :1-1; pass"},

		{"what asks is joined", []string{`TUNNEL net=10.0.0.0/9 ports=80`, `BLOCK net=1.0.0.0/8 users=a`, `TUNNEL net=10.128.0.0/9 ports=80`, `TUNNEL net=10.1.0.0/16 ports=80`, "default BLOCK"},
			"1:ask 10.0.0.0/8 :80-80; 2:ask 1.0.0.0/8; reset"},
		{"every address swallows", []string{`TUNNEL net=10.0.0.0/9 ports=80`, `TUNNEL host=a ports=80`, `TUNNEL net=11.0.0.0/9 ports=80`}, "1:ask :80-80; pass"},
		{"both families are every address", []string{`TUNNEL net=0.0.0.0/0 ports=80`, `TUNNEL net=::/0 ports=80`}, "1:ask :80-80; pass"},
		{"not over others", []string{`TUNNEL net=10.0.0.0/9`, `DIRECT net=10.0.0.0/8`, `TUNNEL net=11.0.0.0/8`, "default BLOCK"},
			"1:ask 10.0.0.0/9; 2:pass 10.0.0.0/8; 3:ask 11.0.0.0/8; reset"},
		{"asking before asking", []string{`DIRECT net=11.0.0.0/8`, `TUNNEL net=10.0.0.0/8`, `TUNNEL ports=23`, "default TUNNEL"}, "1:pass 11.0.0.0/8; ask"},
	} {
		spec := Compile(parseRules(t, c.rules...), Options{})
		if got := show(spec); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if got := show(Compile(nil, Options{})); got != "reset" {
		t.Errorf("nil rules: %s", got)
	}
}

// TestCompileNetworks: what a verdict lets through without the broker does not depend on
// where the host is.
func TestCompileNetworks(t *testing.T) {
	for _, c := range []struct {
		name       string
		rules      []string
		away, here string
	}{
		{"direct", []string{`DIRECT net=10.0.0.0/8 at=office`, "default BLOCK"}, "reset", "1:ask 10.0.0.0/8; reset"},
		{"all direct", []string{`DIRECT at=office`, `BLOCK ports=25`, "default TUNNEL"}, "2:reset :25-25; ask", "ask"},
		{"block", []string{`BLOCK net=10.0.0.0/8 at=office`}, "1:ask 10.0.0.0/8; pass", "1:reset 10.0.0.0/8; pass"},
		{"all blocked", []string{`BLOCK at=office`}, "ask", "reset"},
		{"tunnel", []string{`TUNNEL net=10.0.0.0/8 at=office`}, "1:ask 10.0.0.0/8; pass", "1:ask 10.0.0.0/8; pass"},
		{"fallback", []string{`TUNNEL net=10.0.0.0/8 at=office fallback`}, "1:ask 10.0.0.0/8; pass", "1:ask 10.0.0.0/8; pass"},
		{"beside others", []string{`DIRECT net=10.0.0.0/8`, `DIRECT net=11.0.0.0/8 at=office`, `BLOCK net=12.0.0.0/8`, "default TUNNEL"},
			"1:pass 10.0.0.0/8; 3:reset 12.0.0.0/8; ask", "1:pass 10.0.0.0/8; 2:ask 11.0.0.0/8; 3:reset 12.0.0.0/8; ask"},
	} {
		set := parseRules(t, c.rules...)
		for i, want := range []string{c.away, c.here} {
			if got := show(Compile(set.On(func(string) bool { return i == 1 }), Options{})); got != want {
				t.Errorf("%s, there %t: %s, want %s", c.name, i == 1, got, want)
			}
		}
	}
}

func TestOptions(t *testing.T) {
	addr := netip.MustParseAddrPort
	given := Options{
		Pools:  []netip.Prefix{netip.MustParsePrefix("198.19.0.0/16"), netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("198.18.0.0/16")},
		Exempt: []netip.AddrPort{addr("[fe80::1%eth0]:22"), addr("[::ffff:192.0.2.1]:22"), addr("192.0.2.1:22"), {}},
		Users:  []capture.UIDRange{{Lo: 60000, Hi: 1<<32 - 1}, {Lo: 1000, Hi: 2000}, {Lo: 2001, Hi: 3000}, {Lo: 70000, Hi: 80000}},
		Local:  true, RefuseUDP: true, Open: true,
	}
	want := capture.Spec{
		Pools:  []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("fd00::/64")},
		Exempt: []netip.AddrPort{addr("192.0.2.1:22"), addr("[fe80::1]:22")},
		Users:  []capture.UIDRange{{Lo: 1000, Hi: 3000}, {Lo: 60000, Hi: 1<<32 - 1}},
		Local:  true, RefuseUDP: true, Open: true, Rest: capture.Pass,
	}
	first := slices.Clone(given.Pools)
	if got := Compile(parseRules(t), given); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	if !slices.Equal(given.Pools, first) {
		t.Error("the options were changed")
	}
}

func TestPolicy(t *testing.T) {
	for _, c := range []struct {
		rules            []string
		refuses, mayOpen bool
	}{
		{nil, false, true},
		{[]string{"default BLOCK"}, false, true},
		{[]string{"default TUNNEL"}, true, false},
		{[]string{"default FTP-TUNNEL"}, true, false},
		{[]string{`TUNNEL host=.*`, "default BLOCK"}, true, false},
		{[]string{`TUNNEL host=.* fallback`}, true, true},
		{[]string{`TUNNEL ip=.* fallback`}, true, true},
		{[]string{`TUNNEL net=0.0.0.0/0 fallback`}, false, true},
		{[]string{`DIRECT host=.* ip=10\..*`, `TUNNEL host=.*`}, false, false},
		{[]string{`TUNNEL host=a fallback`, `TUNNEL ports=23 fallback`}, false, true},
		{[]string{`TUNNEL host=a fallback`, `TUNNEL ports=23`}, false, false},
		{[]string{`FTP-PROXY ports=21`}, false, false},
	} {
		set := parseRules(t, c.rules...)
		if got := RefusesUDP(set); got != c.refuses {
			t.Errorf("%q: RefusesUDP %t", c.rules, got)
		}
		if got := MayOpen(set); got != c.mayOpen {
			t.Errorf("%q: MayOpen %t", c.rules, got)
		}
	}
	for _, on := range []bool{false, true} {
		set := parseRules(t, `TUNNEL at=office`).On(func(string) bool { return on })
		if RefusesUDP(set) != on || MayOpen(set) {
			t.Errorf("there %t: RefusesUDP %t, MayOpen %t", on, RefusesUDP(set), MayOpen(set))
		}
	}
	if RefusesUDP(nil) || MayOpen(nil) {
		t.Errorf("nil rules: RefusesUDP %t, MayOpen %t", RefusesUDP(nil), MayOpen(nil))
	}
}

// BenchmarkCompile compiles 10,000 rules of one kind.
func BenchmarkCompile(b *testing.B) {
	for _, kind := range []struct{ name, format string }{
		{"prefix", `DIRECT net=10.%d.%d.0/24 ports=80,443`},
		{"literal", `DIRECT ip=10\.%d\.%d\.1`},
		{"pattern", `DIRECT ip=10\.%d\.%d\..*`},
		{"hostile", `DIRECT ip=%d.*.*:.*%d.*:.*1`},
		{"tunnel", `TUNNEL net=10.%d.%d.0/24 ports=80,443`},
	} {
		lines := make([]string, 10_000)
		for i := range lines {
			lines[i] = fmt.Sprintf(kind.format, i/250, i%250)
		}
		set := parseRules(b, append(lines, "default BLOCK")...)
		b.Run(kind.name, func(b *testing.B) {
			for b.Loop() {
				Compile(set, Options{})
			}
		})
	}
}

// TestManyRules holds a long rule set of ordinary patterns to verdicts of the
// kernel: their work is well within its bound. One of hostile patterns ends too.
func TestManyRules(t *testing.T) {
	var lines []string
	for i := range 10_000 {
		lines = append(lines, fmt.Sprintf([]string{`DIRECT ip=10\.%d\.%d\.[0-9]+`, `BLOCK ip=2001:db8:a%d:1%d:.*`}[i%2], i/250, i%250))
	}
	spec := Compile(parseRules(t, append(lines, "default BLOCK")...), Options{})
	if len(spec.Rules) != 10_000 || spec.Rest != capture.Reset {
		t.Errorf("%d rules and %v", len(spec.Rules), spec.Rest)
	}
	for _, r := range spec.Rules {
		if r.Outcome == capture.Ask || len(r.Prefixes) != 1 {
			t.Fatalf("rule %d: %+v", r.Number, r)
		}
	}
	lines = lines[:1_000]
	for i := range lines {
		lines[i] = fmt.Sprintf(`DIRECT ip=(.*%d.*:.*){3}[0-9]*%d(:.*\.|.*1)`, i, i)
	}
	spec = Compile(parseRules(t, append(lines, "default BLOCK")...), Options{})
	for _, r := range spec.Rules {
		if r.Outcome != capture.Ask {
			t.Fatalf("rule %d: %+v", r.Number, r)
		}
	}
}
