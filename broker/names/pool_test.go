package names

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func mustPool(t *testing.T, v4, v6 string, max int) *pool {
	t.Helper()
	var p6 netip.Prefix
	if v6 != "" {
		p6 = netip.MustParsePrefix(v6)
	}
	p, err := newPool(netip.MustParsePrefix(v4), p6, max, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPoolAddresses(t *testing.T) {
	for _, tc := range []struct {
		v4, v6 string
		count  int // that can be given
		first  [2]string
	}{
		{"198.18.0.0/15", "", 2 * 256 * 254, [2]string{"198.18.0.1", "invalid IP"}},
		{"10.9.8.0/24", "fd00:1::/64", 254, [2]string{"10.9.8.1", "fd00:1::1"}},
		{"10.9.8.7/24", "fd00:1::5/120", 254, [2]string{"10.9.8.1", "fd00:1::1"}},
		{"10.9.8.0/24", "fd00:1::/124", 14, [2]string{"10.9.8.1", "fd00:1::1"}},
		{"10.9.8.252/30", "", 2, [2]string{"10.9.8.253", "invalid IP"}},
		{"10.9.8.0/23", "", 508, [2]string{"10.9.8.1", "invalid IP"}},
	} {
		t.Run(tc.v4, func(t *testing.T) {
			p := mustPool(t, tc.v4, tc.v6, 1<<20)
			seen := map[netip.Addr]bool{}
			for i := range tc.count {
				name := fmt.Sprintf("n%d", i)
				v4, v6, err := p.assign(name, nil)
				if err != nil {
					t.Fatalf("name %d: %v", i, err)
				}
				if i == 0 && (v4.String() != tc.first[0] || v6.String() != tc.first[1]) {
					t.Errorf("first addresses %v, %v", v4, v6)
				}
				last := v4.As4()[3]
				if seen[v4] || !p.v4.Contains(v4) || last == 0 || last == 255 {
					t.Fatalf("name %d has %v", i, v4)
				}
				seen[v4] = true
				if got, ok := p.name(v4); !ok || got != name {
					t.Fatalf("%v is %q", v4, got)
				}
				if v6.IsValid() {
					if got, ok := p.name(v6); !ok || got != name || !p.v6.Contains(v6) {
						t.Fatalf("%v is %q", v6, got)
					}
				}
			}
			if _, _, err := p.assign("one.more", nil); !errors.Is(err, errPoolFull) {
				t.Errorf("one name more: %v", err)
			}
			again, _, err := p.assign("n0", nil)
			if err != nil || again.String() != tc.first[0] {
				t.Errorf("the first name again: %v, %v", again, err)
			}
		})
	}
}

func TestPoolRefusesPrefixes(t *testing.T) {
	v4 := netip.MustParsePrefix("198.18.0.0/15")
	for _, tc := range [][2]netip.Prefix{
		{{}, {}},
		{netip.MustParsePrefix("fd00::/64"), {}},
		{netip.MustParsePrefix("10.0.0.0/31"), {}},
		{v4, v4},
		{v4, netip.MustParsePrefix("fd00::/127")},
		{v4, netip.MustParsePrefix("::ffff:10.0.0.0/104")},
	} {
		if _, err := newPool(tc[0], tc[1], 1, 0); err == nil {
			t.Errorf("%v was taken", tc)
		}
	}
}

func TestPoolContains(t *testing.T) {
	p := mustPool(t, "198.18.0.0/15", "fd00:1::/64", 10)
	for s, want := range map[string]bool{
		"198.18.0.0": true, "198.19.255.255": true, "198.20.0.0": false, "198.17.255.255": false,
		"fd00:1::": true, "fd00:1::ffff:ffff:ffff:ffff": true, "fd00:1:0:1::": false, "fd00:1::1%eth0": true,
	} {
		if got := p.contains(addr(s)); got != want {
			t.Errorf("%s: %v", s, got)
		}
		if name, ok := p.name(addr(s)); ok {
			t.Errorf("%s is %q", s, name)
		}
	}
	if (&pool{v4: DefaultPool4}).contains(netip.Addr{}) {
		t.Error("the zero address is in the pool")
	}
	p.assign("x", nil)
	if name, ok := p.name(addr("fd00:1::1:0:1")); ok {
		t.Errorf("an address with the same low bits is %q", name)
	}
}

// Addresses are used anew only after quarantine, oldest first, and not while a flow
// holds them.
func TestPoolQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mustPool(t, "10.9.8.0/29", "", 100) // six addresses
		all := map[string]netip.Addr{}
		for i := range 6 {
			name := fmt.Sprintf("n%d", i)
			all[name], _, _ = p.assign(name, nil)
			time.Sleep(time.Minute)
		}
		want := func(name string, want error) netip.Addr {
			t.Helper()
			a, _, err := p.assign(name, nil)
			if !errors.Is(err, want) {
				t.Fatalf("%s: %v, %v; want %v", name, a, err, want)
			}
			return a
		}
		want("new", errPoolFull)
		release := p.hold(all["n0"])
		time.Sleep(time.Hour)
		p.assign("n1", nil) // asked again: its quarantine starts anew
		if got := want("new0", nil); got != all["n2"] {
			t.Errorf("took %v, not the oldest free one %v", got, all["n2"])
		}
		if _, ok := p.byName["n2"]; ok {
			t.Error("the old name is still known")
		}
		if got, _ := p.name(all["n2"]); got != "new0" {
			t.Errorf("the address is %q", got)
		}
		for _, name := range []string{"new1", "new2", "new3"} {
			if got := want(name, nil); got == all["n0"] || got == all["n1"] {
				t.Errorf("%s took %v, which is in use", name, got)
			}
		}
		want("new4", errPoolFull)
		release()
		release()
		want("new4", errPoolFull) // just released: quarantine
		time.Sleep(time.Hour)
		if got, _ := p.name(all["n0"]); got != "n0" {
			t.Errorf("held address became %q", got)
		}
	})
}

