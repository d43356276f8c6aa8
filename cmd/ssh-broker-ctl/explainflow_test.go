package main

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"reflect"
	"strings"
	"testing"

	"sshbroker/broker/control"
)

var liveFlow = control.ExplainFlow{ID: 17, Connection: 2, Capture: "ab12", State: "admitted", Since: since, UID: 1000, User: "ann", Groups: []string{"ann", "dba"},
	Program: "/usr/bin/psql", PID: 42, Src: "10.0.0.1:5000", Dst: "198.18.0.3:5432", Names: []string{"db.internal", "db2.internal"}, Name: "db2.internal",
	By: control.DecidedByRules, Generation: 1, Current: 1, Action: "TUNNEL", Rule: 2, Source: "a.xml:9", Profile: "gw", Server: "ann@bastion:22", Destination: "db2.internal:5432"}

func TestExplainFlow(t *testing.T) {
	var asked shared[control.ExplainArgs]
	var answer shared[[]control.ExplainRow]
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpExplain, func(ctx context.Context, c *control.Call) error {
			var args control.ExplainArgs
			if err := c.Decode(&args); err != nil {
				return err
			}
			asked.set(args)
			return rows(answer.get()...)(ctx, c)
		})
	})
	with := func(change func(*control.ExplainFlow), more ...control.ExplainRow) {
		f := liveFlow
		change(&f)
		answer.set(append([]control.ExplainRow{{Flow: &f}}, more...))
	}
	with(func(*control.ExplainFlow) {})
	code, out, errs := ctl(t, address, "explain", "--flow", "17", "--time-format=%s")
	if code != exitDone || errs != "" || !reflect.DeepEqual(asked.get(), control.ExplainArgs{Flow: 17}) {
		t.Errorf("code %d, %s, %+v", code, errs, asked.get())
	}
	wants(t, out, "TUNNEL by rule 2, a.xml:9\n", "17, admitted since "+fmt.Sprint(since.Unix()), "/usr/bin/psql", "42", "ann, dba", "10.0.0.1:5000", "198.18.0.3:5432",
		"db.internal, db2.internal\n", "by name      db2.internal\n", "profile      gw\n", "ann@bastion:22", "db2.internal:5432", "of configuration 1; which is in force")

	with(func(f *control.ExplainFlow) { f.Current = 3 },
		control.ExplainRow{Step: &control.ExplainStep{Rule: 1, Source: "a.xml:3", Matched: true}}, control.ExplainRow{Result: &control.ExplainResult{Action: "BLOCK", Rule: 1, Source: "a.xml:3"}})
	_, out, _ = ctl(t, address, "explain", "--flow", "17")
	wants(t, out, "of configuration 1; now 3 is in force\n  by the rules in force now:\n  rule 1   a.xml:3: matches\nBLOCK by rule 1, a.xml:3\n")
	if _, out, _ = ctl(t, address, "explain", "-s", "--flow", "17"); strings.Count(out, "\n") != 3 || !strings.HasPrefix(out, `{"flow":{"id":17,`) {
		t.Error(out)
	}

	for want, change := range map[string]func(*control.ExplainFlow){
		"nothing is decided yet\n":                           func(f *control.ExplainFlow) { f.Action = "" },
		"DIRECT as no rule matched\n":                        func(f *control.ExplainFlow) { f.Action, f.Rule, f.Source = "DIRECT", 0, "" },
		"DIRECT as it goes to the capture's own addresses":   func(f *control.ExplainFlow) { f.Action, f.Rule, f.By = "DIRECT", 0, control.DecidedByPlace },
		"by rule 2, a.xml:9, of the broker of the whole":     func(f *control.ExplainFlow) { f.By = control.DecidedBySystem },
		"of the capture's own, which no reload changes":      func(f *control.ExplainFlow) { f.By = control.DecidedByOwn },
		"none is known: rules by host looked at the address": func(f *control.ExplainFlow) { f.Names = nil },
		"program      not known\n":                           func(f *control.ExplainFlow) { f.Program, f.PID = "", 0 },
		"note         tunnel failed":                         func(f *control.ExplainFlow) { f.Error = "tunnel failed" },
	} {
		with(change)
		_, out, _ := ctl(t, address, "explain", "--flow", "17")
		wants(t, out, want)
	}
	answer.set(nil)
	if code, _, errs := ctl(t, address, "explain", "--flow", "17"); code != exitFailed || !strings.Contains(errs, "without a connection") {
		t.Errorf("%d %s", code, errs)
	}
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"explain", "--flow", "17", "host", "80"}, `"host" is one argument too many`},
		{[]string{"explain", "--flow", "0"}, "counted from 1"},
		{[]string{"explain", "--flow", "x"}, "invalid argument"},
		{[]string{"explain", "--flow", "1", "-f", "x.xml"}, "--flow and --config-file: use one of the two"},
		{[]string{"explain", "--flow", "1", "--user", "x"}, "--flow and --user: use one of the two"},
	} {
		if code, _, errs := ctl(t, address, tc.args...); code != exitUsage || !strings.Contains(errs, tc.want) {
			t.Errorf("%v: %d %s", tc.args, code, errs)
		}
	}
}

