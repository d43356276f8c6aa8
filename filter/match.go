package filter

import (
	"net/netip"
	"slices"
	"strings"

	"sshbroker/filter/egrep"
)

// matcher holds one flow against rules. It keeps what more than one rule may ask
// for: the program, and the address as text.
type matcher struct {
	flow *Flow
	addr netip.Addr // of flow, without a zone, and as IPv4 where it is IPv4

	text    [len("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255")]byte
	textLen int // of addr as text, which is in text; 0: nobody asked for it

	exe      string
	exeKnown bool // Flow.Program has been asked
}

func newMatcher(f *Flow) matcher {
	return matcher{flow: f, addr: f.Addr.Unmap().WithZone("")}
}

// fails returns the first condition of r that does not hold, zero where all hold,
// and the name by which Host holds. The conditions that cost least come first;
// the program, for which /proc may have to be searched, comes last.
func (m *matcher) fails(r *Rule) (failed Condition, name string) {
	failed, name = m.failsAnyway(r)
	if failed == 0 && r.Application != nil && !m.matchProgram(r.Application) {
		return Application, ""
	}
	return failed, name
}

// failsAnyway is fails for a program that r is for, whatever that is.
func (m *matcher) failsAnyway(r *Rule) (failed Condition, name string) {
	if !inPorts(r.Ports, m.flow.Port) {
		return Ports, ""
	}
	if len(m.flow.Names) > 0 {
		name = m.flow.Names[0]
	}
	switch {
	case r.Host != nil:
		i := m.matchHost(r.Host)
		if i < 0 {
			return Host, ""
		}
		if len(m.flow.Names) > 0 {
			name = m.flow.Names[i]
		}
	case r.Address != nil:
		if !m.matchAddress(r.Address) {
			return Address, ""
		}
	case r.Prefix.IsValid():
		if !r.Prefix.Contains(m.addr) {
			return Address, ""
		}
	}
	if len(r.Users) > 0 && !slices.Contains(r.Users, m.flow.User) {
		return Users, ""
	}
	if len(r.Groups) > 0 && !shareOne(r.Groups, m.flow.Groups) {
		return Groups, ""
	}
	return 0, name
}

// Anyone tells whether r leaves no flow out for who makes it: it has no condition but
// network, host, address and ports. Only such a rule can be decided by a packet alone.
func (r *Rule) Anyone() bool {
	return len(r.Users) == 0 && len(r.Groups) == 0 && r.Application == nil
}

// matchHost returns the index of the first name that p matches, below zero where
// it matches none. Where no name is known it is the address that has to match, so
// that a flow to a literal address does not slip past a rule for every host.
func (m *matcher) matchHost(p *egrep.Pattern) int {
	if len(m.flow.Names) > 0 {
		return slices.IndexFunc(m.flow.Names, p.Match)
	}
	if m.matchAddress(p) {
		return 0
	}
	return -1
}

func (m *matcher) matchAddress(p *egrep.Pattern) bool {
	return m.addr.IsValid() && p.MatchBytes(m.addressText())
}

// addressText returns the address as text, nothing where it is not valid.
func (m *matcher) addressText() []byte {
	if m.textLen == 0 && m.addr.IsValid() {
		m.textLen = len(m.addr.AppendTo(m.text[:0]))
	}
	return m.text[:m.textLen]
}

func (m *matcher) matchProgram(p *egrep.Pattern) bool {
	exe := m.program()
	return exe != "" && (p.Match(exe) || p.Match(exe[strings.LastIndexByte(exe, '/')+1:]))
}

func (m *matcher) program() string {
	if !m.exeKnown && m.flow.Program != nil {
		m.exe = m.flow.Program()
	}
	m.exeKnown = true
	return m.exe
}

func shareOne(a, b []string) bool {
	for _, x := range a {
		if slices.Contains(b, x) {
			return true
		}
	}
	return false
}
