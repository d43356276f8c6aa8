package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"sshbroker/broker/control"
	"sshbroker/capture"
	"sshbroker/capture/capturetest"
	"sshbroker/capture/service"
	"sshbroker/filter"
)

// madeUp is a place by the domains of networks; the zero one is away from all.
type madeUp map[string]filter.Presence

func (p madeUp) On(_ netip.Prefix, _ bool, domain string) filter.Presence { return p[domain] }

func (p madeUp) Err() error {
	for _, presence := range p {
		if presence == filter.Unknown {
			return errors.New("no socket")
		}
	}
	return nil
}

var office, doubt = madeUp{"office.example": filter.Here}, madeUp{"office.example": filter.Unknown}

// bound are rules for one network, and one for everywhere.
const bound = `<network id="office" domain="office.example" ip-generate-start="198.19.0.0"/><network id="lab" domain="lab.example" ip-generate-start="10.200.0.0"/>
<dns id="b" network-id="office" ip-address="203.0.113.0/24"/><filter dns-id="b" action="BLOCK"/>
<dns id="d" network-id="office" ip-address="198.51.100.0/24"/><filter dns-id="d" action="DIRECT"/>` + tunnel

// flow offers a flow to a source, and says what became of it.
func flow(s *fakeSource, to string) string {
	a := capturetest.NewAttempt(to)
	a.CanPass = true
	s.Offer(a)
	switch got := a.Outcome(); {
	case got.Passed:
		return "passed"
	case got.Admitted:
		a.Program().Close()
		return "tunneled"
	case got.Refusal == capture.Refused:
		return "ECONNREFUSED"
	default:
		return "EHOSTUNREACH"
	}
}

// TestMoved: what is in force follows the host, for the broker and the kernel, in the
// generation that it was.
func TestMoved(t *testing.T) {
	for _, kind := range []string{"common rules", "rules of its own"} {
		t.Run(kind, func(t *testing.T) {
			b := prepare(t, "", bound)
			args := cgroupArgs()
			if kind == "rules of its own" {
				args.ConfigFile = filepath.Join(b.dir, "own.xml")
				if err := os.Rename(b.file, args.ConfigFile); err != nil {
					t.Fatal(err)
				}
				b.rules("", tunnel)
			}
			if err := b.start(nil); err != nil {
				t.Fatal(err)
			}
			c := b.capture(args)
			s := b.captured.source(t, "abcd")
			within(t, c.rows)
			kept := capturetest.NewAttempt("203.0.113.1:23")
			s.Offer(kept)
			if !kept.Outcome().Admitted {
				t.Fatal("blocked away from the office")
			}
			spec := s.options.Spec
			for _, at := range []struct {
				place           madeUp
				blocked, direct string
				inKernel        int // rules
			}{
				{office, "ECONNREFUSED", "passed", 1},
				{doubt, "ECONNREFUSED", "tunneled", 1},
				{madeUp{}, "tunneled", "tunneled", 0},
				{office, "ECONNREFUSED", "passed", 1},
			} {
				b.moved(at.place)
				spec = within(t, s.specs)
				if len(spec.Rules) != at.inKernel || spec.Rest != capture.Ask {
					t.Errorf("at %v: %d rules for the kernel, then %v; want %d", at.place, len(spec.Rules), spec.Rest, at.inKernel)
				}
				if at.inKernel == 1 && spec.Rules[0].Outcome == capture.Pass {
					t.Errorf("at %v: the kernel lets through %+v by itself", at.place, spec.Rules[0])
				}
				for to, want := range map[string]string{"203.0.113.7:23": at.blocked, "198.51.100.7:23": at.direct, "192.0.2.7:23": "tunneled"} {
					if got := flow(s, to); !strings.Contains(got, want) {
						t.Errorf("at %v: %s is %s, want %s", at.place, to, got, want)
					}
				}
				b.moved(at.place)
				select {
				case <-s.specs:
					t.Errorf("at %v: told the kernel of nothing new", at.place)
				default:
				}
			}
			talk(t, kept)
			for _, r := range b.records(13) {
				if r["generation"] != 1.0 {
					t.Errorf("record %v", r)
				}
			}
		})
	}
}