func TestExplainAsksForNamesAndGroups(t *testing.T) {
	var asked shared[control.ExplainArgs]
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpExplain, func(ctx context.Context, c *control.Call) error {
			var args control.ExplainArgs
			err := c.Decode(&args)
			asked.set(args)
			return err
		})
	})
	ctl(t, address, "explain", "--name", "a", "--name", "b,c", "--group", "x", "--group", "y", "10.0.0.5", "80")
	want := control.ExplainArgs{Host: "10.0.0.5", Port: 80, Names: []string{"a", "b,c"}, Groups: []string{"x", "y"}}
	if got := asked.get(); !reflect.DeepEqual(got, want) {
		t.Errorf("asked %+v", got)
	}
}

// Offline rules look at everything that they do in a broker: all names, users and
// groups by name and by number, the program.
func TestExplainFileHasEveryCondition(t *testing.T) {
	root, err := user.LookupId("0")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, "", "")
	for _, tt := range []struct {
		rule string
		args []string
		want bool
	}{
		{`users="0"`, []string{"--user", root.Username}, true},
		{`users="0"`, []string{"--user", "0"}, true},
		{`users="` + root.Username + `"`, []string{"--user", "0"}, true},
		{`users="4242"`, []string{"--user", root.Username}, false},
		{`groups="0"`, []string{"--user", root.Username}, true},
		{`groups="dba"`, []string{"--user", root.Username}, false},
		{`groups="dba"`, []string{"--user", root.Username, "--group", "x", "--group", "dba"}, true},
		{`users="nobody-here" groups="dba"`, []string{"--user", "nobody-here", "--group", "dba"}, true},
		{`application=".*/telnet"`, []string{"--program", "/opt/telnet"}, true},
		{`host="b"`, []string{"--name", "a", "--name", "b"}, true},
		{`host="b"`, []string{"--name", "a"}, false},
		{`ip-address="10.0.0.0/8"`, []string{"--name", "a"}, true},
	} {
		w.write(w.user, `<secsh-broker><filter-engine><rule `+tt.rule+` action="BLOCK"/></filter-engine></secsh-broker>`)
		for _, system := range []string{"explain", "--system"} {
			args := append([]string{"explain", "-q", "-f", w.user, "10.0.0.5", "80"}, tt.args...)
			if system == "--system" {
				args = append([]string{system}, args...)
			}
			if out := w.done(args...); strings.HasPrefix(out, "BLOCK by rule 1") != tt.want {
				t.Errorf("%s, %v:\n%s", tt.rule, args, out)
			}
		}
	}
	if code, _, errs := w.ctl("explain", "-f", w.user, "--user", "nobody-here", "h", "80"); code != exitFailed || !strings.Contains(errs, "nobody-here") {
		t.Errorf("%d %s", code, errs)
	}
	// With --system the file is the global one, and nobody's own is looked at.
	if err := os.Remove(w.user); err != nil {
		t.Fatal(err)
	}
	w.write(w.user, "<broken")
	file := writeFile(t, goodXML)
	wants(t, w.done("--system", "explain", "-f", file, "secret", "80"), "BLOCK by rule 1, "+file, "user ")
}
