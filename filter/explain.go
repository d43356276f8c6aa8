package filter

import (
	"fmt"
	"strconv"
	"strings"
)

// Condition is one of the conditions of a rule.
type Condition uint8

// The conditions. The zero Condition is none of them.
const (
	Application Condition = iota + 1
	Host
	Address
	Ports
	Users
	Groups
	Network
)

// conditionNames are the attributes of a rule that give the conditions.
var conditionNames = [...]string{"none", "application", "host", "ip-address", "ports", "users", "groups", "network-id"}

// String returns the attribute of the rule file that gives the condition.
func (c Condition) String() string {
	if int(c) < len(conditionNames) {
		return conditionNames[c]
	}
	return fmt.Sprintf("Condition(%d)", uint8(c))
}

// Step is what became of one rule in the course of a decision.
type Step struct {
	Rule    *Rule
	Matched bool

	// The first condition that failed, in the order in which they are looked at,
	// which is not the order of the attributes. Zero where Matched.
	Failed  Condition
	Value   string // what the flow has there, "" where it is not known
	Pattern string // what the rule asks for
}

// failure returns the step that says why a rule does not match.
func (m *matcher) failure(r *Rule, failed Condition) Step {
	s := Step{Rule: r, Failed: failed}
	switch failed {
	case Network:
		s.Pattern = r.Network
	case Ports:
		s.Value, s.Pattern = strconv.Itoa(int(m.flow.Port)), portsText(r.Ports)
	case Host:
		s.Value, s.Pattern = strings.Join(m.flow.Names, ", "), r.Host.String()
		if len(m.flow.Names) == 0 {
			s.Value = string(m.addressText())
		}
	case Address:
		s.Value = string(m.addressText())
		if r.Address != nil {
			s.Pattern = r.Address.String()
		} else {
			s.Pattern = r.Prefix.String()
		}
	case Users:
		s.Value, s.Pattern = m.flow.User, strings.Join(r.Users, ",")
	case Groups:
		s.Value, s.Pattern = strings.Join(m.flow.Groups, ","), strings.Join(r.Groups, ",")
	case Application:
		s.Value, s.Pattern = m.program(), r.Application.String()
	}
	return s
}