// TestNetworkStatus has status and explain say where the host is.
func TestNetworkStatus(t *testing.T) {
	b := begin(t, "", bound, nil)
	for _, at := range []struct {
		place madeUp
		want  string
		step  string // of explain, for the rule that is DIRECT
	}{
		{madeUp{}, "[{office no} {lab no}] ", "network-id of office"},
		{office, "[{office yes} {lab no}] ", "matched"},
		{doubt, "[{office unknown} {lab no}] no socket", "network-id of office"},
	} {
		b.moved(at.place)
		row, err := one[control.StatusRow](b, control.OpStatus, nil)
		if got := fmt.Sprint(row.Networks, " ", row.PlaceError); err != nil || got != at.want || row.Generation != 1 {
			t.Errorf("generation %d, %s, want %s; %v", row.Generation, got, at.want, err)
		}
		c := b.dial()
		got := "none"
		err = c.Call(t.Context(), control.OpExplain, control.ExplainArgs{Host: "198.51.100.7", Port: 23}, nil, func(m json.RawMessage) error {
			var row control.ExplainRow
			if err := json.Unmarshal(m, &row); err != nil || row.Step == nil || row.Step.Rule != 2 {
				return err
			}
			if got = "matched"; !row.Step.Matched {
				got = row.Step.Condition + " of " + row.Step.Pattern
			}
			return nil
		}, nil)
		c.Close()
		if err != nil || got != at.step {
			t.Errorf("at %v: explained as %s, want %s; %v", at.place, got, at.step, err)
		}
	}
}

// TestPoolOfNetwork: where the host is when a capture begins gives it its pool, for good.
func TestPoolOfNetwork(t *testing.T) {
	b := begin(t, "", bound, nil)
	pool := func(id string) (*fakeSource, string) {
		args := cgroupArgs()
		args.ID = id
		c := b.capture(args)
		s := b.captured.source(t, id)
		within(t, c.rows)
		return s, fmt.Sprint(s.options.Spec.Pools)
	}
	if _, got := pool("away"); got != "[198.18.0.0/15]" {
		t.Errorf("away: pool %s", got)
	}
	b.moved(office)
	first, got := pool("office")
	if got != "[198.19.0.0/16]" {
		t.Errorf("at the office: pool %s", got)
	}
	b.moved(madeUp{"lab.example": filter.Here})
	if got := fmt.Sprint(within(t, first.specs).Pools); got != "[198.19.0.0/16]" {
		t.Errorf("moved: pool %s", got)
	}
	if _, got := pool("lab1"); got != "[10.200.0.0/15]" {
		t.Errorf("in the lab: pool %s", got)
	}
	b.moved(madeUp{"lab.example": filter.Unknown})
	if _, got := pool("doubt"); got != "[198.18.0.0/15]" {
		t.Errorf("in doubt: pool %s", got)
	}
}

