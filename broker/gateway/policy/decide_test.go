package policy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// The example of banyan-http-connect-collections.txt.
func vnc() Spec {
	spec := collection(Pattern{hostnames("vnc1.com"), cidrs("10.10.34.0/24"), []PortRange{{5901, 5999}}})
	spec.Backend.DNSOverrides = map[string]Host{"vnc1.com": must(ParseHost("myvncservice.com"))}
	return spec
}

// Each row is one flow of alice through one service.
func TestDecide(t *testing.T) {
	names := map[string][]string{
		"myvncservice.com": {"10.10.34.7"},
		"both.example":     {"192.0.2.1", "10.0.0.1", "2001:db8::1", "192.0.2.1", "::ffff:192.0.2.2"},
		"inside.example":   {"10.0.0.1"},
		"a.example":        {"192.0.2.1"}, "b.a.example": {"192.0.2.2"}, "nota.example": {"192.0.2.3"},
		"back.example": {"127.0.0.1"}, "link.example": {"169.254.169.254", "fe80::1"}, "any.example": {"0.0.0.0"},
		"multi.example": {"224.0.0.1"}, "nat64.example": {"64:ff9b::7f00:1"}, "sixtofour.example": {"2002:a9fe:a9fe::1"},
		"nat64in.example": {"64:ff9b::a00:1"}, "compat.example": {"::7f00:1"}, "zone.example": {"fe80::1%eth0"},
		"self.example": {"198.51.100.1"}, "empty.example": nil,
		"xn--bcher-kva.example": {"192.0.2.9"},
	}
	everything := collection()
	everything.Backend.AllowAll = true
	with := func(spec Spec, change func(*Spec)) Spec { change(&spec); return spec }
	excluding := func(p Pattern) Spec {
		return with(everything, func(s *Spec) { s.Backend.ExcludePatterns = []Pattern{p} })
	}
	whitelist := with(collection(Pattern{Hostnames: hostnames("b.a.example")}), func(s *Spec) { s.Backend.Whitelist = hostnames("*.example.net", "a.example") })
	listening := with(everything, func(s *Spec) { s.Self.Listeners = []netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:8443")} })

	for _, c := range []struct {
		name   string
		spec   Spec
		host   string
		port   uint16
		want   Reason
		rule   string
		addrs  string
		lookup string // all that is looked up
	}{
		// The documents' example: host and network and port.
		{"the collection", vnc(), "vnc1.com", 5901, Permitted, "allow_patterns[0]", "10.10.34.7:5901", "myvncservice.com"},
		{"case and a dot", vnc(), "VNC1.Com.", 5999, Permitted, "allow_patterns[0]", "10.10.34.7:5999", "myvncservice.com"},
		{"another port", vnc(), "vnc1.com", 6000, PortNotAllowed, "", "", ""},
		{"another host", vnc(), "vnc2.com", 5901, HostNotAllowed, "", "", ""},
		{"the name it is replaced by", vnc(), "myvncservice.com", 5901, HostNotAllowed, "", "", ""},
		{"its address", vnc(), "10.10.34.7", 5901, HostNotAllowed, "", "", ""},
		{"another network", with(vnc(), func(s *Spec) { s.Backend.DNSOverrides = nil }), "vnc1.com", 5901, NameNotFound, "", "", "vnc1.com"},
		{"override to another network", with(vnc(), func(s *Spec) {
			s.Backend.DNSOverrides = map[string]Host{"vnc1.com": must(ParseHost("10.10.35.1"))}
		}), "vnc1.com", 5901, AddressNotAllowed, "", "", ""},
		{"override to an address", with(vnc(), func(s *Spec) {
			s.Backend.DNSOverrides = map[string]Host{"vnc1.com": must(ParseHost("10.10.34.200"))}
		}), "vnc1.com", 5901, Permitted, "allow_patterns[0]", "10.10.34.200:5901", ""},
		{"an override is applied once", with(vnc(), func(s *Spec) {
			s.Backend.DNSOverrides["myvncservice.com"] = must(ParseHost("10.99.0.1"))
		}), "vnc1.com", 5901, Permitted, "allow_patterns[0]", "10.10.34.7:5901", "myvncservice.com"},

		// Patterns: OR between them, order of the file for the name of the rule.
		{"second pattern", collection(Pattern{Hostnames: hostnames("x.example")}, Pattern{Ports: ports(443)}), "a.example", 443, Permitted, "allow_patterns[1]", "192.0.2.1:443", "a.example"},
		{"leading star", collection(Pattern{Hostnames: hostnames("*.a.example")}), "b.a.example", 1, Permitted, "allow_patterns[0]", "192.0.2.2:1", "b.a.example"},
		{"leading star and a dot", collection(Pattern{Hostnames: hostnames("*.a.example")}), "nota.example", 1, HostNotAllowed, "", "", ""},
		{"leading star, not the domain itself", collection(Pattern{Hostnames: hostnames("*.a.example")}), "a.example", 1, HostNotAllowed, "", "", ""},
		{"leading star without dot", collection(Pattern{Hostnames: hostnames("*a.example")}), "nota.example", 1, Permitted, "allow_patterns[0]", "192.0.2.3:1", "nota.example"},
		{"trailing star", collection(Pattern{Hostnames: hostnames("b.*")}), "b.a.example", 1, Permitted, "allow_patterns[0]", "192.0.2.2:1", "b.a.example"},
		{"trailing star elsewhere", collection(Pattern{Hostnames: hostnames("b.*")}), "a.example", 1, HostNotAllowed, "", "", ""},
		{"both stars", collection(Pattern{Hostnames: hostnames("*.a.*")}), "b.a.example", 1, Permitted, "allow_patterns[0]", "192.0.2.2:1", "b.a.example"},
		{"star alone", collection(Pattern{Hostnames: hostnames("*")}), "a.example", 1, Permitted, "allow_patterns[0]", "192.0.2.1:1", "a.example"},
		{"IDN", collection(Pattern{Hostnames: hostnames("*.example"), CIDRs: cidrs("192.0.2.9/32")}), "BÜCHER.example", 1, Permitted, "allow_patterns[0]", "192.0.2.9:1", "xn--bcher-kva.example"},
		{"IDN in the pattern", collection(Pattern{Hostnames: hostnames("*.bücher.example", "bücher.example")}), "xn--bcher-kva.example", 1, Permitted, "allow_patterns[0]", "192.0.2.9:1", "xn--bcher-kva.example"},

		// Answers are filtered, what is left is dialled in the resolver's order, each once.
		{"filtered", collection(Pattern{CIDRs: cidrs("192.0.2.0/24")}), "both.example", 1, Permitted, "allow_patterns[0]", "192.0.2.1:1 192.0.2.2:1", "both.example"},
		{"IPv6", collection(Pattern{CIDRs: cidrs("2001:db8::/32")}), "both.example", 1, Permitted, "allow_patterns[0]", "[2001:db8::1]:1", "both.example"},
		{"by network and port", collection(Pattern{CIDRs: cidrs("192.0.2.0/24"), Ports: ports(2)}), "both.example", 1, PortNotAllowed, "", "", ""},
		{"none left", collection(Pattern{CIDRs: cidrs("203.0.113.0/24")}), "both.example", 1, AddressNotAllowed, "", "", "both.example"},
		{"all", everything, "both.example", 1, Permitted, "allow_all", "192.0.2.1:1 10.0.0.1:1 [2001:db8::1]:1 192.0.2.2:1", "both.example"},

		// Exclusions win, on names before nothing is looked up, on addresses one by one.
		{"excluded name", excluding(Pattern{Hostnames: hostnames("a.*")}), "A.example.", 1, Excluded, "exclude_patterns[0]", "", ""},
		{"excluded port", excluding(Pattern{Ports: []PortRange{{1, 1023}}}), "a.example", 25, Excluded, "exclude_patterns[0]", "", ""},
		{"excluded name, another port", excluding(Pattern{Hostnames: hostnames("a.*"), Ports: ports(25)}), "a.example", 26, Permitted, "allow_all", "192.0.2.1:26", "a.example"},
		{"excluded network", excluding(Pattern{CIDRs: cidrs("10.0.0.0/8")}), "inside.example", 1, AddressExcluded, "exclude_patterns[0]", "", "inside.example"},
		{"one excluded address", excluding(Pattern{CIDRs: cidrs("10.0.0.0/8", "2001:db8::/32")}), "both.example", 1, Permitted, "allow_all", "192.0.2.1:1 192.0.2.2:1", "both.example"},
		{"excluded by name and network", excluding(Pattern{Hostnames: hostnames("both.example"), CIDRs: cidrs("10.0.0.0/8")}), "inside.example", 1, Permitted, "allow_all", "10.0.0.1:1", "inside.example"},
		{"excluded address, by a name", excluding(Pattern{Hostnames: hostnames("10.0.0.1")}), "inside.example", 1, AddressExcluded, "exclude_patterns[0]", "", "inside.example"},
		{"excluded address, through NAT64", excluding(Pattern{Hostnames: hostnames("10.0.0.1")}), "nat64in.example", 1, AddressExcluded, "exclude_patterns[0]", "", "nat64in.example"},
		{"excluded address, by a name with others", excluding(Pattern{Hostnames: hostnames("10.0.0.1")}), "both.example", 1, Permitted, "allow_all", "192.0.2.1:1 [2001:db8::1]:1 192.0.2.2:1", "both.example"},
		{"excluded literal", excluding(Pattern{CIDRs: cidrs("10.0.0.0/8")}), "10.1.1.1", 1, AddressExcluded, "exclude_patterns[0]", "", ""},
		{"excluded through NAT64", excluding(Pattern{CIDRs: cidrs("10.0.0.0/8")}), "nat64in.example", 1, AddressExcluded, "exclude_patterns[0]", "", "nat64in.example"},
		{"excluded under its other name", with(vnc(), func(s *Spec) { s.Backend.ExcludePatterns = []Pattern{{Hostnames: hostnames("*service.com")}} }), "vnc1.com", 5901, Excluded, "exclude_patterns[0]", "", ""},

		// Whitelist: if it is there, allow_patterns is ignored.
		{"whitelist", whitelist, "a.example", 7, Permitted, "whitelist[1]", "192.0.2.1:7", "a.example"},
		{"whitelist wins", whitelist, "b.a.example", 7, HostNotAllowed, "", "", ""},

		// An address that is asked for.
		{"literal by network", collection(Pattern{CIDRs: cidrs("10.0.0.0/8")}), "10.2.3.4", 1, Permitted, "allow_patterns[0]", "10.2.3.4:1", ""},
		{"literal in IPv6", collection(Pattern{CIDRs: cidrs("10.0.0.0/8")}), "::ffff:10.2.3.4", 1, Permitted, "allow_patterns[0]", "10.2.3.4:1", ""},
		{"literal and star", collection(Pattern{Hostnames: hostnames("*")}), "10.2.3.4", 1, HostNotAllowed, "", "", ""},
		{"literal and a star in it", collection(Pattern{Hostnames: hostnames("10.*", "*.4")}), "10.2.3.4", 1, HostNotAllowed, "", "", ""},
		{"literal among hostnames", collection(Pattern{Hostnames: hostnames("10.2.3.4")}), "10.2.3.4", 1, Permitted, "allow_patterns[0]", "10.2.3.4:1", ""},
		{"IPv6 literal in another spelling", collection(Pattern{Hostnames: hostnames("2001:db8::1")}), "2001:DB8:0::1", 1, Permitted, "allow_patterns[0]", "[2001:db8::1]:1", ""},
		{"name that leads to the literal", collection(Pattern{Hostnames: hostnames("192.0.2.1")}), "a.example", 1, HostNotAllowed, "", "", ""},

		// What has several spellings, and what is no host.
		{"octal", everything, "0177.0.0.1", 1, BadHost, "", "", ""},
		{"one number", everything, "2130706433", 1, BadHost, "", "", ""},
		{"hexadecimal", everything, "0x7f.1", 1, BadHost, "", "", ""},
		{"zone", everything, "fe80::1%lo", 1, BadHost, "", "", ""},
		{"brackets", everything, "[::1]", 1, BadHost, "", "", ""},
		{"none", everything, "", 1, BadHost, "", "", ""},
		{"port 0", everything, "a.example", 0, BadPort, "", "", ""},

		// Addresses that no name leads to.
		{"loopback", everything, "back.example", 1, AddressReserved, "", "", "back.example"},
		{"loopback literal", everything, "127.0.0.1", 1, AddressReserved, "", "", ""},
		{"loopback in IPv6", everything, "::ffff:127.0.0.1", 1, AddressReserved, "", "", ""},
		{"loopback by a name", collection(Pattern{Hostnames: hostnames("back.example")}), "back.example", 1, AddressReserved, "", "", "back.example"},
		{"loopback by 0.0.0.0/0", collection(Pattern{CIDRs: cidrs("0.0.0.0/0")}), "back.example", 1, AddressReserved, "", "", "back.example"},
		{"loopback by its network", collection(Pattern{CIDRs: cidrs("127.0.0.0/8")}), "back.example", 1, Permitted, "allow_patterns[0]", "127.0.0.1:1", "back.example"},
		{"loopback by a later pattern", collection(Pattern{Hostnames: hostnames("*")}, Pattern{CIDRs: cidrs("127.0.0.1/32")}), "back.example", 1, Permitted, "allow_patterns[1]", "127.0.0.1:1", "back.example"},
		{"loopback by itself", collection(Pattern{Hostnames: hostnames("127.0.0.1")}), "127.0.0.1", 1, Permitted, "allow_patterns[0]", "127.0.0.1:1", ""},
		{"loopback beside a name", collection(Pattern{Hostnames: hostnames("127.0.0.1", "back.example")}), "back.example", 1, AddressReserved, "", "", "back.example"},
		{"loopback by an override", with(everything, func(s *Spec) {
			s.Backend.DNSOverrides = map[string]Host{"back.example": must(ParseHost("::1"))}
		}), "back.example", 1, Permitted, "allow_all", "[::1]:1", ""},
		{"loopback by an override to a name", with(everything, func(s *Spec) {
			s.Backend.DNSOverrides = map[string]Host{"x.example": must(ParseHost("back.example"))}
		}), "x.example", 1, AddressReserved, "", "", "back.example"},
		{"link-local", everything, "link.example", 80, AddressReserved, "", "", "link.example"},
		{"unspecified", everything, "any.example", 1, AddressReserved, "", "", "any.example"},
		{"unspecified literal", everything, "::", 1, AddressReserved, "", "", ""},
		{"multicast", everything, "multi.example", 1, AddressReserved, "", "", "multi.example"},
		{"loopback through NAT64", everything, "nat64.example", 1, AddressReserved, "", "", "nat64.example"},
		{"link-local through 6to4", everything, "sixtofour.example", 1, AddressReserved, "", "", "sixtofour.example"},
		{"loopback, compatible", everything, "compat.example", 1, AddressReserved, "", "", "compat.example"},
		{"an answer with a zone", everything, "zone.example", 1, NameNotFound, "", "", "zone.example"},
		{"the gateway", listening, "self.example", 8443, AddressReserved, "", "", "self.example"},
		{"beside the gateway", listening, "self.example", 443, Permitted, "allow_all", "198.51.100.1:443", "self.example"},
		{"another host at the gateway's port", listening, "a.example", 8443, Permitted, "allow_all", "192.0.2.1:8443", "a.example"},
		{"the gateway by its network", with(listening, func(s *Spec) {
			s.Backend.AllowAll, s.Backend.AllowPatterns = false, []Pattern{{CIDRs: cidrs("198.51.100.0/24")}}
		}), "self.example", 8443, AddressReserved, "", "", "self.example"},
		{"the gateway by its address", with(listening, func(s *Spec) {
			s.Backend.AllowAll, s.Backend.AllowPatterns = false, []Pattern{{CIDRs: cidrs("198.51.100.1/32")}}
		}), "self.example", 8443, Permitted, "allow_patterns[0]", "198.51.100.1:8443", "self.example"},

		// Targets.
		{"target", fixed("a.example", 5432), "", 0, Permitted, "target", "192.0.2.1:5432", "a.example"},
		{"target, asked for", fixed("a.example", 5432), "A.example", 5432, Permitted, "target", "192.0.2.1:5432", "a.example"},
		{"another destination", fixed("a.example", 5432), "b.a.example", 5432, NotTarget, "", "", ""},
		{"another port of it", fixed("a.example", 5432), "a.example", 22, NotTarget, "", "", ""},
		{"no host", fixed("a.example", 5432), "", 5432, BadHost, "", "", ""},
		{"target on loopback", fixed("127.0.0.1", 5432), "", 0, Permitted, "target", "127.0.0.1:5432", ""},
		{"target whose name leads to loopback", fixed("back.example", 5432), "", 0, AddressReserved, "", "", "back.example"},
		{"target with patterns", with(fixed("both.example", 1), func(s *Spec) { s.Backend.AllowPatterns = []Pattern{{CIDRs: cidrs("10.0.0.0/8")}} }), "", 0, Permitted, "allow_patterns[0]", "10.0.0.1:1", "both.example"},
		{"target with an override", with(fixed("x.example", 1), func(s *Spec) {
			s.Backend.DNSOverrides = map[string]Host{"x.example": must(ParseHost("a.example"))}
		}), "", 0, Permitted, "target", "192.0.2.1:1", "a.example"},
		{"excluded target", with(fixed("inside.example", 1), func(s *Spec) { s.Backend.ExcludePatterns = []Pattern{{CIDRs: cidrs("10.0.0.0/8")}} }), "", 0, AddressExcluded, "exclude_patterns[0]", "", "inside.example"},
		{"collection asked for its target", everything, "", 0, BadPort, "", "", ""},

		{"no addresses", everything, "empty.example", 1, NameNotFound, "", "", "empty.example"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &answers{addrs: names}
			route, v := decide(t, c.spec, c.host, c.port, r)
			rule := route.Rule
			if c.want != Permitted {
				rule = v.Rule
			}
			if v.Reason != c.want || rule != c.rule || v.Permissive || v.Allowed() != (c.want == Permitted) {
				t.Errorf("%v, by %q; want %v, by %q", v, rule, c.want, c.rule)
			}
			equal(t, "addresses", dialled(route), strings.Fields(c.addrs))
			var lookups []string
			if c.lookup != "" {
				lookups = []string{"ip " + c.lookup + "."}
			}
			equal(t, "looked up", r.asked, lookups)
			if (v.Detail == "") != (c.want == Permitted) {
				t.Errorf("detail %q", v.Detail)
			}
		})
	}
}

// A name whose answer changes between two lookups is looked up once for a flow: what was
// judged is what is dialled.
func TestRebinding(t *testing.T) {
	turns := &turning{first: "192.0.2.1", then: "10.0.0.1"}
	spec := collection(Pattern{Hostnames: hostnames("*.example"), CIDRs: cidrs("192.0.2.0/24")})
	route, v := decide(t, spec, "evil.example", 80, turns)
	if !v.Allowed() || turns.asked != 1 {
		t.Fatalf("%v after %d lookups", v, turns.asked)
	}
	equal(t, "addresses", dialled(route), []string{"192.0.2.1:80"})
	route, v = decide(t, spec, "evil.example", 80, turns)
	if v.Reason != AddressNotAllowed || route.Addrs != nil || turns.asked != 2 {
		t.Errorf("the second flow: %v, %v after %d lookups", v, route, turns.asked)
	}
}

type turning struct {
	first, then string
	asked       int
}

func (r *turning) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	if r.asked++; r.asked == 1 {
		return []netip.Addr{netip.MustParseAddr(r.first)}, nil
	}
	return []netip.Addr{netip.MustParseAddr(r.then)}, nil
}

