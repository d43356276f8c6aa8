package policy

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A second reading of the rules, slow and by other means: names by regular expressions,
// addresses by package net, everything as text. The property is that Decide agrees.

type plainPattern struct {
	names, nets []string
	ports       [][2]int
}

func (p plainPattern) String() string { return fmt.Sprint(p.names, p.nets, p.ports) }

func plainMatch(pattern, name string) bool {
	if net.ParseIP(name) != nil {
		return pattern == name
	}
	expr := strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, ".*")
	return regexp.MustCompile("^(" + expr + ")$").MatchString(name)
}

func plainContains(network, addr string) bool {
	_, n, err := net.ParseCIDR(network)
	if err != nil {
		panic(err)
	}
	return (len(n.IP) == 4) == !strings.Contains(addr, ":") && n.Contains(net.ParseIP(addr))
}

func (p plainPattern) hasName(names ...string) bool {
	for _, pattern := range p.names {
		for _, name := range names {
			if plainMatch(pattern, name) {
				return true
			}
		}
	}
	return len(p.names) == 0
}

func (p plainPattern) hasPort(port int) bool {
	for _, r := range p.ports {
		if r[0] <= port && port <= r[1] {
			return true
		}
	}
	return len(p.ports) == 0
}

func (p plainPattern) hasAddr(addrs ...string) bool {
	for _, network := range p.nets {
		for _, addr := range addrs {
			if plainContains(network, addr) {
				return true
			}
		}
	}
	return len(p.nets) == 0
}

// opens tells whether the pattern lets through an address that is not of the ordinary kind.
func (p plainPattern) opens(asked, addr string) bool {
	for _, network := range p.nets {
		for _, special := range []string{"127.0.0.0/8", "169.254.0.0/16", "::1/128", "64:ff9b::7f00:1/128"} {
			_, inner, _ := net.ParseCIDR(network)
			_, outer, _ := net.ParseCIDR(special)
			innerBits, _ := inner.Mask.Size()
			outerBits, _ := outer.Mask.Size()
			if plainContains(network, addr) && plainContains(special, addr) && innerBits >= outerBits {
				return true
			}
		}
	}
	return asked == addr && slices.Contains(p.names, asked)
}

func plainSpecial(addr string) bool {
	ip := net.ParseIP(addr)
	return ip.IsLoopback() || ip.IsLinkLocalUnicast() || addr == "64:ff9b::7f00:1"
}

type plainPolicy struct {
	mine        bool // the identity has its role
	anywhere    bool
	allow, deny []plainPattern
}

type plainService struct {
	allowAll           bool
	allow, exclude     []plainPattern
	overrides          map[string]string
	policies           []plainPolicy
	anyone, permissive bool
}

// decide returns the addresses and whether it is only for being permissive; whether a name
// is worth looking up.
func (s *plainService) decide(host string, port int, resolve func(string) []string) (addrs []string, permissive, worth bool) {
	var mine []plainPolicy
	for _, p := range s.policies {
		if p.mine {
			mine = append(mine, p)
		}
	}
	if !s.anyone && len(mine) == 0 && !s.permissive {
		return nil, false, false
	}
	asked := strings.ToLower(strings.TrimSuffix(host, "."))
	to, overridden := asked, false
	if other, ok := s.overrides[asked]; ok {
		to, overridden = other, true
	}
	var all []string
	for _, addr := range resolve(to) {
		inner := addr
		if rest, ok := strings.CutPrefix(addr, "64:ff9b::"); ok {
			inner = map[string]string{"a00:1": "10.0.0.1", "7f00:1": "127.0.0.1"}[rest]
		}
		excluded := slices.ContainsFunc(s.exclude, func(p plainPattern) bool {
			return p.hasName(asked, to, addr, inner) && p.hasPort(port) && p.hasAddr(addr, inner)
		})
		written := overridden && net.ParseIP(to) != nil
		allowed := s.allowAll && (!plainSpecial(addr) || written) || slices.ContainsFunc(s.allow, func(p plainPattern) bool {
			return p.hasName(asked) && p.hasPort(port) && p.hasAddr(addr) && (!plainSpecial(addr) || written || p.opens(asked, addr))
		})
		if allowed && !excluded {
			all = append(all, addr)
		}
	}
	worth = s.allowAll || slices.ContainsFunc(s.allow, func(p plainPattern) bool { return p.hasName(asked) && p.hasPort(port) })
	if s.anyone {
		return all, false, worth
	}
	var passed []string
	for _, addr := range all {
		inner := addr
		if addr == "64:ff9b::a00:1" {
			inner = "10.0.0.1"
		} else if addr == "64:ff9b::7f00:1" {
			inner = "127.0.0.1"
		}
		denied, ok := false, false
		for _, p := range mine {
			for _, d := range p.deny {
				denied = denied || d.hasName(asked, to, addr, inner) && d.hasPort(port) && d.hasAddr(addr, inner)
			}
			ok = ok || p.anywhere
			for _, a := range p.allow {
				ok = ok || a.hasName(asked) && a.hasPort(port) && a.hasAddr(addr)
			}
		}
		if ok && !denied {
			passed = append(passed, addr)
		}
	}
	if len(passed) == 0 && s.permissive {
		return all, len(all) > 0, worth
	}
	return passed, false, worth
}

