package policy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Resolver looks names up; *net.Resolver is one. Decide asks it at most once, with the
// network "ip" and with a dot at the end of the name, so that no search list makes another
// name of it, which no pattern was held against.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Route is where a flow goes that was let through.
type Route struct {
	Asked string // the host as it was asked for, in its one spelling
	Host  string // the host after dns_overrides: what was looked up
	Port  uint16

	// Addrs are the addresses to dial, in the resolver's order, and no others may be:
	// Host is not to be looked up again.
	Addrs []netip.AddrPort

	Rule string // what of the service allows the first of them: "allow_patterns[0]", "target", ...
}

// maxAnswers bounds the addresses of one name; what comes after them is not dialled.
const maxAnswers = 64

// destination is what a flow is for, before its name is looked up.
type destination struct {
	asked, host Host // before and after dns_overrides
	port        uint16
	written     bool // host is an address of the configuration's, not of the client's
}

// Decide says where a flow of an identity goes: host and port as the client gave them, or
// "" and 0 for the target of a service that has one. The verdict may refuse; the Route is
// for one that does not. It asks r for a name that some pattern may allow, and for no other;
// ctx ends the waiting for that.
func (s *Service) Decide(ctx context.Context, id *Identity, host string, port uint16, r Resolver) (Route, Verdict) {
	admitted, policies := s.admit(id)
	if !admitted.Allowed() {
		return Route{}, admitted
	}
	to, refused := s.destination(host, port)
	if refused.Reason != Permitted {
		return Route{}, refused
	}
	allow, refused := s.candidates(&to)
	if refused.Reason != Permitted {
		return Route{}, refused
	}
	byPolicy := admitted
	if len(policies) > 0 {
		byPolicy = before(policies, &to)
		byPolicy.Permissive = s.Permissive
	}
	if !byPolicy.Allowed() {
		return Route{}, byPolicy
	}
	addrs, refused := lookup(ctx, to.host, r)
	if refused.Reason != Permitted {
		return Route{}, refused
	}

	route := Route{Asked: to.asked.String(), Host: to.host.String(), Port: to.port}
	var first Verdict // the refusal of the first address that the service's patterns refuse
	for _, addr := range addrs {
		name, refused := s.judge(&to, addr, allow)
		if refused.Reason != Permitted {
			if first.Reason == Undecided {
				first = refused
			}
			continue
		}
		if route.Rule == "" {
			route.Rule = name
		}
		route.Addrs = append(route.Addrs, netip.AddrPortFrom(addr, to.port))
	}
	if len(route.Addrs) == 0 {
		return Route{}, first
	}
	if byPolicy.Reason != Permitted || len(policies) == 0 {
		return route, byPolicy
	}
	passed, byPolicy := after(policies, &to, route.Addrs)
	if len(passed) > 0 {
		route.Addrs = passed
		route.Rule, _ = s.judge(&to, passed[0].Addr(), allow)
		return route, byPolicy
	}
	byPolicy.Permissive = s.Permissive
	if !byPolicy.Allowed() {
		return Route{}, byPolicy
	}
	return route, byPolicy
}

var permitted = Verdict{Reason: Permitted}

// destination reads what the client asked for and applies dns_overrides.
func (s *Service) destination(host string, port uint16) (destination, Verdict) {
	to := destination{port: port}
	if s.Backend.Target.Port != 0 && host == "" && port == 0 {
		to.asked, to.port = s.Backend.Target.Host, s.Backend.Target.Port
	} else {
		if port == 0 {
			return to, Verdict{Reason: BadPort, Detail: "port 0"}
		}
		asked, err := ParseHost(host)
		if err != nil {
			return to, Verdict{Reason: BadHost, Detail: err.Error()}
		}
		to.asked = asked
		if s.Backend.Target.Port != 0 && (Target{asked, port}) != s.Backend.Target {
			return to, Verdict{Reason: NotTarget, Detail: fmt.Sprintf("the service %s leads to one destination, which %s port %d is not", s.Name, asked, port)}
		}
	}
	to.host = to.asked
	to.written = s.Backend.Target.Port != 0 && to.host.addr.IsValid()
	if other, ok := s.Backend.DNSOverrides[to.asked.name]; ok {
		to.host = other
		to.written = other.addr.IsValid()
	}
	return to, permitted
}

