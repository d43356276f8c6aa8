package filter

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
)

func TestNewSetRefuses(t *testing.T) {
	for _, tt := range []struct {
		what string
		rule Rule
		want error
	}{
		{"TUNNEL without server", Rule{Action: Tunnel}, ErrNoServer},
		{"FTP-TUNNEL without server", Rule{Action: FTPTunnel}, ErrNoServer},
		{"FTP-PROXY without server", Rule{Action: FTPProxy}, ErrNoServer},
		{"unknown action", Rule{Action: 77}, ErrAction},
		{"backward ports", Rule{Ports: []PortRange{{1, 2}, {9, 8}}}, ErrPorts},
		{"port 0", Rule{Ports: []PortRange{{0, 8}}}, ErrPorts},
		{"prefix longer than an address", Rule{Prefix: netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 33)}, ErrAddress},
		{"prefix over mapped and other addresses", Rule{Prefix: netip.MustParsePrefix("::ffff:0:0/90")}, ErrAddress},
		{"address and prefix", Rule{Address: text(`.*`), Prefix: netip.MustParsePrefix("10.0.0.0/8")}, ErrAddress},
		{"empty user", Rule{Users: names("a", "")}, ErrOwner},
		{"empty group", Rule{Groups: names("")}, ErrOwner},
	} {
		s, err := NewSet([]Rule{{}, tt.rule}, Block)
		var re *RuleError
		if s != nil || !errors.Is(err, tt.want) || !errors.As(err, &re) || re.Rule != 2 {
			t.Errorf("%s: set %v, error %v", tt.what, s, err)
		}
	}
	if s, err := NewSet(nil, Action(9)); s != nil || !errors.Is(err, ErrAction) {
		t.Errorf("unknown default: set %v, error %v", s, err)
	}
}

func TestNewSetListsEveryError(t *testing.T) {
	_, err := NewSet([]Rule{
		{Number: 4, Source: "rules.xml:12", Action: Tunnel, Ports: []PortRange{{9, 8}}},
		{Users: names("")},
	}, Block)
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "rules.xml:12: rule 4: TUNNEL: no SSH server") ||
		!strings.Contains(lines[1], "9-8") || !strings.HasPrefix(lines[2], "rule 2: ") {
		t.Errorf("%q", lines)
	}
}

func TestNewSetCopies(t *testing.T) {
	rules := []Rule{{Ports: ports("80"), Users: names("alice"), Groups: names("ops"), Action: Direct}, {Number: 7}}
	s := mustSet(t, rules, Block)
	rules[0].Action, rules[0].Ports[0].Lo, rules[0].Users[0], rules[0].Groups[0] = Block, 1, "eve", "eve"

	f := Flow{Addr: netip.MustParseAddr("10.0.0.1"), Port: 80, User: "alice", Groups: names("ops")}
	if d := s.Decide(&f); d.Action != Direct {
		t.Errorf("a change of the caller's rules came through: %+v", d)
	}
	if r := s.Rules(); len(r) != 2 || r[0].Number != 1 || r[1].Number != 7 {
		t.Errorf("numbers of %+v", r)
	}
}

func TestMappedPrefix(t *testing.T) {
	s := mustSet(t, []Rule{{Prefix: netip.MustParsePrefix("::ffff:10.1.2.3/104"), Action: Direct}}, Block)
	if d := s.Decide(&Flow{Addr: netip.MustParseAddr("10.200.0.1")}); d.Action != Direct {
		t.Errorf("decided %+v", d)
	}
}

func TestZeroValuesBlock(t *testing.T) {
	f := Flow{Names: names("a"), Addr: netip.MustParseAddr("10.0.0.1"), Port: 80}
	var zero Set
	for what, s := range map[string]*Set{"nil": nil, "zero": &zero, "empty": mustSet(t, nil, Block)} {
		if d := s.Decide(&f); d.Action != Block || d.Rule != nil {
			t.Errorf("the %s Set decides %+v", what, d)
		}
		if s.Pseudo("a") || s.Tunnels() || s.NeedsProgram() || len(s.Rules()) != 0 || s.Default() != Block {
			t.Errorf("the %s Set asks for something", what)
		}
	}
	// A flow that is not filled in matches no condition.
	s := mustSet(t, []Rule{{Host: host(`.*`)}, {Address: text(`.*`)}, {Prefix: netip.MustParsePrefix("0.0.0.0/0")},
		{Ports: ports("1-65535")}, {Users: names("a")}, {Groups: names("a")}, {Application: text(`.*`)}}, Direct)
	if d := s.Decide(&Flow{}); d.Rule != nil {
		t.Errorf("the zero Flow matches rule %d", d.Rule.Number)
	}
}