var (
	someNames     = []string{"a.x", "b.x", "a.y", "ab.x", "c.a.x", "10.0.0.1", "127.0.0.1", "::1", "64:ff9b::a00:1", "203.0.113.9"}
	someHostnames = []string{"a.x", "b.x", "*.x", "*b.x", "a.*", "a*", "*", "*.a*", "*x*", "10.0.0.1", "127.0.0.1", "::1"}
	someNets      = []string{"10.0.0.0/8", "10.0.0.1/32", "0.0.0.0/0", "127.0.0.0/8", "127.0.0.1/32", "169.254.0.0/16", "::/0", "::1/128", "64:ff9b::/96", "2001:db8::/32", "64:ff9b::7f00:1/128"}
	someAddrs     = []string{"10.0.0.1", "10.0.0.2", "127.0.0.1", "169.254.1.1", "::1", "64:ff9b::a00:1", "64:ff9b::7f00:1", "2001:db8::1", "192.0.2.1"}
)

func some[T any](r *rand.Rand, from []T, most int) []T {
	var list []T
	for range r.IntN(most + 1) {
		list = append(list, from[r.IntN(len(from))])
	}
	return list
}

func somePatterns(r *rand.Rand, least, most int) []plainPattern {
	var list []plainPattern
	for range least + r.IntN(most-least+1) {
		p := plainPattern{names: some(r, someHostnames, 2), nets: some(r, someNets, 2), ports: some(r, [][2]int{{22, 22}, {80, 443}, {1, 65535}}, 1)}
		if len(p.names)+len(p.nets)+len(p.ports) == 0 {
			p.names = []string{"*"}
		}
		list = append(list, p)
	}
	return list
}

func patternsOf(plain []plainPattern) []Pattern {
	var list []Pattern
	for _, p := range plain {
		q := Pattern{Hostnames: hostnames(p.names...), CIDRs: cidrs(p.nets...)}
		for _, r := range p.ports {
			q.Ports = append(q.Ports, PortRange{uint16(r[0]), uint16(r[1])})
		}
		list = append(list, q)
	}
	return list
}

func someService(r *rand.Rand) (plainService, *Service) {
	p := plainService{allowAll: r.IntN(4) == 0, exclude: somePatterns(r, 0, 2), overrides: map[string]string{}, anyone: r.IntN(3) == 0, permissive: r.IntN(3) == 0}
	if !p.allowAll {
		p.allow = somePatterns(r, 1, 3)
	}
	spec := Spec{Name: "s", AnyCertificate: p.anyone, Permissive: p.permissive, Backend: Backend{
		HTTPConnect: true, AllowAll: p.allowAll, AllowPatterns: patternsOf(p.allow), ExcludePatterns: patternsOf(p.exclude), DNSOverrides: map[string]Host{}}}
	for _, name := range some(r, someNames[:5], 2) {
		to := someNames[r.IntN(len(someNames))]
		p.overrides[name], spec.Backend.DNSOverrides[name] = to, must(ParseHost(to))
	}
	for range r.IntN(3) + 1 {
		if p.anyone {
			break
		}
		one := plainPolicy{mine: r.IntN(2) == 0, anywhere: r.IntN(2) == 0, deny: somePatterns(r, 0, 1)}
		if !one.anywhere {
			one.allow = somePatterns(r, 1, 2)
		}
		role := others
		if one.mine {
			role = staff
		}
		p.policies = append(p.policies, one)
		spec.Policies = append(spec.Policies, &Policy{Name: "p", Roles: []*Role{role}, Anywhere: one.anywhere, Allow: patternsOf(one.allow), Deny: patternsOf(one.deny)})
	}
	return p, must(New(spec))
}