func TestPoolBound(t *testing.T) {
	p := mustPool(t, "198.18.0.0/15", "", 3)
	for i := range 3 {
		if _, _, err := p.assign(fmt.Sprint("n", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := p.assign("n3", nil); !errors.Is(err, errPoolFull) {
		t.Errorf("beyond the bound: %v", err)
	}
	if p.restore(addr("198.18.9.9"), "n4") {
		t.Error("restored beyond the bound")
	}
	if !p.restore(addr("198.18.0.1"), "other") || p.len() != 3 {
		t.Error("a later mapping of the same address was refused")
	}
}

func TestMemory(t *testing.T) {
	m := newMemory(100)
	a, b := addr("192.0.2.1"), addr("2001:db8::1")
	m.remember(a, "one")
	m.remember(a, "two")
	m.remember(b, "one")
	m.remember(a, "one")
	if got := fmt.Sprint(m.lookup(a), m.lookup(b), m.lookup(addr("192.0.2.2"))); got != "[one two] [one] []" {
		t.Error(got)
	}
	for i := range 100 {
		m.remember(a, fmt.Sprint("n", i))
	}
	if got := m.lookup(a); len(got) != maxNamesPerAddr || got[0] != "n99" || got[15] != "n84" {
		t.Errorf("%v", got)
	}
	got := m.lookup(a)
	got[0] = "changed by the caller"
	if m.lookup(a)[0] != "n99" {
		t.Error("lookup gave its own slice away")
	}
	for i := range 1000 {
		m.remember(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), "x")
		if i%10 == 0 {
			m.remember(b, "kept") // asked for again and again
		}
		if m.len() > 100 {
			t.Fatalf("%d names", m.len())
		}
	}
	if m.lookup(a) != nil || len(m.lookup(b)) != 2 || len(m.byAddr) != m.recent.Len() {
		t.Errorf("forgot the wrong ones: %v %v", m.lookup(a), m.lookup(b))
	}
}