// candidates returns the rules of the service that allow the destination, as far as that
// can be said without its address.
func (s *Service) candidates(to *destination) ([]*rule, Verdict) {
	for i := range s.exclude {
		if e := &s.exclude[i]; len(e.CIDRs) == 0 && e.covers(to) {
			return nil, Verdict{Reason: Excluded, Rule: e.name, Detail: fmt.Sprintf("%s port %d is excluded", to.asked, to.port)}
		}
	}
	var found []*rule
	hostAllowed := false
	for i := range s.allow {
		a := &s.allow[i]
		if !a.any && !a.matchHost(to.asked) {
			continue
		}
		hostAllowed = true
		if a.any || a.matchPort(to.port) {
			found = append(found, a)
		}
	}
	switch {
	case !hostAllowed:
		return nil, Verdict{Reason: HostNotAllowed, Detail: fmt.Sprintf("no pattern of the service %s has the host %s", s.Name, to.asked)}
	case len(found) == 0:
		return nil, Verdict{Reason: PortNotAllowed, Detail: fmt.Sprintf("no pattern of the service %s has the host %s with port %d", s.Name, to.asked, to.port)}
	}
	return found, permitted
}

// covers tells whether the parts for host and port hold, for exclusions: the host as it was
// asked for or as dns_overrides has it.
func (r *rule) covers(to *destination) bool {
	return r.matchPort(to.port) && (r.matchHost(to.asked) || to.host != to.asked && r.matchHost(to.host))
}

// refuses tells whether an exclusion covers an address that would be dialled: its hostnames
// cover the names that led there, and an address among them whatever name leads to it.
func (r *rule) refuses(to *destination, addr netip.Addr) bool {
	inner := embedded(addr)
	return r.matchPort(to.port) && r.matchEither(addr) &&
		(r.covers(to) || r.matchHost(Host{addr: addr}) || inner.IsValid() && r.matchHost(Host{addr: inner}))
}

// judge decides on one address, by the service's patterns, and returns the name of the rule
// that allows it.
func (s *Service) judge(to *destination, addr netip.Addr, allow []*rule) (string, Verdict) {
	for i := range s.exclude {
		if e := &s.exclude[i]; e.refuses(to, addr) {
			return "", Verdict{Reason: AddressExcluded, Rule: e.name, Detail: fmt.Sprintf("%s is excluded", to.at(addr))}
		}
	}
	within, what := reservedRange(addr)
	if s.Self.is(netip.AddrPortFrom(addr, to.port)) {
		within, what = netip.PrefixFrom(addr, addr.BitLen()), "the gateway itself"
	}
	matched := false
	for _, a := range allow {
		if !a.any && !a.matchAddr(addr) {
			continue
		}
		matched = true
		// Of names only the address itself matches an address that was asked for.
		literal := to.asked.addr == addr && len(a.Hostnames) > 0
		if !within.IsValid() || to.written || literal || a.writesDown(addr, within) {
			return a.name, permitted
		}
	}
	if matched {
		return "", Verdict{Reason: AddressReserved, Detail: fmt.Sprintf("%s is %s, which no pattern of the service %s writes down", to.at(addr), what, s.Name)}
	}
	return "", Verdict{Reason: AddressNotAllowed, Detail: fmt.Sprintf("no pattern of the service %s has %s", s.Name, to.at(addr))}
}

// at is the address for words, with the name that led to it.
func (to *destination) at(addr netip.Addr) string {
	if to.asked.addr == addr {
		return addr.String()
	}
	return fmt.Sprintf("%s (of %s)", addr, to.asked)
}

