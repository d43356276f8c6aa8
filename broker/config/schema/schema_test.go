package schema

import (
	"slices"
	"strings"
	"testing"

	"sshbroker/broker/config/xmldoc"
)

// The table is closed: every child is defined, every element has a parent but the
// root, and no name stands twice.
func TestTable(t *testing.T) {
	seen := make(map[string]bool)
	for i := range schema {
		e := &schema[i]
		if seen[e.name] {
			t.Errorf("element %s stands twice", e.name)
		}
		seen[e.name] = true
		for _, c := range e.children {
			if elementNamed(c.name) == nil {
				t.Errorf("child %s of %s is not defined", c.name, e.name)
			}
		}
		if e.name != RootName && len(parentsOf(e.name)) == 0 {
			t.Errorf("element %s has no parent", e.name)
		}
		if names := e.childNames(); len(slices.Compact(slices.Sorted(slices.Values(names)))) != len(names) {
			t.Errorf("a child of %s stands twice", e.name)
		}
		if names := e.attrNames(); len(slices.Compact(slices.Sorted(slices.Values(names)))) != len(names) {
			t.Errorf("an attribute of %s stands twice", e.name)
		}
		for _, a := range e.attrs {
			if (a.kind == enum) != (len(a.values) > 0) {
				t.Errorf("%s/@%s: kind %d with values %q", e.name, a.name, a.kind, a.values)
			}
			if (a.kind == number) != (a.max > 0) || a.min > a.max {
				t.Errorf("%s/@%s: kind %d from %d to %d", e.name, a.name, a.kind, a.min, a.max)
			}
			for _, v := range append([]string{a.def}, a.quiet...) {
				if a.kind == enum && v != "" && !slices.Contains(a.values, v) {
					t.Errorf("%s/@%s: %q is not one of %q", e.name, a.name, v, a.values)
				}
			}
		}
	}
}

