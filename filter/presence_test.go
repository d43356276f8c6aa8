package filter

import (
	"fmt"
	"net/netip"
	"testing"
)

// TestAt: a rule for a network is in force there; where nobody knows, unless it may send
// in clear.
func TestAt(t *testing.T) {
	server := Rule{Network: "office", Action: Tunnel, Profile: "p"}
	plain := server
	plain.FallbackToPlain = true
	for _, tt := range []struct {
		name string
		rule Rule
		want [3]bool // in force, by Presence
	}{
		{"direct", Rule{Network: "office", Action: Direct}, [3]bool{false, false, true}},
		{"block", Rule{Network: "office", Action: Block}, [3]bool{false, true, true}},
		{"tunnel", server, [3]bool{false, true, true}},
		{"fallback", plain, [3]bool{false, false, true}},
		{"FTP", Rule{Network: "office", Action: FTPProxy, Profile: "p"}, [3]bool{false, true, true}},
		{"everywhere", Rule{Action: Direct}, [3]bool{true, true, true}},
	} {
		s, err := NewSet([]Rule{tt.rule}, Block)
		if err != nil {
			t.Fatal(err)
		}
		if tt.rule.Network != "" && s.InForce(0) {
			t.Errorf("%s: in force where nobody looked", tt.name)
		}
		for presence, want := range tt.want {
			at := s.At(func(network string) Presence {
				if network != "office" {
					t.Errorf("asked for %q", network)
				}
				return Presence(presence)
			})
			d := at.Decide(&Flow{Addr: netip.MustParseAddr("192.0.2.1"), Port: 80})
			if at.InForce(0) != want || (d.Rule == &s.Rules()[0]) != want {
				t.Errorf("%s, presence %d: in force %v, decided %+v; want %v", tt.name, presence, at.InForce(0), d, want)
			}
		}
	}
	var none *Set
	if none.At(nil) != nil || none.On(nil) != nil {
		t.Error("a nil Set is on a network")
	}
}

// TestAtShares: both Sets live on, and neither changes the other.
func TestAtShares(t *testing.T) {
	s, err := NewSet([]Rule{{Network: "a", Action: Direct}, {Network: "b", Action: Direct}, {Action: Block}}, Direct)
	if err != nil {
		t.Fatal(err)
	}
	at := func(network string) *Set { return s.On(func(n string) bool { return n == network }) }
	a, b := at("a"), at("b").On(func(n string) bool { return n == "b" })
	for range 2 {
		var got []int
		for _, set := range []*Set{s, a, b} {
			got = append(got, set.Decide(&Flow{Port: 1}).Rule.Number)
		}
		if fmt.Sprint(got) != "[3 1 2]" {
			t.Errorf("decided by %v", got)
		}
	}
	var steps []Step
	b.Explain(&Flow{Port: 1}, func(st Step) { steps = append(steps, st) })
	if len(steps) != 2 || steps[0].Failed != Network || steps[0].Pattern != "a" || steps[0].Failed.String() != "network-id" || !steps[1].Matched {
		t.Errorf("explained by %+v", steps)
	}
}