func TestAgainstPlainReading(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 27))
	outcomes := map[Reason]int{}
	for range 20_000 {
		plain, service := someService(r)
		zone := map[string][]string{}
		for _, name := range someNames {
			if net.ParseIP(name) == nil {
				zone[name] = slices.Compact(some(r, someAddrs, 3))
				slices.Sort(zone[name])
				zone[name] = slices.Compact(zone[name])
				r.Shuffle(len(zone[name]), func(i, j int) { zone[name][i], zone[name][j] = zone[name][j], zone[name][i] })
			}
		}
		for range 4 {
			host, port := someNames[r.IntN(len(someNames))], []int{22, 80, 443, 8080}[r.IntN(4)]
			spelled := host
			if net.ParseIP(host) == nil && r.IntN(2) == 0 {
				spelled = strings.ToUpper(host) + "."
			}
			resolver := &answers{addrs: zone}
			route, v := service.Decide(t.Context(), &alice, spelled, uint16(port), resolver)
			outcomes[v.Reason]++
			want, permissive, worth := plain.decide(spelled, port, func(name string) []string {
				if net.ParseIP(name) != nil {
					return []string{name}
				}
				return zone[name]
			})
			var got []string
			for _, a := range route.Addrs {
				if a.Port() != uint16(port) {
					t.Errorf("port %d became %v", port, a)
				}
				got = append(got, a.Addr().String())
			}
			if !slices.Equal(got, want) || v.Allowed() != (len(want) > 0) || v.Permissive && v.Allowed() != permissive || permissive && !v.Permissive {
				t.Fatalf("%s port %d of %v:\n%+v\n got %v, %v\nwant %v, permissive %t", host, port, zone, plain, v, got, want, permissive)
			}
			if len(resolver.asked) > 1 || len(resolver.asked) == 1 && !worth {
				t.Fatalf("%s port %d: looked up %q\n%+v", host, port, resolver.asked, plain)
			}
		}
	}
	for _, reason := range []Reason{Permitted, NoRole, HostNotAllowed, PortNotAllowed, Excluded, AddressNotAllowed, AddressExcluded, AddressReserved, PolicyDenied, PolicyNotAllowed, NameNotFound} {
		if outcomes[reason] < 500 {
			t.Errorf("only %d flows were %v", outcomes[reason], reason)
		}
	}
}

// BenchmarkDecide is a flow against a thousand patterns, of which the last allows it.
func BenchmarkDecide(b *testing.B) {
	var patterns []Pattern
	for i := range 999 {
		patterns = append(patterns, Pattern{hostnames(fmt.Sprintf("h%d.example.com", i), fmt.Sprintf("*.d%d.example.com", i)), cidrs(fmt.Sprintf("10.%d.%d.0/24", i/250, i%250)), ports(443, 8443)})
	}
	patterns = append(patterns, Pattern{hostnames("*.last.example.com"), cidrs("192.0.2.0/24"), ports(443)})
	spec := collection(patterns...)
	spec.AnyCertificate, spec.Policies = false, []*Policy{{Name: "p", Roles: []*Role{others, staff}, Anywhere: true}}
	s := must(New(spec))
	resolver := constant{netip.MustParseAddr("192.0.2.1")}
	b.ReportAllocs()
	for b.Loop() {
		if _, v := s.Decide(b.Context(), &alice, "db.last.example.com", 443, resolver); !v.Allowed() {
			b.Fatal(v)
		}
	}
}

type constant []netip.Addr

func (c constant) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) { return c, nil }