func TestProgramIsAskedLastAndOnce(t *testing.T) {
	s := mustSet(t, []Rule{
		{Application: text(`a`), Ports: ports("80")},
		{Application: text(`b`), Host: host(`x`)},
		{Application: text(`b`), Address: text(`192\..*`)},
		{Application: text(`b`), Prefix: netip.MustParsePrefix("192.0.0.0/8")},
		{Application: text(`c`), Users: names("alice")},
		{Application: text(`d`), Groups: names("ops")},
		{Ports: ports("22"), Action: Direct},
		{Application: text(`e`), Ports: ports("443")},
		{Application: text(`f`), Ports: ports("443")},
		{Application: text(`curl`), Ports: ports("443"), Action: Direct},
	}, Block)
	asked := 0
	f := Flow{Addr: netip.MustParseAddr("10.0.0.1"), User: "bob", Groups: names("users"),
		Program: func() string { asked++; return "/usr/bin/curl" }}
	for _, tt := range []struct {
		port  uint16
		asked int
		rule  int
	}{{22, 0, 7}, {443, 1, 10}, {5000, 0, 0}} {
		for _, decide := range []func() Decision{
			func() Decision { return s.Decide(&f) },
			func() Decision { return s.Explain(&f, func(Step) {}) },
		} {
			asked, f.Port = 0, tt.port
			d := decide()
			number := 0
			if d.Rule != nil {
				number = d.Rule.Number
			}
			if asked != tt.asked || number != tt.rule {
				t.Errorf("port %d: program asked %d times, rule %d; want %d and %d", tt.port, asked, number, tt.asked, tt.rule)
			}
		}
	}

	// An unknown program is asked for once too, and matches nothing.
	f.Port, asked = 443, 0
	f.Program = func() string { asked++; return "" }
	if d := s.Decide(&f); d.Rule != nil || asked != 1 {
		t.Errorf("unknown program: decided %+v, asked %d times", d, asked)
	}
	f.Program = nil
	if d := s.Decide(&f); d.Rule != nil {
		t.Errorf("no way to ask: decided %+v", d)
	}
}

func TestQueries(t *testing.T) {
	tunnel := Rule{Action: Tunnel, Profile: "p"}
	for _, tt := range []struct {
		rules          []Rule
		def            Action
		tunnels, needs bool
	}{
		{nil, Direct, false, false},
		{nil, Tunnel, true, false},
		{[]Rule{{}, {Action: Direct}}, Direct, false, false},
		{[]Rule{{}, tunnel}, Direct, true, false},
		{[]Rule{{Action: FTPProxy, Profile: "p"}}, Direct, true, false},
		{[]Rule{{}, {Application: text(`x`)}}, Direct, false, true},
	} {
		s := mustSet(t, tt.rules, tt.def)
		if s.Tunnels() != tt.tunnels || s.NeedsProgram() != tt.needs || s.Default() != tt.def {
			t.Errorf("%+v, default %v: tunnels %v, needs program %v", tt.rules, tt.def, s.Tunnels(), s.NeedsProgram())
		}
	}
}

// everyKind has rules with every condition, none of which the flow matches.
func everyKind(n int) []Rule {
	rules := make([]Rule, 0, n)
	for i := len(rules); i < n; i++ {
		r := Rule{Action: Tunnel, Profile: "p"}
		switch i % 7 {
		case 0:
			r.Host = host(fmt.Sprintf(`host%d\.corp\.example`, i))
		case 1:
			r.Host = host(fmt.Sprintf(`.*\.site%d\.example`, i))
		case 2:
			r.Host, r.Ports = host(fmt.Sprintf(`(.*\.)?dept%d\.example`, i)), ports("22,5432")
		case 3:
			r.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), 32)
		case 4:
			r.Address = text(fmt.Sprintf(`10\.%d\..*`, i))
		case 5:
			r.Users, r.Groups = names("alice", "bob"), names("ops")
		case 6:
			r.Application = text(fmt.Sprintf(`.*/program%d`, i))
		}
		rules = append(rules, r)
	}
	return rules
}

func TestDecideAtOnce(t *testing.T) {
	s := mustSet(t, everyKind(70), Direct)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			f := Flow{Addr: netip.AddrFrom4([4]byte{10, byte(7*i + 4), 0, 1}), Port: 443}
			for range 200 {
				if d := s.Decide(&f); d.Rule == nil || d.Rule.Number != 7*i+5 {
					t.Errorf("%v: decided %+v", f.Addr, d)
					return
				}
			}
		})
	}
	wg.Wait()
}

func benchmarkDecide(b *testing.B, n int) {
	s := mustSet(b, everyKind(n), Direct)
	f := Flow{Names: names("www.example.org"), Addr: netip.MustParseAddr("192.0.2.1"), Port: 443,
		Program: func() string { return "/usr/bin/curl" }, User: "carol", Groups: names("users")}
	b.ReportAllocs()
	for b.Loop() {
		if d := s.Decide(&f); d.Rule != nil {
			b.Fatalf("decided by rule %d", d.Rule.Number)
		}
	}
}

func BenchmarkDecide100(b *testing.B)   { benchmarkDecide(b, 100) }
func BenchmarkDecide10000(b *testing.B) { benchmarkDecide(b, 10_000) }
