package filter

import (
	"net/netip"
	"slices"
	"testing"
)

func TestOn(t *testing.T) {
	rules := []Rule{
		{Network: "office", Host: host(`a\.example`), Action: Tunnel, Profile: "p", PseudoIP: true},
		{Network: "home", Action: Block},
		{Host: host(`a\.example`), Action: Direct},
	}
	made := mustSet(t, rules, Block)
	f := Flow{Names: names("a.example"), Addr: netip.MustParseAddr("10.0.0.1"), Port: 80}
	for _, tt := range []struct {
		what    string
		set     *Set
		rule    int
		pseudo  bool
		inForce []bool
	}{
		{"as made", made, 3, false, []bool{false, false, true}},
		{"nowhere", made.On(func(string) bool { return false }), 3, false, []bool{false, false, true}},
		{"office", made.On(func(n string) bool { return n == "office" }), 1, true, []bool{true, false, true}},
		{"home", made.On(func(n string) bool { return n == "home" }), 2, false, []bool{false, true, true}},
		{"everywhere", made.On(func(string) bool { return true }), 1, true, []bool{true, true, true}},
		{"home, after the office", made.On(func(n string) bool { return n == "office" }).On(func(n string) bool { return n == "home" }), 2, false, []bool{false, true, true}},
	} {
		d := tt.set.Decide(&f)
		if d.Rule != &made.Rules()[tt.rule-1] {
			t.Errorf("%s: decided %+v, want rule %d", tt.what, d, tt.rule)
		}
		if got := tt.set.Pseudo("a.example"); got != tt.pseudo {
			t.Errorf("%s: pseudo address %v", tt.what, got)
		}
		for i, want := range tt.inForce {
			if tt.set.InForce(i) != want {
				t.Errorf("%s: rule %d in force: not %v", tt.what, i+1, want)
			}
		}
		var failed []Condition
		if e := tt.set.Explain(&f, func(st Step) { failed = append(failed, st.Failed) }); e != d {
			t.Errorf("%s: explained %+v, decided %+v", tt.what, e, d)
		}
		want := make([]Condition, tt.rule)
		for i := range tt.rule - 1 {
			want[i] = Network
		}
		if !slices.Equal(failed, want) {
			t.Errorf("%s: failed %v, want %v", tt.what, failed, want)
		}
	}
	var none *Set
	if none.On(func(string) bool { return true }) != nil {
		t.Error("a Set out of none")
	}
	if d := new(Set).On(func(string) bool { return true }).Decide(&f); d.Action != Block || d.Rule != nil {
		t.Errorf("the zero Set on a network decides %+v", d)
	}
}

// TestOnAsksForNetworksOnly: rules without a network are not asked about.
func TestOnAsksForNetworksOnly(t *testing.T) {
	var asked []string
	mustSet(t, []Rule{{}, {Network: "a"}, {}, {Network: "b"}}, Block).On(func(n string) bool { asked = append(asked, n); return true })
	if !slices.Equal(asked, names("a", "b")) {
		t.Errorf("asked for %q", asked)
	}
}

// TestProgramIsNotAskedForRulesElsewhere: a rule of another network needs nothing.
func TestProgramIsNotAskedForRulesElsewhere(t *testing.T) {
	s := mustSet(t, []Rule{
		{Network: "home", Application: text(`.*/curl`), Action: Block},
		{Network: "home", Host: host(`a\.example`), Application: text(`.*`), Action: Block},
	}, Direct)
	asked := 0
	f := Flow{Names: names("a.example"), Addr: netip.MustParseAddr("10.0.0.1"), Port: 80, Program: func() string { asked++; return "/usr/bin/curl" }}
	if d := s.Decide(&f); d.Rule != nil || asked != 0 {
		t.Errorf("decided %+v, asked %d times", d, asked)
	}
	if d := s.On(func(string) bool { return true }).Decide(&f); d.Rule == nil || d.Rule.Number != 1 || asked != 1 {
		t.Errorf("at home: decided %+v, asked %d times", d, asked)
	}
}
