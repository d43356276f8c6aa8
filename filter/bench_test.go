package filter

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// mix makes rules as large rule files have them, and flows that they decide. Of the
// rules four in five are plain texts, prefixes and suffixes or address prefixes;
// the others need a true pattern. Names and addresses are unlike one another no
// more than those of one organisation are: the same domains, the same kinds of names.
type mix struct {
	rng   *rand.Rand
	used  map[string]bool
	rules []Rule
	flows []Flow // one for each rule, which it matches
}

// label makes a word that has not been there.
func (m *mix) label() string {
	for {
		var b strings.Builder
		for range 2 + m.rng.IntN(2) {
			b.WriteByte("bcdfghklmnprstvw"[m.rng.IntN(16)])
			b.WriteByte("aeiou"[m.rng.IntN(5)])
			if m.rng.IntN(3) == 0 {
				b.WriteByte("lnrst"[m.rng.IntN(5)])
			}
		}
		if m.rng.IntN(3) == 0 {
			fmt.Fprintf(&b, "%d", m.rng.IntN(100))
		}
		if word := b.String(); !m.used[word] {
			m.used[word] = true
			return word
		}
	}
}

func (m *mix) domain() string {
	return []string{"corp.example", "dept.corp.example", "lab.example", "example.org"}[m.rng.IntN(4)]
}

func quoted(name string) string { return strings.ReplaceAll(name, ".", `\.`) }

// flow is one from a browser to name at an address that no rule is about.
func (m *mix) flow(name string) Flow {
	return Flow{Names: names(name), Addr: netip.AddrFrom4([4]byte{198, 18, byte(m.rng.IntN(256)), byte(m.rng.IntN(256))}), Port: 443,
		Program: func() string { return "/usr/lib/firefox/firefox" }, User: "carol", Groups: groupsOfCarol}
}

var groupsOfCarol = names("users", "audio", "plugdev")

func (m *mix) add(i int) {
	r := Rule{Action: Tunnel, Profile: "p"}
	word, domain := m.label(), m.domain()
	f := m.flow(word + "." + domain)
	if i%5 != 4 {
		switch i / 5 % 8 {
		case 0, 1, 2:
			r.Host = host(quoted(f.Names[0]))
		case 3, 4:
			r.Host = host(`.*\.` + quoted(f.Names[0]))
			f.Names[0] = m.label() + "." + f.Names[0]
		case 5:
			r.Host = host(word + `\..*`)
		case 6:
			n := m.rng.IntN(1 << 16)
			r.Address = text(fmt.Sprintf(`10\.%d\.%d\..*`, n>>8, n&255))
			f.Addr = netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 7})
		case 7:
			f.Addr = netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})
			r.Prefix = netip.PrefixFrom(f.Addr, 32-m.rng.IntN(8))
		}
	} else {
		switch i / 5 % 8 {
		case 0, 1:
			r.Host = host(`(.*\.)?` + quoted(f.Names[0]))
		case 2:
			r.Host = host(word + `[0-9]+\.` + quoted(domain))
			f.Names[0] = word + "17." + domain
		case 3:
			r.Host = host(`.*\<` + word + `\>.*`)
		case 4:
			r.Host = host(`(www|mail|db)-` + word + `\.[a-z.]+\.example`)
			f.Names[0] = "mail-" + word + ".north.example"
		case 5:
			r.Host = host(word + `-(prod|test)[0-9]{2}\.` + quoted(domain))
			f.Names[0] = word + "-prod07." + domain
		case 6:
			n := m.rng.IntN(1 << 16)
			r.Address = text(fmt.Sprintf(`192\.%d\.[0-9]+\.%d`, n>>8, n&255))
			f.Addr = netip.AddrFrom4([4]byte{192, byte(n >> 8), 3, byte(n)})
		case 7:
			r.Application = text(`(.*/)?` + word + `[0-9.]*`)
			f.Program = func() string { return "/usr/bin/" + word + "2.0" }
		}
	}
	switch m.rng.IntN(8) {
	case 0:
		r.Ports = ports("22,443,8000-8999")
	case 1:
		r.Users = names("alice", "carol")
	case 2:
		r.Groups = names("users")
	}
	m.rules = append(m.rules, r)
	m.flows = append(m.flows, f)
}