func TestLookupFailures(t *testing.T) {
	spec := collection(Pattern{Hostnames: hostnames("a.example")})
	secret := "10.9.9.9:53"
	for _, c := range []struct {
		name string
		err  error
		want Reason
	}{
		{"not found", &net.DNSError{Err: "no such host", Server: secret, IsNotFound: true}, NameNotFound},
		{"timeout", &net.DNSError{Err: "i/o timeout", Server: secret, IsTimeout: true}, LookupTimeout},
		{"our own time limit", context.DeadlineExceeded, LookupTimeout},
		{"given up", context.Canceled, LookupFailed},
		{"broken", &net.DNSError{Err: "server misbehaving", Server: secret}, LookupFailed},
		{"anything", errors.New("x " + secret), LookupFailed},
	} {
		// Answers beside an error are not taken.
		route, v := decide(t, spec, "a.example", 1, &answers{addrs: map[string][]string{"a.example": {"192.0.2.1"}}, err: c.err})
		if v.Reason != c.want || v.Allowed() || route.Addrs != nil {
			t.Errorf("%s: %v, %v", c.name, v, route)
		}
		if strings.Contains(v.String(), secret) {
			t.Errorf("%s: the verdict tells the resolver: %s", c.name, v)
		}
	}
	if _, v := decide(t, spec, "a.example", 1, nil); v.Reason != LookupFailed {
		t.Errorf("without a resolver: %v", v)
	}
}

