package eventlog

import (
	"reflect"
	"testing"
)

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		pattern, name string
		want          bool
	}{
		{"KEX_success", "KEX_success", true}, {"KEX_success", "kex_success", false}, {"KEX_", "KEX_success", false},
		{"KEX_*", "KEX_success", true}, {"*", "", true}, {"*", "anything", true}, {"", "", true}, {"", "x", false},
		{"?EX_*s", "KEX_success", true}, {"KEX_succes?", "KEX_success", true}, {"KEX_success?", "KEX_success", false},
		{"*_*_*", "Connector_filter_rule", true}, {"*_*_*_*", "Connector_filter_rule", false}, {"**e", "rule", true},
		{"*aab", "aaaaab", true}, {"*a*b*c", "xaybzcc", true}, {"a*a", "a", false}, {"[A-Z]*", "A", false},
	} {
		if got := Match(tt.pattern, tt.name); got != tt.want {
			t.Errorf("Match(%q, %q) = %t", tt.pattern, tt.name, got)
		}
	}
}

func TestRoute(t *testing.T) {
	a, b := Target{File, "/a"}, Target{File, "/b"}
	system, nowhere := Target{Type: Syslog}, Target{Type: Nowhere}
	general := []Target{a, system}
	kex := []string{"KEX_*"}
	for _, tt := range []struct {
		name    string
		routing Routing
		event   Event
		want    Route
	}{
		{"nothing is logged by default", Routing{}, KEXFailure, Route{-1, Warning, Normal, nil}},
		{"all events to all targets, as they are", Routing{Targets: general}, KEXFailure, Route{-1, Warning, Normal, general}},
		{"a target twice", Routing{Targets: []Target{a, a, system, a}}, KEXFailure, Route{-1, Warning, Normal, general}},
		{"discarded in general", Routing{Targets: []Target{nowhere}}, KEXFailure, Route{-1, Warning, Normal, nil}},
		{"not named", Routing{general, []Rule{{Names: []string{"X", "Key_store_*"}, Facility: Discard}}}, KEXFailure, Route{-1, Warning, Normal, general}},
		{"discarded", Routing{general, []Rule{{Names: []string{"X", "Key_store_*"}, Facility: Discard}}}, KeyStoreAgentFailed, Route{0, Warning, Discard, nil}},
		{"discarded, though it has a target", Routing{general, []Rule{{Names: kex, Facility: Discard, Targets: []Target{b}}}}, KEXFailure, Route{0, Warning, Discard, nil}},
		{"facility alone", Routing{general, []Rule{{Names: kex, Facility: Auth}}}, KEXFailure, Route{0, Warning, Auth, general}},
		{"severity alone", Routing{general, []Rule{{Names: kex, Severity: Critical}}}, KEXFailure, Route{0, Critical, Normal, general}},
		{"a target of its own", Routing{general, []Rule{{Names: kex, Targets: []Target{b}}}}, KEXFailure, Route{0, Warning, Normal, []Target{b}}},
		{"discarded by its own target", Routing{general, []Rule{{Names: kex, Targets: []Target{nowhere}}}}, KEXFailure, Route{0, Warning, Normal, nil}},
		{"an own target where the general one discards", Routing{[]Target{nowhere}, []Rule{{Names: kex, Targets: []Target{b}}}}, KEXFailure, Route{0, Warning, Normal, []Target{b}}},
		{"the first that names it", Routing{general, []Rule{{Names: []string{"KEX_failure"}, Severity: Error}, {Names: kex, Severity: Notice, Facility: User}}}, KEXFailure, Route{0, Error, Normal, general}},
		{"the second that names it", Routing{general, []Rule{{Names: []string{"KEX_failure"}, Severity: Error}, {Names: kex, Severity: Notice, Facility: User}}}, KEXSuccess, Route{1, Notice, User, general}},
		{"the rest, last", Routing{general, []Rule{{Names: kex, Facility: Auth}, {Severity: Error}}}, TunnelOpened, Route{1, Error, Normal, general}},
		{"the rest does not change what is named", Routing{general, []Rule{{Names: kex, Facility: Auth}, {Severity: Error}}}, KEXFailure, Route{0, Warning, Auth, general}},
		{"named where there is no target", Routing{nil, []Rule{{Names: kex, Facility: Auth}}}, KEXFailure, Route{0, Warning, Auth, []Target{system}}},
		{"not named where there is no target", Routing{nil, []Rule{{Names: kex, Facility: Auth}}}, TunnelOpened, Route{-1, Informational, Normal, nil}},
		{"what cannot happen", Routing{general, []Rule{{}}}, CertificateValidationFailure, Route{0, Informational, Normal, nil}},
	} {
		if got := tt.routing.Route(tt.event); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
}
