package filter

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// TestIndexSetsApart: of 10,000 mixed rules few are found by the same thing, so that
// few are looked at. It is what the speed rests on.
func TestIndexSetsApart(t *testing.T) {
	s := mustSet(t, newMix(10_000).rules, Direct)
	most := 0
	for _, slot := range s.index.slots {
		most = max(most, int(slot.to-slot.from))
	}
	if most > 16 || len(s.index.always) > 0 || len(s.index.askers) > 8 {
		t.Errorf("%d rules under one key, %d always looked at, %d to tell whether the program is needed", most, len(s.index.always), len(s.index.askers))
	}
}

// TestIndexChoosesTheRareCondition: rules that have all but one condition in common
// are found by that one.
func TestIndexChoosesTheRareCondition(t *testing.T) {
	for what, differ := range map[string]func(r *Rule, i int){
		"host":          func(r *Rule, i int) { r.Host = host(fmt.Sprintf(`h%d\.example`, i)) },
		"end of host":   func(r *Rule, i int) { r.Host = host(fmt.Sprintf(`.*\.h%d\.example`, i)) },
		"piece of host": func(r *Rule, i int) { r.Host = host(fmt.Sprintf(`.*-h%d-.*\.example`, i)) },
		"hosts":         func(r *Rule, i int) { r.Host = host(fmt.Sprintf(`(a%d|b%d)\.example`, i, i)) },
		"start of host": func(r *Rule, i int) { r.Host = host(fmt.Sprintf(`%d\..*`, 1000+i)) },
		"unquoted host": func(r *Rule, i int) { r.Host = host(fmt.Sprintf(`h%d.example.org`, 10+i)) },
		"prefix": func(r *Rule, i int) {
			r.Host, r.Prefix = nil, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i)}), 24)
		},
		"address pattern": func(r *Rule, i int) { r.Host, r.Address = nil, text(fmt.Sprintf(`10\.[0-9]+\.%d\..*`, i)) },
		"ports": func(r *Rule, i int) {
			r.Ports = []PortRange{{uint16(100 * i), uint16(100*i + 90)}, {uint16(100*i + 95), uint16(100*i + 95)}}
		},
		"users":   func(r *Rule, i int) { r.Users = names(fmt.Sprint("user", i), fmt.Sprint("other", i)) },
		"groups":  func(r *Rule, i int) { r.Groups = names(fmt.Sprint("group", i)) },
		"program": func(r *Rule, i int) { r.Application = text(fmt.Sprintf(`.*/program%d`, i)) },
	} {
		rules := make([]Rule, 200)
		for i := range rules {
			rules[i] = Rule{Host: host(`.*\.example`), Ports: ports("443"), Users: names("alice"), Action: Direct}
			differ(&rules[i], i+1)
		}
		s := mustSet(t, rules, Block)
		most := len(s.index.always)
		for _, slot := range s.index.slots {
			most = max(most, int(slot.to-slot.from))
		}
		if most > 10 || len(s.index.askers) > 1 {
			t.Errorf("%s: %d rules are looked at together, %d to tell whether the program is needed", what, most, len(s.index.askers))
		}
	}
}

// TestPortBlocks holds the blocks of ranges to every port.
func TestPortBlocks(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for range 12 {
		lo := uint16(1 + rng.IntN(65535))
		r := PortRange{lo, lo + uint16(rng.IntN(65536-int(lo)))}
		switch rng.IntN(8) {
		case 0:
			r.Lo = 1
		case 1:
			r.Hi = 65535
		}
		var w waysOfRule
		rows := w.to(&Rule{Ports: []PortRange{r}})
		if everyPort([]PortRange{r}) {
			continue
		}
		if len(rows) != 1 || len(rows[0].rows) > 30 {
			t.Fatalf("%v: %+v", r, rows)
		}
		keys := make(map[key]bool)
		for _, row := range rows[0].rows {
			keys[row[0].key] = true
		}
		for port := range 1 << 16 {
			blocks := 0
			for length := range 17 {
				k, block := portBlock(uint16(port), length)
				if keys[keyOf(uint64(k), block)] {
					blocks++
				}
			}
			if want := int(r.Lo) <= port && port <= int(r.Hi); blocks != 0 != want || blocks > 1 {
				t.Fatalf("%v: port %d is in %d blocks", r, port, blocks)
			}
		}
	}
	many := make([]PortRange, 40_000)
	for i := range many {
		many[i] = PortRange{uint16(i + 1), uint16(i + 1)}
	}
	var w waysOfRule
	if ways := w.to(&Rule{Ports: many}); len(ways) != 0 {
		t.Errorf("a rule may stand in %d places", len(ways[0].rows))
	}
}

func TestTable(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	for _, n := range []int{0, 1, 2, 100, 3000} {
		want := make(map[key][]int32)
		var entries []entry
		for i := range n {
			k := keyOf(1, rng.Uint64N(uint64(n))) // many twice and more
			if i%3 == 0 {
				k = key(rng.IntN(n)) // all at the same slot
			}
			p := int32(rng.IntN(n))
			entries = append(entries, entry{k, p})
			if !slices.Contains(want[k], p) {
				want[k] = append(want[k], p)
			}
		}
		table := newTable(entries)
		for k, places := range want {
			slices.Sort(places)
			if got := table.get(k); !table.mayHave(k) || !slices.Equal(got, places) {
				t.Errorf("%d entries, %x: %v, want %v", n, k, got, places)
			}
		}
		for i := range 1000 {
			k := keyOf(2, uint64(i))
			if got := table.get(k); (got != nil) != (want[k] != nil) {
				t.Errorf("%d entries, %x: %v", n, k, got)
			}
		}
	}
}