// Of a name with very many addresses only some are dialled.
func TestManyAnswers(t *testing.T) {
	many := map[string][]string{}
	for i := range 200 {
		many["a.example"] = append(many["a.example"], netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}).String())
	}
	route, v := decide(t, collection(Pattern{Hostnames: hostnames("a.example")}), "a.example", 1, &answers{addrs: many})
	if !v.Allowed() || len(route.Addrs) != maxAnswers {
		t.Errorf("%v with %d addresses", v, len(route.Addrs))
	}
}

// A listener on all addresses is on those that are the machine's.
func TestSelf(t *testing.T) {
	for _, c := range []struct {
		local func(netip.Addr) bool
		want  Reason
	}{
		{nil, AddressReserved},
		{func(a netip.Addr) bool { return a == netip.MustParseAddr("192.0.2.1") }, AddressReserved},
		{func(netip.Addr) bool { return false }, Permitted},
	} {
		spec := collection(Pattern{CIDRs: cidrs("192.0.2.0/24")})
		spec.Self = Self{Listeners: []netip.AddrPort{netip.MustParseAddrPort("[::]:8443")}, Local: c.local}
		if _, v := decide(t, spec, "192.0.2.1", 8443, nil); v.Reason != c.want {
			t.Errorf("%v, want %v", v, c.want)
		}
		if _, v := decide(t, spec, "192.0.2.1", 8444, nil); v.Reason != Permitted {
			t.Errorf("another port: %v", v)
		}
	}
}
