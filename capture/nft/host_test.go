package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables/expr"

	"sshbroker/capture"
	"sshbroker/capture/netlink"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// hostSpec has everything in it that a table can have.
func hostSpec() HostSpec {
	return HostSpec{
		Form: TargetQueue, TCP: 4001, Meter: Meter{Rate: 100, Burst: 200},
		Captures: []HostCapture{
			{ID: "u1000-1", Queue: 101, DNSUDP: 5001, DNSTCP: 5002, Cgroup: 4711, Level: 2, UID: 1000, Spec: capture.Spec{Local: true, Rest: capture.Pass}},
			{ID: "u1001-2", Queue: 102, DNSUDP: 5003, DNSTCP: 5004, Cgroup: 4712, Level: 3, UID: 1001, Spec: capture.Spec{
				Pools: prefixes("198.18.0.0/15", "2001:db8:18::/64"), RefuseUDP: true}},
		},
		System: &HostCapture{ID: "system", Queue: 100, DNSUDP: 5005, DNSTCP: 5006, Spec: capture.Spec{
			Pools:  prefixes("198.20.0.0/16"),
			Exempt: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:22"), netip.MustParseAddrPort("192.0.2.1:22"), netip.MustParseAddrPort("[2001:db8::1]:22"), netip.MustParseAddrPort("192.0.2.2:2222")},
			Users:  []capture.UIDRange{{Lo: 1000, Hi: 59999}, {Lo: 60578, Hi: 60700}, {Lo: 70000, Hi: 70000}},
			Rules: []capture.SpecRule{
				{Number: 1, Outcome: capture.Pass, Prefixes: prefixes("10.0.0.0/8", "fd00::/8")},
				{Number: 2, Outcome: capture.Reset, Ports: []capture.PortRange{{Lo: 25, Hi: 25}, {Lo: 137, Hi: 139}, {Lo: 445, Hi: 445}}},
				{Number: 3, Outcome: capture.Ask, Prefixes: prefixes("192.0.2.0/24", "198.51.100.0/24", "203.0.113.5/32", "0.0.0.0/1"), Ports: []capture.PortRange{{Lo: 8000, Hi: 9000}, {Lo: 80, Hi: 80}}},
				{Number: 4, Outcome: capture.Pass, Prefixes: prefixes("2001:db8::/32", "2001:db8:1::/48", "ff00::/8", "2002::1/128", "2003::/16")},
				{Number: 5, Outcome: capture.Pass, Prefixes: []netip.Prefix{{}}},
			},
			Rest: capture.Ask, RefuseUDP: true,
		}},
	}
}

func TestHostGolden(t *testing.T) {
	full, unheld := hostSpec(), hostSpec()
	unheld.Form = NoQueue
	plain := HostSpec{Form: NativeQueue, TCP: 4001, Captures: []HostCapture{{ID: "a", Queue: 7, DNSUDP: 1, DNSTCP: 2, Cgroup: 3, Level: 1, UID: 4}}}
	for name, spec := range map[string]HostSpec{"host.nft": full, "host-unheld.nft": unheld, "host-cgroup.nft": plain, "host-empty.nft": {}} {
		CompareGolden(t, name, Host(spec).String())
	}
}

func CompareGolden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s:\n%s\nwant\n%s", file, got, want)
	}
}

// TestQueueExpressions holds the one property that fails open if it is lost for whole
// tables: no expression that queues carries the bypass flag.
func TestQueueExpressions(t *testing.T) {
	for _, form := range []QueueForm{TargetQueue, NativeQueue} {
		spec, queues := hostSpec(), 0
		spec.Form = form
		for _, c := range Host(spec).Chains {
			for _, r := range c.rules {
				for _, term := range r {
					for _, e := range term.exprs {
						switch e := e.(type) {
						case *expr.Queue:
							queues++
							if e.Flag != 0 || e.Total != 1 {
								t.Errorf("%s: %+v", r, e)
							}
						case *expr.Target:
							queues++
							if e.Name != "NFQUEUE" || e.Rev != 1 {
								t.Errorf("%s: %+v", r, e)
							}
						}
					}
				}
			}
		}
		if queues != 3 {
			t.Errorf("form %d: %d queue expressions for 3 captures", form, queues)
		}
		if strings.Contains(Host(spec).String(), "bypass") {
			t.Error("the rule set says bypass")
		}
	}
}

