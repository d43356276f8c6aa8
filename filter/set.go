package filter

import (
	"errors"
	"fmt"
)

// Set is a list of rules and the action for flows that none of them matches. It
// does not change once made and is safe for concurrent use; another configuration
// is another Set. A nil Set, and the zero one, block everything.
type Set struct {
	list
	def Action

	// What Pseudo goes by: of the rules that have a say there the conditions on the
	// name; and their places among the rules.
	names  list
	places []int
}

// NewSet makes a Set of rules, in the order in which they are tried. Rules without
// a number are given their place in the list, from 1. rules is copied.
//
// Its error joins a *RuleError for everything that is wrong, in the order of the
// rules; the classes are ErrAction, ErrAddress, ErrNoServer, ErrOwner, ErrPorts.
// def may be TUNNEL: through what is then for the caller to say.
func NewSet(rules []Rule, def Action) (*Set, error) {
	s := &Set{list: list{rules: make([]Rule, len(rules))}, def: def}
	var errs []error
	for i := range rules {
		r := rules[i].normal()
		if r.Number == 0 {
			r.Number = i + 1
		}
		for _, err := range rules[i].errs() {
			errs = append(errs, &RuleError{Rule: r.Number, Source: r.Source, Err: err})
		}
		s.rules[i] = r
	}
	if !def.known() {
		errs = append(errs, fmt.Errorf("default action: %w %v", ErrAction, def))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for i := range s.rules {
		if r := &s.rules[i]; r.asksForPseudo() || r.takesName() {
			s.names.rules = append(s.names.rules, Rule{Host: r.Host})
			s.places = append(s.places, i)
		}
	}
	s.index, s.names.index = newIndex(s.rules), newIndex(s.names.rules)
	s.leaveOut(func(*Rule) bool { return true })
	return s, nil
}

// InForce tells whether the rule of that place in Rules is, where the host is now.
func (s *Set) InForce(i int) bool { return s.inForce(i) }

// Decide says what becomes of f. It allocates nothing, and does no more than f.Program does.
//
// The first rule decides whose given conditions all hold:
//
//   - Network: the host is on it, see On.
//   - Ports: the port of f is in one of the ranges.
//   - Host: the pattern matches one of the names of f, or the address as text where
//     f has none. Address and Prefix are not looked at then.
//   - Address, Prefix: over the address of f, without its zone; an IPv4 address
//     mapped into IPv6 is IPv4.
//   - Users, Groups: the owner, and one of the owner's groups.
//   - Application: over the path of the executable, or its base name. It does not
//     hold where the program is not known.
//
// Rules come before names: where f has several names, each rule is held against
// all of them, the most recent one first, before the next rule is tried. Where no
// rule matches, the default action holds.
func (s *Set) Decide(f *Flow) Decision {
	if s == nil {
		return Decision{}
	}
	place, name := s.first(f)
	return s.decision(f, place, name)
}

// decision is the one of the rule at place, of the default where place is below zero.
func (s *Set) decision(f *Flow, place int, name string) Decision {
	if place >= 0 {
		r := &s.rules[place]
		return Decision{Action: r.Action, Rule: r, Name: name}
	}
	d := Decision{Action: s.def}
	if len(f.Names) > 0 {
		d.Name = f.Names[0]
	}
	return d
}

// Explain decides as Decide does, and calls step for each rule up to the one that
// decides, in their order, with what became of it. Decide does not look at each: it
// leaves out those that its index says cannot match. It asks f.Program where Decide
// does, and no more often.
func (s *Set) Explain(f *Flow, step func(Step)) Decision {
	if s == nil {
		return Decision{}
	}
	m := newMatcher(f)
	for i := range s.rules {
		r := &s.rules[i]
		failed, name := Network, ""
		if s.InForce(i) {
			failed, name = m.fails(r)
		}
		if failed == 0 {
			step(Step{Rule: r, Matched: true})
			return s.decision(f, i, name)
		}
		step(m.failure(r, failed))
	}
	return s.decision(f, -1, "")
}

// Pseudo tells whether a query for name is to be answered with an address of the
// pool, so that the name travels to the SSH server unresolved.
//
// When a name is asked for, neither port nor program of the flows to come are
// known, nor whose they are. So it is the first rule that may tunnel a flow to
// this name with pseudo-ip that says yes, whatever its other conditions, unless an
// earlier rule takes every flow to the name: one that holds for this name and has
// no condition on ports, owner or program. An earlier rule by address takes none,
// unless it is for every address, as the name has no address yet. A rule asks for
// pseudo addresses only if it is by name, that is, has no address condition
// (ssh-broker-config(5): pseudo-ip is in force when ip-address is empty), and only
// with TUNNEL: the default action never does.
//
// A flow to a pool address is then decided like every other, by its name; the rule
// that decides it need not be the one that asked.
func (s *Set) Pseudo(name string) bool {
	if s == nil {
		return false
	}
	place, _ := s.names.first(&Flow{Names: []string{name}})
	return place >= 0 && s.rules[s.places[place]].asksForPseudo()
}

// asksForPseudo tells whether r wants pseudo addresses for its names.
func (r *Rule) asksForPseudo() bool {
	return r.Action == Tunnel && r.PseudoIP && (r.Host != nil || r.Address == nil && !r.byAddress())
}

// takesName tells whether r takes every flow to a name that it holds for.
func (r *Rule) takesName() bool {
	return (r.Host != nil || !r.byAddress()) && everyPort(r.Ports) && r.Anyone()
}

// byAddress tells whether the address condition of r leaves some addresses out.
func (r *Rule) byAddress() bool {
	return r.Prefix.IsValid() || r.Address != nil && !r.Address.Any()
}

// Rules returns the rules in the order in which they are tried. They belong to the
// Set: Decision.Rule points among them. They must not be changed.
func (s *Set) Rules() []Rule {
	if s == nil {
		return nil
	}
	return s.rules
}

// Default returns the action for flows that no rule matches.
func (s *Set) Default() Action {
	if s == nil {
		return Block
	}
	return s.def
}

// Tunnels tells whether some flows are meant to be carried by an SSH server. FTP
// actions count: their flows must not go in clear either.
func (s *Set) Tunnels() bool {
	if s == nil {
		return false
	}
	for i := range s.rules {
		if s.rules[i].Action.secures() {
			return true
		}
	}
	return s.def.secures()
}

// NeedsProgram tells whether a rule has a condition on the program.
func (s *Set) NeedsProgram() bool {
	if s == nil {
		return false
	}
	for i := range s.rules {
		if s.rules[i].Application != nil {
			return true
		}
	}
	return false
}
