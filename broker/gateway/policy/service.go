package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Spec is what a service is made of.
type Spec struct {
	Name        string   // required; unique in a gateway
	Description string   // for people
	Kind        string   // what speaks behind it: tcp, http, rdp, kubernetes, ...; for clients only
	ServerNames []string // of TLS (SNI) by which clients choose it; lower case, A-labels
	Port        uint16   // of a listener of its own; 0 where it has none
	Client      Client   // what a client should set up for it
	Backend     Backend  // where its flows go

	Policies       []*Policy // who may use it; empty: nobody, but see AnyCertificate
	AnyCertificate bool      // every verified identity may; Policies is empty then
	Permissive     bool      // what the policies refuse is only logged

	Self Self // the gateway's own listeners
}

// Client is what a service suggests for its port at the client's side.
type Client struct {
	Port          uint16 // 0: any
	AllowOverride bool   // the user may choose another one
}

// Backend says where the flows of a service may go: to Target, or where the client's
// CONNECT asks for.
type Backend struct {
	Target      Target // zero with HTTPConnect
	HTTPConnect bool   // the client names the destination

	// DNSOverrides replaces a name that was asked for by another one or by an address,
	// once: what it leads to is not replaced again.
	DNSOverrides map[string]Host

	// Whitelist is the old form of AllowPatterns: names, with any port. Where it is not
	// empty AllowPatterns is ignored.
	Whitelist []HostPattern

	// AllowPatterns is where flows may go. Empty it is nowhere, unless AllowAll is set;
	// for a Target it is that target.
	AllowPatterns   []Pattern
	AllowAll        bool
	ExcludePatterns []Pattern // and where never
}

// Target is one fixed destination.
type Target struct {
	Host Host
	Port uint16
}

// Self tells the gateway's own listeners from other destinations.
type Self struct {
	// Listeners are where the gateway listens. An unspecified address stands for all of
	// the machine's.
	Listeners []netip.AddrPort

	// Local tells whether an address is one of this machine. It is asked only for the
	// port of a listener with an unspecified address; nil means that all are.
	Local func(netip.Addr) bool
}

func (s *Self) is(to netip.AddrPort) bool {
	return slices.ContainsFunc(s.Listeners, func(l netip.AddrPort) bool {
		switch {
		case l.Port() != to.Port():
			return false
		case l.Addr().IsUnspecified():
			return s.Local == nil || s.Local(to.Addr())
		}
		return l.Addr().Unmap() == to.Addr()
	})
}

// Service decides who may use it and where each flow may go. Make one with New; the zero
// Service refuses everything. It is safe for concurrent use.
type Service struct {
	Spec // read only, with all that it refers to

	allow, exclude []rule
	policies       []compiledPolicy
}

// rule is a pattern with the name that a Verdict calls it by.
type rule struct {
	*Pattern
	name string
	any  bool // the pattern is empty and covers everything
}

type compiledPolicy struct {
	*Policy
	name        string
	allow, deny []rule
}

// New makes a service. It refuses a Spec that contradicts itself or that lets nobody use it,
// and keeps the Spec.
func New(spec Spec) (*Service, error) {
	if err := spec.check(); err != nil {
		return nil, fmt.Errorf("service %q: %w", spec.Name, err)
	}
	b := &spec.Backend
	s := &Service{Spec: spec}
	switch {
	case len(b.Whitelist) > 0:
		for i, entry := range b.Whitelist {
			s.allow = append(s.allow, rule{Pattern: &Pattern{Hostnames: []HostPattern{entry}}, name: fmt.Sprintf("whitelist[%d]", i)})
		}
	case b.AllowAll:
		s.allow = []rule{everything("allow_all")}
	case len(b.AllowPatterns) == 0 && !b.HTTPConnect:
		s.allow = []rule{everything("target")}
	default:
		s.allow = rules("allow_patterns", b.AllowPatterns)
	}
	s.exclude = rules("exclude_patterns", b.ExcludePatterns)
	for _, p := range spec.Policies {
		c := compiledPolicy{Policy: p, name: "policy " + p.Name}
		if p.Anywhere {
			c.allow = []rule{everything(c.name)}
		} else {
			c.allow = rules(c.name+": allow", p.Allow)
		}
		c.deny = rules(c.name+": deny", p.Deny)
		s.policies = append(s.policies, c)
	}
	return s, nil
}