func TestCounterNames(t *testing.T) {
	for _, o := range []capture.Outcome{capture.Pass, capture.Reset} {
		want := Hit{Capture: "u1_2-3", Rule: 12, Outcome: o}
		if got, ok := parseCounter(HostCapture{ID: want.Capture}.counter(o, want.Rule)); !ok || got != want {
			t.Errorf("%+v, %v; want %+v", got, ok, want)
		}
	}
	for _, name := range []string{"lost_mark", "ask_1_x", "pass_x_y", "", "pass_1"} {
		if h, ok := parseCounter(name); ok {
			t.Errorf("%q: %+v", name, h)
		}
	}
}

// TestMerge compares merged spans with the spans themselves, key by key. Single keys may
// touch where there is no range among them.
func TestMerge(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var spans []span
		single, most := r.IntN(4) == 0, 16<<(4*r.IntN(2))
		for range r.IntN(6) {
			s := span{first: []byte{byte(r.IntN(most))}, last: []byte{byte(r.IntN(most))}}
			if single {
				s.last = s.first
			}
			spans = append(spans, s)
		}
		merged, apart := merge(spans), 0
		if slices.ContainsFunc(spans, span.several) {
			apart = 1
		}
		for i, s := range merged[:max(len(merged)-1, 0)] {
			if int(s.last[0])+apart >= int(merged[i+1].first[0]) {
				t.Fatalf("%v: %v touch", spans, merged)
			}
		}
		for k := range 256 {
			key := []byte{byte(k)}
			in := func(list []span) bool {
				for _, s := range list {
					if bytes.Compare(s.first, key) <= 0 && bytes.Compare(key, s.last) <= 0 {
						return true
					}
				}
				return false
			}
			if in(spans) != in(merged) {
				t.Fatalf("%v: %v differ at %d", spans, merged, k)
			}
		}
	}
}

// TestJoined: spans that were joined are called by their two ends.
func TestJoined(t *testing.T) {
	var spans []span
	for i := range 256 {
		spans = append(spans, spanOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(255 - i), 0}), 24)))
	}
	spans = append(spans, spanOf(netip.MustParsePrefix("10.0.7.0/25")), spanOf(netip.MustParsePrefix("10.2.0.1/32")))
	ports := []span{{first: be16(80), last: be16(99), text: "80-99"}, {first: be16(1), last: be16(80), text: numbers[uint16](1, 80)}, {first: be16(100), last: be16(100), text: "100"}}
	for _, c := range []struct {
		spans []span
		want  string
	}{{spans, "10.0.0.0/24-10.0.255.0/24 10.2.0.1"}, {ports, "1-100"}} {
		var got []string
		for _, s := range merge(c.spans) {
			got = append(got, s.text)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// TestMask compares masks with the spans they stand for, at their ends and beyond.
func TestMask(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	masks := 0
	for range 20000 {
		first, last := r.Uint32()>>r.IntN(33)<<r.IntN(8), uint32(0)
		last = first + 1<<r.IntN(32) - uint32(r.IntN(2))
		s := span{first: be32(first), last: be32(last)}
		mask := s.mask()
		if mask == nil {
			continue
		}
		masks++
		for _, key := range []uint32{first, last, first - 1, last + 1, first + (last-first)/2, r.Uint32()} {
			if masked := key&binary.BigEndian.Uint32(mask) == first; masked != (first <= key && key <= last) {
				t.Fatalf("%#x-%#x: mask %x takes %#x: %t", first, last, mask, key, masked)
			}
		}
	}
	if masks < 100 {
		t.Errorf("only %d spans had a mask", masks)
	}
	for _, s := range []span{spanOf(netip.MustParsePrefix("2001:db8::/32")), spanOf(netip.MustParsePrefix("192.0.2.1/32")), {first: be16(0), last: be16(255)}} {
		if mask := s.mask(); mask != nil {
			t.Errorf("%x-%x: mask %x", s.first, s.last, mask)
		}
	}
	if all := spanOf(netip.MustParsePrefix("0.0.0.0/0")); !bytes.Equal(all.mask(), be32(0)) {
		t.Errorf("everything: mask %x", all.mask())
	}
}

func FuzzReplies(f *testing.F) {
	b := newBatch("t")
	b.newTable(OwnedPersistent)
	b.newCounter("c")
	f.Add(b.buf)
	f.Fuzz(func(t *testing.T, data []byte) {
		messages, _ := netlink.Messages(data)
		for _, m := range messages {
			a := body(m)
			for typ := range a {
				_ = fmt.Sprint(a.text(typ), a.num(typ))
			}
		}
	})
}
