package filter

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// outcomes are the fields of Rule that say what becomes of a flow, or what a rule is
// called. All others are conditions.
var outcomes = names("Number", "Source", "Action", "Profile", "Destination", "DestinationPort", "Username", "UsernameFile",
	"PseudoIP", "HostnameFromApp", "UsernameFromApp", "FallbackToPlain", "ShowServerBanner")

// TestEachConditionIsHeldEverywhere is for whoever adds a condition: a rule that has it,
// and nothing else, is not taken for one without conditions, anywhere in this package.
func TestEachConditionIsHeldEverywhere(t *testing.T) {
	conditions := map[string]Rule{
		"Network":     {Network: "office"},
		"Application": {Application: text("curl")},
		"Host":        {Host: host("a")},
		"Address":     {Address: text(`10\..*`)},
		"Prefix":      {Prefix: netip.MustParsePrefix("10.0.0.0/8")},
		"Ports":       {Ports: ports("80")},
		"Users":       {Users: names("alice")},
		"Groups":      {Groups: names("ops")},
	}
	said := strings.Join(conditionNames[:], " ")
	for field := range reflect.TypeFor[Rule]().Fields() {
		rule, ok := conditions[field.Name]
		if !ok {
			if !slices.Contains(outcomes, field.Name) {
				t.Errorf("%s: is it a condition? Then this test wants a rule that has it, else the list of outcomes has to have it", field.Name)
			}
			continue
		}
		rule.Action = Direct
		free := Rule{Action: Direct}
		if got, _ := Shadowed([]Rule{rule, free}); len(got) > 0 {
			t.Errorf("%s: a rule without conditions counts as one that never decides, behind one that has it: see covers in shadow.go", field.Name)
		}
		if field.Name != "Application" && rule.butProgram() == free.butProgram() {
			t.Errorf("%s: butProgram in index.go leaves it out", field.Name)
		}
		if field.Name != "Network" { // which a Policy knows, not a flow
			nobodys := Flow{Addr: netip.MustParseAddr("192.0.2.1"), Port: 1}
			m := newMatcher(&nobodys)
			failed, _ := m.fails(&rule)
			if failed == 0 {
				t.Errorf("%s: it holds for a flow that has nothing of it: see match.go", field.Name)
			} else if step := m.failure(&rule, failed); step.Pattern == "" || !strings.Contains(said, failed.String()) {
				t.Errorf("%s: explain does not say what the rule asks for (%v)", field.Name, failed)
			}
			if s, err := NewSet([]Rule{rule}, Block); err != nil {
				t.Errorf("%s: %v", field.Name, err)
			} else if s.Decide(&nobodys).Rule != nil {
				t.Errorf("%s: Decide names the rule for a flow that has nothing of it", field.Name)
			}
		}
		if rule.takesName() && field.Name != "Network" && field.Name != "Host" {
			t.Errorf("%s: takesName in set.go, or Anyone in match.go, leaves it out", field.Name)
		}
		value, other := reflect.ValueOf(rule).FieldByName(field.Name), reflect.ValueOf(rule.normal()).FieldByName(field.Name)
		if value.Kind() == reflect.Slice && value.Pointer() == other.Pointer() {
			t.Errorf("%s: normal in validate.go shares it with the rule's maker", field.Name)
		}
	}
}
