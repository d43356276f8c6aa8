package policy

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// What the tests of this package make services of.

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func hostnames(list ...string) []HostPattern {
	var all []HostPattern
	for _, s := range list {
		all = append(all, must(ParseHostPattern(s)))
	}
	return all
}

func cidrs(list ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func ports(list ...uint16) []PortRange {
	var all []PortRange
	for _, p := range list {
		all = append(all, PortRange{p, p})
	}
	return all
}

// collection is a service whose clients name the destination, for any certificate.
func collection(allow ...Pattern) Spec {
	return Spec{Name: "collection", AnyCertificate: true, Backend: Backend{HTTPConnect: true, AllowPatterns: allow}}
}

// fixed is a service with a target, for any certificate.
func fixed(host string, port uint16) Spec {
	return Spec{Name: "fixed", AnyCertificate: true, Backend: Backend{Target: Target{must(ParseHost(host)), port}}}
}

var alice = Identity{Emails: []string{"alice@example.com"}, URIs: []string{"spiffe://example.com/team/a"}, Groups: []string{"Example Ltd", "ops"}, Issuer: "CN=Client CA"}

// answers is a resolver that notes down what it is asked.
type answers struct {
	addrs map[string][]string
	err   error
	asked []string
}

func (a *answers) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	a.asked = append(a.asked, network+" "+host)
	var list []netip.Addr
	for _, s := range a.addrs[strings.TrimSuffix(host, ".")] {
		list = append(list, netip.MustParseAddr(s))
	}
	return list, a.err
}

// decide asks the service of a spec for alice.
func decide(t *testing.T, spec Spec, host string, port uint16, r Resolver) (Route, Verdict) {
	t.Helper()
	s, err := New(spec)
	if err != nil {
		t.Fatal(err)
	}
	return s.Decide(t.Context(), &alice, host, port, r)
}

// dialled writes the addresses of a route as text.
func dialled(r Route) []string {
	var list []string
	for _, a := range r.Addrs {
		list = append(list, a.String())
	}
	return list
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}