// TestPoolOfTakeover: a capture that another broker serves from elsewhere keeps its pool.
func TestPoolOfTakeover(t *testing.T) {
	for held, want := range map[string]string{
		// The first is of a network's pool that the common one has in it, which will do.
		"198.19.0.7": "[198.18.0.0/15]", "198.18.0.7": "[198.18.0.0/15]", "10.200.0.7": "[10.200.0.0/15]", "192.0.2.7": "[198.18.0.0/15]", "": "[198.18.0.0/15]",
	} {
		b := prepare(t, "", bound)
		args := cgroupArgs()
		args.Takeover = true
		b.captured.known = []service.Capture{{ID: args.ID}}
		if held != "" {
			line := "1 " + held + " db.example"
			line = fmt.Sprintf("%s %08x\n", line, crc32.ChecksumIEEE([]byte(line)))
			file := filepath.Join(b.dir, "ssh-broker-names-"+args.ID+"-"+cgroupJournal)
			if err := os.WriteFile(file, []byte(line), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.start(nil); err != nil {
			t.Fatal(err)
		}
		if held == "198.18.0.7" {
			b.moved(office)
		}
		b.capture(args)
		if got := fmt.Sprint(b.captured.source(t, args.ID).options.Spec.Pools); got != want {
			t.Errorf("taken over with %q: pool %s, want %s", held, got, want)
		}
	}
}

// TestMovedAmidReloads: neither undoes the other, and every flow is decided as at one of
// the places.
func TestMovedAmidReloads(t *testing.T) {
	b := begin(t, "", bound, nil)
	b.capture(cgroupArgs())
	s := b.captured.source(t, "abcd")
	s.mu.Lock()
	s.specs = make(chan capture.Spec, 1000)
	s.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 50 {
			b.moved([]madeUp{{}, office}[i%2]) // ends at the office
		}
	})
	wg.Go(func() {
		for range 50 {
			if _, err := b.Reload(); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Go(func() {
		for range 50 {
			if got := flow(s, "198.51.100.7:23"); got != "passed" && got != "tunneled" {
				t.Errorf("decided as %s", got)
			}
		}
	})
	wg.Wait()
	if got := flow(s, "198.51.100.7:23"); got != "passed" {
		t.Errorf("at the office: %s", got)
	}
	if p := b.broker.Policy(); p.Generation != 51 {
		t.Errorf("generation %d after 50 reloads", p.Generation)
	}
	var last capture.Spec
	for len(s.specs) > 0 {
		last = <-s.specs
	}
	if len(last.Rules) != 1 || last.Rules[0].Outcome != capture.Reset {
		t.Errorf("the kernel has %+v", last)
	}
}

// TestGenerations: status tells what still goes by older configurations, and forgets
// those that nothing does.
func TestGenerations(t *testing.T) {
	b := begin(t, "", tunnel, nil)
	c := b.capture(cgroupArgs())
	s := b.captured.source(t, "abcd")
	within(t, c.rows)
	status := func() string {
		t.Helper()
		row, err := one[control.StatusRow](b, control.OpStatus, nil)
		if err != nil {
			t.Fatal(err)
		}
		var text []string
		last := b.since
		for _, g := range row.Generations {
			if g.Since.Before(last) || g.Since.After(time.Now()) {
				t.Errorf("generation %d since %v, the one before since %v", g.Generation, g.Since, last)
			}
			last = g.Since
			text = append(text, fmt.Sprintf("%d:%d+%d", g.Generation, g.Flows, g.Captures))
		}
		return strings.Join(text, " ")
	}
	reload := func() {
		t.Helper()
		if _, err := b.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	if got := status(); got != "1:0+1" {
		t.Errorf("at the start %s", got)
	}
	open := func() *capturetest.Attempt {
		a := capturetest.NewAttempt("192.0.2.7:23")
		s.Offer(a)
		if !a.Outcome().Admitted {
			t.Fatal("not admitted")
		}
		return a
	}
	first, second := open(), open()
	reload()
	third := open()
	for range 10 {
		reload()
	}
	if got := status(); got != "1:2+0 2:1+0 12:0+1" {
		t.Errorf("with flows of before: %s", got)
	}
	b.rules("", "<rule/>")
	if _, err := b.Reload(); err == nil {
		t.Error("a broken file was reloaded")
	}
	own := cgroupArgs()
	own.ID, own.ConfigFile = "private", filepath.Join(b.dir, "own.xml")
	b.rules("", tunnel)
	if err := os.Rename(b.file, own.ConfigFile); err != nil {
		t.Fatal(err)
	}
	b.rules("", tunnel+tunnel)
	oc := b.capture(own)
	b.captured.source(t, "private")
	within(t, oc.rows)
	s.mu.Lock()
	s.specErr = errors.New("no memory")
	s.mu.Unlock()
	reload()
	if got := status(); got != "1:2+0 2:1+0 12:0+2 13:0+0" {
		t.Errorf("with a capture of its own rules and one whose kernel rules are old: %s", got)
	}
	s.mu.Lock()
	s.specErr = nil
	s.mu.Unlock()
	reload()
	for _, a := range []*capturetest.Attempt{first, second, third} {
		talk(t, a)
	}
	b.records(3)
	eventually(t, "no flow", func() bool { return status() == "12:0+1 14:0+1" })
}

// TestReloadsKeepNothing: of what many reloads and moves have made only the last is left.
func TestReloadsKeepNothing(t *testing.T) {
	many := strings.Repeat(`<rule ip-address="(10\.1|10\.2)\..*" ports="1-9" action="DIRECT"/>`, 200)
	b := begin(t, "", bound+many, nil)
	b.capture(cgroupArgs())
	s := b.captured.source(t, "abcd")
	round := func(n int) (heap uint64, goroutines int) {
		for i := range n {
			if _, err := b.Reload(); err != nil {
				t.Fatal(err)
			}
			within(t, s.specs)
			b.moved([]madeUp{office, {}}[i%2])
			within(t, s.specs)
			flow(s, "192.0.2.7:23")
		}
		eventually(t, "the end of all flows", func() bool { return b.broker.Totals().Live == 0 })
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc, runtime.NumGoroutine()
	}
	heap, goroutines := round(20)
	after, more := round(200)
	t.Logf("heap %d KiB before 200 reloads, %d KiB after", heap>>10, after>>10)
	// Hundreds of rule sets like this one would take tens of mebibytes.
	if after > heap+4<<20 || more > goroutines+5 {
		t.Errorf("heap %d, then %d; goroutines %d, then %d", heap, after, goroutines, more)
	}
}
