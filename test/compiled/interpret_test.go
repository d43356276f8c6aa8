package compiled

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"sshbroker/capture"
	"sshbroker/filter"
)

// interpret is capture.Spec as its comments say it.
func interpret(s capture.Spec, f flow) capture.Outcome {
	addr := f.Addr.Unmap().WithZone("")
	in := func(prefixes []netip.Prefix) bool {
		return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
	}
	switch {
	case in(s.Pools):
		return capture.Ask
	case f.local && !s.Local, slices.Contains(s.Exempt, netip.AddrPortFrom(addr, f.Port)):
		return capture.Pass
	}
	for _, r := range s.Rules {
		if (len(r.Prefixes) == 0 || in(r.Prefixes)) &&
			(len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, func(p capture.PortRange) bool { return p.Lo <= f.Port && f.Port <= p.Hi })) {
			return r.Outcome
		}
	}
	return s.Rest
}

// TestInterpreted holds compiled rules to Decide, without a kernel.
func TestInterpreted(t *testing.T) {
	first, count := seeds(5_000, 40)
	var asked, decided, full int
	for seed := first; seed < first+count && !t.Failed(); seed++ {
		w := randomWorld(seed)
		rng := rand.New(rand.NewPCG(seed, 2))
		complete := w.fullyCompilable()
		if complete && len(w.rules) > 1 {
			full++
		}
		for _, f := range w.randomFlows(rng, 20) {
			switch rng.IntN(20) {
			case 0:
				f.local = true
			case 1:
				f.Addr = netip.MustParseAddr("fe80::1%eth0")
			case 2:
				if f.Addr.Is4() {
					f.Addr = netip.AddrFrom16(f.Addr.As16())
				}
			}
			got := interpret(w.spec, f)
			if wrong := w.verify(f, got); wrong != "" {
				w.report(t, wrong, func(w *world) bool { return w.verify(f, interpret(w.spec, f)) != "" })
			}
			if _, mustAsk := w.want(f); complete && got == capture.Ask && !mustAsk {
				t.Errorf("-seed=%d: asks about %s without need\n%s", seed, f, w)
			}
			if got == capture.Ask {
				asked++
			} else {
				decided++
			}
		}
	}
	t.Logf("%d rule sets, %d of them wholly for the kernel; %d flows decided, %d asked about", count, full, decided, asked)
	if *oneSeed < 0 && (decided < 40_000 || asked < 10_000 || full < 200) {
		t.Error("the test has lost its grip")
	}
}

// TestInterpretedElsewhere: what compiled rules let through without the broker may go out
// in clear wherever the host is by then.
func TestInterpretedElsewhere(t *testing.T) {
	first, count := seeds(5_000, 40)
	passed := 0
	for seed := first; seed < first+count && !t.Failed(); seed++ {
		w := randomWorld(seed)
		rng := rand.New(rand.NewPCG(seed, 4))
		if !slices.ContainsFunc(w.rules, func(r filter.Rule) bool { return r.Network != "" }) {
			continue
		}
		leaks := func(w *world, f flow) bool {
			moved := *w
			moved.set = w.set.On(func(network string) bool { return network != here })
			want, _ := moved.want(f)
			return interpret(w.spec, f) == capture.Pass && want != capture.Pass
		}
		for _, f := range w.randomFlows(rng, 20) {
			if interpret(w.spec, f) == capture.Pass {
				passed++
			}
			if leaks(w, f) {
				w.report(t, f.String()+": in clear, once the host is elsewhere", func(w *world) bool { return leaks(w, f) })
			}
		}
	}
	t.Logf("%d flows passed", passed)
	if *oneSeed < 0 && passed < 2_000 {
		t.Error("the test has lost its grip")
	}
}

const mistakes = 7 // kinds of them

// mutate makes compiled rules wrong in one of the ways in which they could be, and
// says which; "" where this way changes nothing.
func mutate(rng *rand.Rand, s *capture.Spec) string {
	rules := slices.Clone(s.Rules)
	s.Rules = rules
	if len(rules) == 0 {
		return ""
	}
	i := rng.IntN(len(rules))
	r := &rules[i]
	switch rng.IntN(mistakes) {
	case 0:
		s.Rules = slices.Delete(rules, i, i+1)
		return "rule left out"
	case 1:
		if r.Outcome == capture.Pass {
			r.Outcome = capture.Reset
		} else {
			r.Outcome = capture.Pass
		}
		return "other outcome"
	case 2:
		if i > 0 && rules[i-1].Outcome != r.Outcome {
			rules[i-1], rules[i] = rules[i], rules[i-1]
			return "rules exchanged"
		}
	case 3:
		if len(r.Ports) > 0 && r.Ports[0].Hi < 65535 {
			r.Ports = slices.Clone(r.Ports)
			r.Ports[0].Hi++
			return "one port more"
		}
	case 4:
		if len(r.Ports) > 0 && r.Ports[0].Lo < r.Ports[0].Hi {
			r.Ports = slices.Clone(r.Ports)
			r.Ports[0].Lo++
			return "one port less"
		}
	case 5:
		if len(r.Prefixes) > 0 && r.Prefixes[0].Bits() > 0 {
			r.Prefixes = slices.Clone(r.Prefixes)
			r.Prefixes[0] = netip.PrefixFrom(r.Prefixes[0].Addr(), r.Prefixes[0].Bits()-1).Masked()
			return "prefix too wide"
		}
	case 6:
		if len(r.Prefixes) > 0 {
			r.Prefixes = nil
			return "addresses left out"
		}
	}
	return ""
}

// TestInterpretedControl shows that TestInterpreted finds rules that are wrong.
func TestInterpretedControl(t *testing.T) {
	tried, found := make(map[string]int), make(map[string]int)
	for seed := range uint64(2_000) {
		w := randomWorld(seed)
		rng := rand.New(rand.NewPCG(seed, 3))
		how := mutate(rng, &w.spec)
		if how == "" {
			continue
		}
		tried[how]++
		for _, f := range w.randomFlows(rng, 50) {
			if w.verify(f, interpret(w.spec, f)) != "" {
				found[how]++
				break
			}
		}
	}
	// Many changes are of no consequence: rules that later ones repeat, or ask.
	for how, n := range tried {
		t.Logf("%s: %d of %d found", how, found[how], n)
		if n < 20 || found[how] < n/12 {
			t.Errorf("%s: only %d of %d found", how, found[how], n)
		}
	}
	if len(tried) != mistakes {
		t.Errorf("only %d kinds of mistakes were tried", len(tried))
	}
}
