//go:build !race

package filter

import (
	"net/netip"
	"testing"
)

// Not under the race detector, which makes the pool of large patterns forget on purpose.
func TestDecideAllocatesNothing(t *testing.T) {
	rules := append(everyKind(70), Rule{Host: host(`.*\<db\>.*`), Action: Direct})
	s := mustSet(t, rules, Block)
	exe := func() string { return "/usr/bin/curl" }
	for what, f := range map[string]Flow{
		"by name":    {Names: names("www.example", "db.example"), Addr: netip.MustParseAddr("192.0.2.1"), Port: 443, Program: exe, User: "carol"},
		"by address": {Addr: netip.MustParseAddr("2001:db8::1:2:3:4%eth0"), Port: 22, Program: exe, User: "carol", Groups: names("users")},
	} {
		if n := testing.AllocsPerRun(1000, func() { s.Decide(&f) }); n != 0 {
			t.Errorf("%s: %v allocations", what, n)
		}
	}
	if n := testing.AllocsPerRun(1000, func() { s.Pseudo("db.example") }); n != 0 {
		t.Errorf("a query: %v allocations", n)
	}
}

func TestDecideMixAllocatesNothing(t *testing.T) {
	m := newMix(10_000)
	s := mustSet(t, m.rules, Direct)
	flows := m.traffic(5000)
	i := 0
	if n := testing.AllocsPerRun(len(flows)-1, func() { s.Decide(&flows[i]); i++ }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