func everything(name string) rule { return rule{Pattern: &Pattern{}, name: name, any: true} }

func rules(name string, patterns []Pattern) []rule {
	list := make([]rule, len(patterns))
	for i := range patterns {
		list[i] = rule{Pattern: &patterns[i], name: fmt.Sprintf("%s[%d]", name, i)}
	}
	return list
}

func (spec *Spec) check() error {
	b := &spec.Backend
	switch {
	case spec.Name == "":
		return errors.New("it has no name")
	case b.HTTPConnect && b.Target != (Target{}):
		return errors.New("it has a target, and lets the client name the destination")
	case !b.HTTPConnect && (b.Target.Host.IsZero() || b.Target.Port == 0):
		return errors.New("it has no target, and does not let the client name the destination")
	case b.AllowAll && len(b.AllowPatterns)+len(b.Whitelist) > 0:
		return errors.New("it allows all destinations, and some")
	case b.HTTPConnect && !b.AllowAll && len(b.AllowPatterns)+len(b.Whitelist) == 0:
		return errors.New("it allows no destination")
	case spec.AnyCertificate && len(spec.Policies) > 0:
		return errors.New("it has a policy, and admits any certificate")
	case !spec.AnyCertificate && len(spec.Policies) == 0:
		return errors.New("it has no policy, so nobody could use it")
	}
	for name, host := range b.DNSOverrides {
		if parsed, err := ParseHost(name); err != nil || parsed.name != name || host.IsZero() {
			return fmt.Errorf("its override of %q is not from a name in its one spelling to a host", name)
		}
	}
	for _, list := range [][]Pattern{b.AllowPatterns, b.ExcludePatterns} {
		for i := range list {
			if err := list[i].Check(); err != nil {
				return err
			}
		}
	}
	for _, p := range spec.Policies {
		if p == nil {
			return errors.New("it has a policy that is nil")
		}
		if err := p.Check(); err != nil {
			return err
		}
	}
	return nil
}

// Admit decides whether an identity may use the service at all. It is for the handshake, to
// choose and to list services; where its flows may go is for Decide.
func (s *Service) Admit(id *Identity) Verdict {
	v, _ := s.admit(id)
	return v
}

// admit also returns the policies that are for the identity; nil where it is admitted
// without one.
func (s *Service) admit(id *Identity) (Verdict, []*compiledPolicy) {
	switch {
	case id.Name() == "":
		return Verdict{Reason: NoIdentity, Detail: "no certificate that identifies somebody"}, nil
	case s == nil || s.allow == nil:
		return Verdict{Reason: NoPolicy, Detail: "the service is not set up"}, nil
	case len(s.policies) == 0 && s.AnyCertificate:
		return Verdict{Reason: Permitted, Rule: "any_certificate"}, nil
	case len(s.policies) == 0:
		return Verdict{Reason: NoPolicy, Detail: "the service has no policy"}, nil
	}
	var with []*compiledPolicy
	v := Verdict{
		Reason: NoRole, Permissive: s.Permissive,
		Detail: fmt.Sprintf("%s has no role that the service %s is for", id.Name(), s.Name),
	}
	for i := range s.policies {
		p := &s.policies[i]
		role := p.role(id)
		if role == nil {
			continue
		}
		if with == nil {
			v = Verdict{Reason: Permitted, Rule: p.name, Detail: "role " + role.Name}
		}
		with = append(with, p)
	}
	return v, with
}