// before decides by the policies that are for the identity, as far as that can be said
// without an address: it refuses only what is refused whatever the address is.
func before(policies []*compiledPolicy, to *destination) Verdict {
	for _, p := range policies {
		for i := range p.deny {
			if d := &p.deny[i]; len(d.CIDRs) == 0 && d.covers(to) {
				return Verdict{Reason: PolicyDenied, Rule: d.name, Detail: fmt.Sprintf("%s port %d is denied", to.asked, to.port)}
			}
		}
	}
	for _, p := range policies {
		if slices.ContainsFunc(p.allow, func(a rule) bool { return a.any || a.matchHost(to.asked) && a.matchPort(to.port) }) {
			return permitted
		}
	}
	return notAllowed(policies, fmt.Sprintf("%s port %d", to.asked, to.port))
}

// after keeps the addresses that the policies let through, and says what lets the first of
// them through; where none is left, what refused the first.
func after(policies []*compiledPolicy, to *destination, addrs []netip.AddrPort) ([]netip.AddrPort, Verdict) {
	var passed []netip.AddrPort
	var v Verdict
	for _, a := range addrs {
		one := judgePolicies(policies, to, a.Addr())
		if one.Reason == Permitted {
			if passed == nil {
				v = one
			}
			passed = append(passed, a)
		}
		if v.Reason == Undecided {
			v = one
		}
	}
	return passed, v
}

func judgePolicies(policies []*compiledPolicy, to *destination, addr netip.Addr) Verdict {
	for _, p := range policies {
		for i := range p.deny {
			if d := &p.deny[i]; d.refuses(to, addr) {
				return Verdict{Reason: PolicyDenied, Rule: d.name, Detail: fmt.Sprintf("%s is denied", to.at(addr))}
			}
		}
	}
	for _, p := range policies {
		for i := range p.allow {
			if a := &p.allow[i]; a.any || a.matchHost(to.asked) && a.matchPort(to.port) && a.matchAddr(addr) {
				return Verdict{Reason: Permitted, Rule: a.name}
			}
		}
	}
	return notAllowed(policies, to.at(addr))
}

func notAllowed(policies []*compiledPolicy, what string) Verdict {
	names := make([]string, len(policies))
	for i, p := range policies {
		names[i] = p.Name
	}
	return Verdict{Reason: PolicyNotAllowed, Rule: policies[0].name, Detail: fmt.Sprintf("no allow rule of %s has %s", strings.Join(names, ", "), what)}
}

// lookup returns the addresses of a host in their one spelling, each once.
func lookup(ctx context.Context, host Host, r Resolver) ([]netip.Addr, Verdict) {
	if host.addr.IsValid() {
		return []netip.Addr{host.addr}, permitted
	}
	if r == nil {
		return nil, Verdict{Reason: LookupFailed, Detail: "there is no resolver"}
	}
	answers, err := r.LookupNetIP(ctx, "ip", host.name+".")
	if err != nil {
		return nil, lookupFailed(host, err)
	}
	var addrs []netip.Addr
	for _, a := range answers {
		a = a.Unmap()
		if a.IsValid() && a.Zone() == "" && !slices.Contains(addrs, a) && len(addrs) < maxAnswers {
			addrs = append(addrs, a)
		}
	}
	if len(addrs) == 0 {
		return nil, Verdict{Reason: NameNotFound, Detail: fmt.Sprintf("%s has no address", host)}
	}
	return addrs, permitted
}

// lookupFailed leaves out which server was asked: that is the gateway's own business.
func lookupFailed(host Host, err error) Verdict {
	dns, _ := errors.AsType[*net.DNSError](err)
	switch {
	case dns != nil && dns.IsNotFound:
		return Verdict{Reason: NameNotFound, Detail: fmt.Sprintf("%s was not found", host)}
	case dns != nil && dns.IsTimeout, errors.Is(err, context.DeadlineExceeded):
		return Verdict{Reason: LookupTimeout, Detail: fmt.Sprintf("looking up %s took too long", host)}
	case errors.Is(err, context.Canceled):
		return Verdict{Reason: LookupFailed, Detail: fmt.Sprintf("looking up %s was given up", host)}
	}
	return Verdict{Reason: LookupFailed, Detail: fmt.Sprintf("looking up %s failed", host)}
}
