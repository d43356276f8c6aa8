package filter

// Presence is whether the host is on a network.
type Presence uint8

const (
	Away    Presence = iota
	Unknown          // nobody could look
	Here
)

// On returns the Set for a host that is on the networks for which on says so; a rule
// with another Network never holds in it. In the Set that NewSet makes, no rule with a
// Network holds, so that a rule is not in force where nobody looked. Both share the
// rules, so that a Decision.Rule of one is one of the other's.
func (s *Set) On(on func(network string) bool) *Set {
	return s.At(func(network string) Presence {
		if on(network) {
			return Here
		}
		return Away
	})
}

// At is On where it may not be known whether the host is on a network. A rule for such
// a network is in force unless it may send in clear: to tunnel or to block more than
// was asked for is only inconvenient.
func (s *Set) At(presence func(network string) Presence) *Set {
	if s == nil {
		return nil
	}
	at := *s
	at.leaveOut(func(r *Rule) bool {
		switch presence(r.Network) {
		case Here:
			return false
		case Unknown:
			return r.MayClear()
		}
		return true
	})
	return &at
}

// leaveOut notes which rules are for networks that the host is not on.
func (s *Set) leaveOut(away func(*Rule) bool) {
	s.away, s.names.away = nil, nil
	for i := range s.rules {
		if r := &s.rules[i]; r.Network != "" && away(r) {
			if s.away == nil {
				s.away = make([]bool, len(s.rules))
			}
			s.away[i] = true
		}
	}
	if s.away == nil {
		return
	}
	s.names.away = make([]bool, len(s.places))
	for i, place := range s.places {
		s.names.away[i] = s.away[place]
	}
}

// MayClear tells whether a flow that r decides may go out in clear.
func (r *Rule) MayClear() bool {
	return r.Action == Direct || r.Action.secures() && r.FallbackToPlain
}