func TestSuggest(t *testing.T) {
	attrs := elementNamed("rule").attrNames()
	tests := []struct{ word, want string }{
		{"acton", "action"}, {"aciton", "action"}, {"Action", "action"}, {"ACTION", "action"},
		{"port", "ports"}, {"profile", "profile-id"}, {"profileid", "profile-id"}, {"from-app", "hostname-from-app"},
		{"user", "users"}, {"ip-adress", "ip-address"}, {"fallback-to-plian", "fallback-to-plain"},
		{"nothing-like-it", ""}, {"x", ""}, {"", ""}, {strings.Repeat("a", 100), ""},
	}
	for _, tt := range tests {
		if got := Suggest(tt.word, attrs); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.word, got, tt.want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"rule", "rul", 1}, {"rule", "ruel", 1}, {"kitten", "sitting", 3}, {"same", "same", 0}} {
		if got := distance(tt.a, tt.b); got != tt.want {
			t.Errorf("%q to %q: %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

func TestProblemString(t *testing.T) {
	at := Pos{File: "f", Line: 2, Col: 3}
	for want, p := range map[string]Problem{
		"f:2:3: rule: bad\nhint: mend it": {Pos: at, Element: "rule", Msg: "bad", Hint: "mend it"},
		"f:2:3: warning: rule: odd":       {Pos: at, Element: "rule", Msg: "odd", Warning: true},
		"f: too large":                    {Pos: Pos{File: "f"}, Msg: "too large"},
		"odd":                             {Msg: "odd"},
	} {
		if got := p.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for want, k := range map[string]Kind{"general": General, "not acted on": NotActedOn, "not built yet": NotBuilt, "kind 9": 9} {
		if got := k.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestFindings(t *testing.T) {
	var f Findings
	f.Fail(Pos{File: "f"}, "", "", "whole")
	f.Fail(Pos{File: "f", Line: 3, Col: 1}, "", "", "third")
	f.Warn(NotBuilt, Pos{File: "f", Line: 1, Col: 9}, "", "", "second")
	f.Fail(Pos{File: "f", Line: 1, Col: 2}, "", "", "first")
	var order []string
	for _, p := range f.Sorted() {
		order = append(order, p.Msg)
	}
	if got := strings.Join(order, " "); got != "first second third whole" {
		t.Errorf("sorted: %s", got)
	}
	if e, w, k := len(f.List.Errors()), len(f.List.Warnings()), len(f.List.OfKind(NotBuilt)); e != 3 || w != 1 || k != 1 {
		t.Errorf("%d errors, %d warnings, %d of a kind", e, w, k)
	}
	if got := f.List[:2].Error(); got != "f:1:2: first\nf:1:9: warning: second" {
		t.Errorf("as an error: %q", got)
	}
}

// Neither the errors nor the warnings of one file grow without end, and many
// warnings do not become an error.
func TestFindingsAreBounded(t *testing.T) {
	var f Findings
	for range 3 * maxProblems {
		f.Warn(General, Pos{Line: 1}, "", "", "w")
	}
	if len(f.List) != maxProblems+1 || len(f.List.Errors()) != 0 {
		t.Fatalf("%d findings, %d of them errors", len(f.List), len(f.List.Errors()))
	}
	for range 3 * maxProblems {
		f.Fail(Pos{Line: 1}, "", "", "e")
	}
	if got := len(f.List.Errors()); got != maxProblems+1 {
		t.Errorf("%d errors", got)
	}
}

// none expands nothing.
type none struct{}

func (none) Expand(v string) Expansion { return Expansion{Text: v} }

// The checker takes what the DTD promises: each element with all its attributes in
// their first spelling, lower and upper case.
func TestEveryElementCanBeWritten(t *testing.T) {
	for i := range schema {
		e := &schema[i]
		for _, fold := range []func(string) string{strings.ToLower, strings.ToUpper} {
			x := &xmldoc.Element{Name: e.name, Complete: true}
			for _, a := range e.attrs {
				v := "x"
				switch a.kind {
				case yesNo:
					v = fold("yes")
				case enum:
					v = fold(a.values[0])
				case number:
					v = "1"
				}
				x.Attrs = append(x.Attrs, xmldoc.Attr{Name: a.name, Value: v})
			}
			for _, c := range e.children {
				if len(elementNamed(c.name).attrs) == 0 {
					x.Children = append(x.Children, &xmldoc.Element{Name: c.name, Complete: true})
				}
			}
			var f Findings
			n := NewChecker(&f, none{}).element(x, e, false)
			if bad := f.List.Errors(); len(bad) > 0 || n.Flawed || n.Given() != len(e.attrs) && !e.open {
				t.Errorf("%s: %v", e.name, bad)
			}
			if !strings.Contains(DTD(), "<!ELEMENT "+e.name+" ") {
				t.Errorf("%s is not in the DTD", e.name)
			}
		}
	}
}

func TestNames(t *testing.T) {
	got := map[string]Attribute{}
	for _, a := range Attributes("rule") {
		got[a.Name] = a
	}
	if len(got) != len(elementNamed("rule").attrs) || !got["action"].Required || !slices.Contains(got["action"].Values, "TUNNEL") || got["host"].Values != nil {
		t.Errorf("%+v", got)
	}
	if a := got["pseudo-ip"]; !a.YesNo || a.Default != "no" || !slices.Equal(a.Values, []string{"yes", "no"}) {
		t.Errorf("%+v", a)
	}
	if Attributes("nonsense") != nil || Children("nonsense") != nil || Effect("nonsense") != General {
		t.Error("nonsense is an element")
	}
	if list := Children("filter-engine"); !slices.Contains(list, Child{"rule", true}) || slices.Contains(list, Child{"rule", false}) {
		t.Errorf("%+v", list)
	}
	if list := Children(RootName); !slices.Contains(list, Child{"filter-engine", false}) {
		t.Errorf("%+v", list)
	}
	if Effect("gui") != NotActedOn {
		t.Errorf("gui: %v", Effect("gui"))
	}
	for _, a := range Attributes("forward") {
		if a.Name == "state" && (a.Effect("on") != NotActedOn || a.Effect("off") != General) {
			t.Errorf("state: %v, %v", a.Effect("on"), a.Effect("off"))
		}
	}
}
