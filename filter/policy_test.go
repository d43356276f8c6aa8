package filter

import (
	"net/netip"
	"slices"
	"testing"

	"sshbroker/filter/egrep"
)

func host(pattern string) *egrep.Pattern {
	p, err := egrep.Compile(pattern, egrep.Options{IgnoreCase: true})
	if err != nil {
		panic(err)
	}
	return p
}

// text is the pattern of an address or an application.
func text(pattern string) *egrep.Pattern {
	p, err := egrep.Compile(pattern, egrep.Options{})
	if err != nil {
		panic(err)
	}
	return p
}

func ports(s string) []PortRange {
	r, err := ParsePorts(s)
	if err != nil {
		panic(err)
	}
	return r
}

func mustSet(t testing.TB, rules []Rule, def Action) *Set {
	t.Helper()
	s, err := NewSet(rules, def)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func names(n ...string) []string { return n }

// TestPolicy is one rule file and what it makes of flows. Rule 0 is the default.
func TestPolicy(t *testing.T) {
	s := mustSet(t, []Rule{
		{Application: text(`.*/backup-agent`), Action: Block},                                                       // 1
		{Host: host(`(.*\.)?corp\.example`), Ports: ports("22,80-443"), Action: Tunnel, Profile: "corp"},            // 2
		{Host: host(`telnet\.corp\.example`), Address: text(`10\..*`), Action: Tunnel, HostnameFromApp: true},       // 3
		{Address: text(`192\.0\.2\.[0-9]+`), Action: Direct},                                                        // 4
		{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Users: names("alice", "bob"), Action: Tunnel, Profile: "lab"}, // 5
		{Prefix: netip.MustParsePrefix("2001:db8::/32"), Groups: names("ops"), Action: Direct},                      // 6
		{Application: text(`telnet`), Ports: ports("23"), Action: Tunnel, HostnameFromApp: true},                    // 7
		{Host: host(`198\.51\.100\..*`), Action: Block},                                                             // 8
		{Ports: ports("21"), Action: FTPTunnel, Profile: "corp"},                                                    // 9
		{Host: host(`ftp\..*`), Ports: ports("2121"), Action: FTPProxy, Profile: "corp"},                            // 10
		{Host: host(`.*`), Ports: ports("23"), Action: Block},                                                       // 11
	}, Direct)

	for _, tt := range []struct {
		names  []string
		addr   string
		port   uint16
		exe    string
		user   string
		groups []string

		rule   int
		action Action
		name   string
	}{
		{names("db.corp.example"), "10.1.1.1", 443, "/usr/bin/curl", "carol", nil, 2, Tunnel, "db.corp.example"},
		{names("DB.Corp.Example"), "10.1.1.1", 80, "", "carol", nil, 2, Tunnel, "DB.Corp.Example"},
		{names("corp.example"), "10.1.1.1", 22, "", "", nil, 2, Tunnel, "corp.example"},
		{names("db.corp.example"), "10.1.1.1", 79, "", "carol", nil, 0, Direct, "db.corp.example"},
		{names("notcorp.example"), "203.0.113.1", 443, "", "", nil, 0, Direct, "notcorp.example"},
		{names("db.corp.example"), "10.1.1.1", 443, "/opt/bin/backup-agent", "", nil, 1, Block, "db.corp.example"},

		// The address of a rule with a host is not looked at.
		{names("telnet.corp.example"), "203.0.113.1", 5000, "", "", nil, 3, Tunnel, "telnet.corp.example"},

		// Several names: rules in order, each against every name; the most recent name first.
		{names("www.other.example", "db.corp.example"), "203.0.113.1", 443, "", "", nil, 2, Tunnel, "db.corp.example"},
		{names("telnet.corp.example", "db.corp.example"), "203.0.113.1", 443, "", "", nil, 2, Tunnel, "telnet.corp.example"},
		{names("ftp.example", "telnet.corp.example"), "203.0.113.1", 2121, "", "", nil, 3, Tunnel, "telnet.corp.example"},
		{names("new.example", "old.example"), "192.0.2.7", 443, "", "", nil, 4, Direct, "new.example"},

		// Addresses: text, prefixes, IPv4 mapped into IPv6, zones.
		{nil, "192.0.2.7", 443, "", "", nil, 4, Direct, ""},
		{nil, "::ffff:192.0.2.7", 443, "", "", nil, 4, Direct, ""},
		{nil, "10.9.9.9", 443, "", "alice", nil, 5, Tunnel, ""},
		{nil, "::ffff:10.9.9.9", 443, "", "bob", nil, 5, Tunnel, ""},
		{nil, "10.9.9.9", 443, "", "carol", nil, 0, Direct, ""},
		{nil, "10.9.9.9", 443, "", "", nil, 0, Direct, ""},
		{nil, "2001:db8::1", 443, "", "", names("users", "ops"), 6, Direct, ""},
		{nil, "2001:db8::1%eth0", 23, "", "", names("ops"), 6, Direct, ""},
		{nil, "2001:db8::1", 23, "", "", names("users"), 11, Block, ""},

		// No name: a host is matched against the address.
		{nil, "198.51.100.9", 443, "", "", nil, 8, Block, ""},
		{names("x.example"), "198.51.100.9", 443, "", "", nil, 0, Direct, "x.example"},
		{nil, "203.0.113.1", 23, "", "", nil, 11, Block, ""},

		// Programs: path or base name, in their own case, and never when unknown.
		{nil, "203.0.113.1", 23, "/usr/bin/telnet", "", nil, 7, Tunnel, ""},
		{nil, "203.0.113.1", 23, "telnet", "", nil, 7, Tunnel, ""},
		{nil, "203.0.113.1", 23, "/usr/bin/Telnet", "", nil, 11, Block, ""},
		{nil, "203.0.113.1", 23, "/usr/telnet/nc", "", nil, 11, Block, ""},
		{nil, "203.0.113.1", 24, "/usr/bin/telnet", "", nil, 0, Direct, ""},

		// FTP actions are decided like the others.
		{nil, "203.0.113.1", 21, "/usr/bin/ftp", "", nil, 9, FTPTunnel, ""},
		{names("ftp.example"), "203.0.113.1", 2121, "", "", nil, 10, FTPProxy, "ftp.example"},

		{nil, "203.0.113.1", 443, "", "", nil, 0, Direct, ""},
		{names("a.example", "b.example"), "203.0.113.1", 443, "", "", nil, 0, Direct, "a.example"},
	} {
		d := s.Decide(&Flow{
			Names: tt.names, Addr: netip.MustParseAddr(tt.addr), Port: tt.port,
			Program: func() string { return tt.exe }, User: tt.user, Groups: tt.groups,
		})
		number := 0
		if d.Rule != nil {
			number = d.Rule.Number
		}
		if number != tt.rule || d.Action != tt.action || d.Name != tt.name {
			t.Errorf("%v %s:%d by %q of %q %v: rule %d, %v, name %q; want rule %d, %v, name %q",
				tt.names, tt.addr, tt.port, tt.exe, tt.user, tt.groups, number, d.Action, d.Name, tt.rule, tt.action, tt.name)
		}
	}
}

func TestExplain(t *testing.T) {
	s := mustSet(t, []Rule{
		{Ports: ports("80,8000-8080"), Host: host(`x`), Action: Block},
		{Host: host(`.*\.corp\.example`), Users: names("alice"), Action: Block},
		{Address: text(`10\..*`), Action: Block},
		{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Action: Block},
		{Users: names("alice", "bob"), Action: Block},
		{Groups: names("ops", "dba"), Application: text(`x`), Action: Block},
		{Application: text(`telnet`), Action: Block},
		{Host: host(`b\.example`), Action: Tunnel, Profile: "p"},
		{Action: Block},
	}, Direct)
	flow := Flow{
		Names: names("a.example", "b.example"), Addr: netip.MustParseAddr("192.0.2.1"), Port: 443,
		Program: func() string { return "/usr/bin/curl" }, User: "carol", Groups: names("users", "video"),
	}
	want := []struct {
		matched bool
		failed  Condition
		value   string
		pattern string
	}{
		{false, Ports, "443", "80,8000-8080"},
		{false, Host, "a.example, b.example", `.*\.corp\.example`},
		{false, Address, "192.0.2.1", `10\..*`},
		{false, Address, "192.0.2.1", "10.0.0.0/8"},
		{false, Users, "carol", "alice,bob"},
		{false, Groups, "users,video", "ops,dba"},
		{false, Application, "/usr/bin/curl", "telnet"},
		{true, 0, "", ""},
	}
	var steps []Step
	d := s.Explain(&flow, func(st Step) { steps = append(steps, st) })
	if d.Action != Tunnel || d.Rule == nil || d.Rule.Number != 8 || d.Name != "b.example" {
		t.Errorf("decided %+v", d)
	}
	if len(steps) != len(want) {
		t.Fatalf("%d steps, want %d", len(steps), len(want))
	}
	for i, w := range want {
		g := steps[i]
		if g.Rule != &s.Rules()[i] || g.Matched != w.matched || g.Failed != w.failed || g.Value != w.value || g.Pattern != w.pattern {
			t.Errorf("step %d: %v %v %q %q; want %+v", i, g.Matched, g.Failed, g.Value, g.Pattern, w)
		}
	}

	// Without names it is the address that a host is held against, and said to be.
	flow.Names = nil
	steps = nil
	s.Explain(&flow, func(st Step) { steps = append(steps, st) })
	if i := slices.IndexFunc(steps, func(st Step) bool { return st.Failed == Host }); i < 0 || steps[i].Value != "192.0.2.1" {
		t.Errorf("host without a name: %+v", steps)
	}
}

func TestPseudo(t *testing.T) {
	all := host(`.*`)
	corp := host(`.*\.corp\.example`)
	pseudo := func(r Rule) Rule {
		r.Action, r.Profile, r.PseudoIP = Tunnel, "p", true
		return r
	}
	with := func(rules ...Rule) []Rule { return rules }
	for _, tt := range []struct {
		what  string
		rules []Rule
		def   Action
		want  bool
	}{
		{"its own rule", with(pseudo(Rule{Host: corp})), Direct, true},
		{"a rule for every host", with(pseudo(Rule{Host: all})), Direct, true},
		{"a rule without host and address", with(pseudo(Rule{})), Direct, true},
		{"a rule for another name", with(pseudo(Rule{Host: host(`other`)})), Direct, false},
		{"a host and an address: the address is ignored", with(pseudo(Rule{Host: corp, Address: text(`10\..*`)})), Direct, true},
		{"only an address", with(pseudo(Rule{Address: text(`.*`)})), Direct, false},
		{"only a prefix", with(pseudo(Rule{Prefix: netip.MustParsePrefix("0.0.0.0/0")})), Direct, false},
		{"no pseudo-ip", with(Rule{Host: corp, Action: Tunnel, Profile: "p"}), Direct, false},
		{"pseudo-ip without TUNNEL", with(Rule{Host: corp, Action: Direct, PseudoIP: true}), Direct, false},
		{"pseudo-ip with FTP-TUNNEL", with(Rule{Host: corp, Action: FTPTunnel, Profile: "p", PseudoIP: true}), Direct, false},
		{"no rules", nil, Tunnel, false},

		{"for some ports", with(pseudo(Rule{Host: corp, Ports: ports("443")})), Direct, true},
		{"for some programs", with(pseudo(Rule{Host: corp, Application: text(`psql`)})), Direct, true},
		{"for some users", with(pseudo(Rule{Host: corp, Users: names("alice")})), Direct, true},

		{"behind DIRECT for the name", with(Rule{Host: corp, Action: Direct}, pseudo(Rule{Host: all})), Direct, false},
		{"behind BLOCK for everything", with(Rule{Action: Block}, pseudo(Rule{Host: all})), Direct, false},
		{"behind DIRECT for every address", with(Rule{Address: text(`.*`), Action: Direct}, pseudo(Rule{Host: all})), Direct, false},
		{"behind DIRECT for every port", with(Rule{Host: corp, Ports: ports("1-65535"), Action: Direct}, pseudo(Rule{Host: all})), Direct, false},
		{"behind TUNNEL without pseudo-ip", with(Rule{Host: corp, Action: Tunnel, Profile: "p"}, pseudo(Rule{Host: all})), Direct, false},
		{"behind DIRECT for another name", with(Rule{Host: host(`other`), Action: Direct}, pseudo(Rule{Host: all})), Direct, true},
		{"behind DIRECT for a port", with(Rule{Host: corp, Ports: ports("80"), Action: Direct}, pseudo(Rule{Host: all})), Direct, true},
		{"behind DIRECT for a user", with(Rule{Users: names("bob"), Action: Direct}, pseudo(Rule{Host: all})), Direct, true},
		{"behind DIRECT for a group", with(Rule{Groups: names("ops"), Action: Direct}, pseudo(Rule{Host: all})), Direct, true},
		{"behind DIRECT for a program", with(Rule{Application: text(`x`), Action: Direct}, pseudo(Rule{Host: all})), Direct, true},
		{"behind DIRECT for some addresses", with(Rule{Address: text(`10\..*`), Action: Direct}, pseudo(Rule{Host: all})), Direct, true},
		{"behind DIRECT for a prefix", with(Rule{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Action: Direct}, pseudo(Rule{Host: all})), Direct, true},
	} {
		if got := mustSet(t, tt.rules, tt.def).Pseudo("DB.corp.example"); got != tt.want {
			t.Errorf("%s: %v", tt.what, got)
		}
	}
}
