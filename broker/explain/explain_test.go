package explain

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sshbroker/broker"
	"sshbroker/broker/control"
	"sshbroker/filter"
	"sshbroker/filter/egrep"
)

func pattern(t *testing.T, text string) *egrep.Pattern {
	t.Helper()
	p, err := egrep.Compile(text, egrep.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func policy(t *testing.T, generation int, rules ...filter.Rule) *broker.Policy {
	t.Helper()
	set, err := filter.NewSet(rules, filter.Direct)
	if err != nil {
		t.Fatal(err)
	}
	p := &broker.Policy{Generation: generation, Rules: set}
	gw := put(&p.Profiles, "gw")
	gw.ID, gw.Host, gw.Port, gw.User = "gw", "gw.example", 22, "u"
	p.Defaults = gw
	return p
}

// put makes a profile, a type that this package need not know.
func put[T any](profiles *map[string]*T, id string) *T {
	p := new(T)
	*profiles = map[string]*T{id: p}
	return p
}

// last is the result.
func last(rows []control.ExplainRow) control.ExplainResult {
	if r := rows[len(rows)-1].Result; r != nil {
		return *r
	}
	return control.ExplainResult{}
}

func TestFlow(t *testing.T) {
	p := policy(t, 1,
		filter.Rule{Users: []string{"bob"}, Groups: []string{"dba"}, Action: filter.Block},
		filter.Rule{Application: pattern(t, "psql"), Address: pattern(t, `10\..*`), Action: filter.Block},
		filter.Rule{Host: pattern(t, "b"), Action: filter.Tunnel, Profile: "gw"})
	for _, tt := range []struct {
		args   control.ExplainArgs
		user   string
		groups []string
		want   string // rule, action, server, destination
	}{
		{control.ExplainArgs{Host: "x", Port: 1}, "bob", []string{"dba"}, "1 BLOCK"},
		{control.ExplainArgs{Host: "x", Port: 1, Groups: []string{"ops", "dba"}}, "bob", []string{"users"}, "1 BLOCK"},
		{control.ExplainArgs{Host: "x", Port: 1, Groups: []string{"ops"}}, "bob", []string{"dba"}, "0 DIRECT"},
		{control.ExplainArgs{Host: "10.0.0.1", Port: 1, Program: "/usr/bin/psql"}, "ann", nil, "2 BLOCK"},
		{control.ExplainArgs{Host: "10.0.0.1", Port: 1, Program: "/usr/bin/psql", Names: []string{"b"}}, "ann", nil, "2 BLOCK"},
		{control.ExplainArgs{Host: "10.0.0.1", Port: 1}, "ann", nil, "0 DIRECT"},
		{control.ExplainArgs{Host: "10.0.0.1", Port: 1, Names: []string{"a", "b"}}, "ann", nil, "3 TUNNEL gw.example:22 b:1"},
		{control.ExplainArgs{Host: "a", Port: 1, Names: []string{"b"}}, "ann", nil, "3 TUNNEL gw.example:22 b:1"},
	} {
		r := last(Flow(p, tt.args, tt.user, tt.groups))
		b, _ := json.Marshal(r.Rule)
		if got := strings.TrimSpace(string(b) + " " + r.Action + " " + strings.TrimSpace(r.Server+" "+r.Destination)); got != tt.want {
			t.Errorf("%+v by %s %v: %s, want %s", tt.args, tt.user, tt.groups, got, tt.want)
		}
	}
}

func TestLive(t *testing.T) {
	flow := broker.FlowInfo{ID: 17, Capture: "c", State: "admitted", Way: 3, Since: time.Unix(1, 0)}
	r := &flow.Record
	r.Generation, r.UID, r.User, r.Groups, r.PID, r.Program = 1, 1000, "ann", []string{"dba"}, 42, "/usr/bin/psql"
	r.Src, r.Dst, r.Names = netip.MustParseAddrPort("10.0.0.9:5000"), netip.MustParseAddrPort("10.0.0.5:5432"), []string{"b", "a"}
	r.Name, r.Rule, r.RuleSource, r.Action, r.Profile, r.Server, r.Target, r.Error = "a", 2, "f:7", "TUNNEL", "gw", "u@gw:22", "a:5432", "e"
	same := []filter.Rule{{Host: pattern(t, "c"), Action: filter.Block}, {Users: []string{"ann"}, Groups: []string{"dba"}, Application: pattern(t, "psql"), Host: pattern(t, "a"), Action: filter.Tunnel, Profile: "gw"}}

	rows := Live(policy(t, 1, same...), flow)
	want := control.ExplainFlow{ID: 17, Connection: 3, Capture: "c", State: "admitted", Since: time.Unix(1, 0), UID: 1000, User: "ann", Groups: []string{"dba"},
		Program: "/usr/bin/psql", PID: 42, Src: "10.0.0.9:5000", Dst: "10.0.0.5:5432", Names: []string{"b", "a"}, Name: "a", By: control.DecidedByRules,
		Generation: 1, Current: 1, Action: "TUNNEL", Rule: 2, Source: "f:7", Profile: "gw", Server: "u@gw:22", Destination: "a:5432", Error: "e"}
	got, _ := json.Marshal(rows[0].Flow)
	wanted, _ := json.Marshal(want)
	if len(rows) != 1 || string(got) != string(wanted) {
		t.Errorf("%d rows\ngot  %s\nwant %s", len(rows), got, wanted)
	}

	// A newer configuration is told about, the same decision or not; and another
	// decision by the same one, as where the host is has changed.
	for what, p := range map[string]*broker.Policy{"newer": policy(t, 2, same...), "other": policy(t, 1, append([]filter.Rule{{Host: pattern(t, "b"), Action: filter.Block}}, same...)...)} {
		rows := Live(p, flow)
		r := last(rows)
		if rows[0].Flow.Current != p.Generation || r.Action == "" || (r.Action == "BLOCK") != (what == "other") || what == "newer" && (r.Rule != 2 || r.Server != "gw.example:22" || r.Destination != "a:5432") {
			t.Errorf("%s: %+v, %+v", what, rows[0].Flow, r)
		}
	}

	// What the rules in force have not decided they are not asked about, nor what is
	// not decided yet.
	for b, want := range map[broker.By]control.DecidedBy{broker.ByOwn: control.DecidedByOwn, broker.BySystem: control.DecidedBySystem, broker.ByPlace: control.DecidedByPlace} {
		f := flow
		f.By = b
		if rows := Live(policy(t, 9), f); len(rows) != 1 || rows[0].Flow.By != want {
			t.Errorf("by %v: %d rows, %+v", b, len(rows), rows[0].Flow)
		}
	}
	flow.Record.Action = ""
	if rows := Live(policy(t, 9), flow); len(rows) != 1 {
		t.Errorf("undecided: %d rows", len(rows))
	}
	if rows := Live(nil, flow); len(rows) != 1 || rows[0].Flow.Current != 0 {
		t.Errorf("without a policy: %d rows", len(rows))
	}
}