func newMix(n int) *mix {
	m := &mix{rng: rand.New(rand.NewPCG(5, 6)), used: make(map[string]bool)}
	for i := range n {
		m.add(i)
	}
	return m
}

// traffic returns n flows: in turn one that matches a rule, each as likely as any
// other, and one that matches none.
func (m *mix) traffic(n int) []Flow {
	flows := make([]Flow, n)
	for i := range flows {
		if i%2 == 0 {
			flows[i] = m.flow("") // an address of its own
			from := m.flows[m.rng.IntN(len(m.flows))]
			if from.Addr.As4()[0] != 198 {
				flows[i].Addr = from.Addr
			}
			flows[i].Names, flows[i].Program = from.Names, from.Program
			continue
		}
		name := m.label()
		if m.rng.IntN(2) == 0 {
			name = m.label() + "." + name
		}
		flows[i] = m.flow(name + "." + m.domain())
	}
	return flows
}

// TestMix: the benchmark's flows are what it says they are.
func TestMix(t *testing.T) {
	m := newMix(1000)
	s := mustSet(t, m.rules, Direct)
	matched := make(map[int]bool)
	for i, f := range m.traffic(8000) {
		f.Names = slices.Clone(f.Names)
		d := s.Decide(&f)
		if (d.Rule != nil) != (i%2 == 0) {
			t.Fatalf("flow %d, %+v of %s: decided %+v", i, f, f.Program(), d)
		}
		if d.Rule != nil {
			matched[d.Rule.Number] = true
		}
	}
	if len(matched) < 900 {
		t.Errorf("%d of 1000 rules decide a flow", len(matched))
	}
}

func benchmarkMix(b *testing.B, rules int) {
	m := newMix(rules)
	s := mustSet(b, m.rules, Direct)
	flows := m.traffic(1 << 16)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		s.Decide(&flows[i&(1<<16-1)])
		i++
	}
	// One by one, the clock's own time in it.
	took := make([]time.Duration, len(flows))
	for i := range flows {
		begin := time.Now()
		s.Decide(&flows[i])
		took[i] = time.Since(begin)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "median-ns")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
}

func BenchmarkDecideMix100(b *testing.B)   { benchmarkMix(b, 100) }
func BenchmarkDecideMix10000(b *testing.B) { benchmarkMix(b, 10_000) }

// BenchmarkDecideWorst is for 2,000 patterns that no text sets apart.
func BenchmarkDecideWorst(b *testing.B) {
	rules := make([]Rule, 2000)
	for i := range rules {
		rules[i] = Rule{Host: host(fmt.Sprintf(`[a-z]{%d}.*\.[a-z]{%d}`, 4+i%40, 1+i/40)), Action: Direct}
	}
	s := mustSet(b, rules, Direct)
	f := newMix(0).flow("www.corp.example")
	b.ReportAllocs()
	for b.Loop() {
		s.Decide(&f)
	}
}

// BenchmarkPseudo10000 is for a name that no rule is about.
func BenchmarkPseudo10000(b *testing.B) {
	m := newMix(10_000)
	for i := range m.rules {
		m.rules[i].PseudoIP = true
	}
	s := mustSet(b, m.rules, Direct)
	flows := m.traffic(1 << 16)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		s.Pseudo(flows[i&(1<<16-1)].Names[0])
		i++
	}
}

// BenchmarkNewSet10000 makes the patterns too, and tells what stays in memory.
func BenchmarkNewSet10000(b *testing.B) {
	var sets []*Set
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for b.Loop() {
		sets = append(sets[:0], mustSet(b, newMix(10_000).rules, Direct))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB")
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/1e6/float64(b.N), "MB-allocated")
	runtime.KeepAlive(sets)
}
