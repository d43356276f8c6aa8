package endurance

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sshbroker/capture/service"
	"sshbroker/test/netns"
)

// holding is to how many of the targets flows are held; the rush is to the others.
const holding = 10

// scale is how much of everything there is.
type scale struct {
	flows, rate int
	length      time.Duration // of the rush
	settle      time.Duration // until memory is given back and decisions are forgotten
}

// TestMany holds many tunneled flows, makes many new ones a second beside them, and
// requires that none fails, that what it took is given back, and that nothing is left.
func TestMany(t *testing.T) {
	s := scale{flows: 500, rate: 200, length: 3 * time.Second, settle: time.Second}
	if long() {
		// ssh-captured forgets its decisions after 80 s.
		s = scale{flows: 10_000, rate: 2000, length: time.Minute, settle: 100 * time.Second}
	}
	w := newWorld(t)
	profiles, rules := w.sshds(t)
	before := w.Snapshot(t)
	w.serve(t, profiles, rules)
	// Several users, as each may have a part of what a broker can carry.
	var holders []*load
	users := []*netns.User{w.Alice, w.Bob, w.Carol}
	for i := range holding {
		holders = append(holders, w.load(t, users[i%len(users)], w.ports[i]))
	}
	maker := w.load(t, w.Bob, w.ports[holding])

	rush := func(rate int, length time.Duration) {
		t.Helper()
		r := maker.do(t, length+patience, "rush %d %d %s", rate, length.Milliseconds(), strings.Join(w.ports[holding:], " "))
		t.Logf("%d flows in %.1f s, to the first byte p50 %.2f ms, p99 %.2f ms", r.Count, r.Seconds, r.P50/1e3, r.P99/1e3)
		if len(r.Outcomes) != 1 || r.Outcomes["ok"] == 0 {
			t.Errorf("what became of them: %v", r.Outcomes)
		}
		if want := float64(rate) * length.Seconds(); float64(r.Count) < 0.95*want {
			t.Errorf("%d flows were made, want %.0f: the machine does not keep up", r.Count, want)
		}
	}
	hold := func() {
		t.Helper()
		for _, h := range holders {
			h.begin(t, "hold %d", s.flows/len(holders))
		}
		for _, h := range holders {
			h.end(t, 5*patience)
		}
	}
	release := func() {
		t.Helper()
		for _, h := range holders {
			h.do(t, patience, "release")
		}
		w.awaitNoFlows(t)
		time.Sleep(s.settle) // nothing tells when the runtime has given memory back
	}

	// Once before: what is taken for good is taken then.
	hold()
	rush(s.rate, s.length/4)
	release()
	first := w.ours(t)
	t.Logf("before: %v", first)

	began := time.Now()
	hold()
	t.Logf("%d flows were made in %v, %d at a time", s.flows, time.Since(began).Round(time.Millisecond), holding)
	full := w.ours(t)
	t.Logf("with %d flows: %v", s.flows, full)
	rush(s.rate, s.length)
	t.Logf("after the rush: %v", w.ours(t))
	live := int64(0)
	for _, h := range holders {
		live += h.do(t, patience, "touch").Count
	}
	if want := s.flows / len(holders) * len(holders); live != int64(want) {
		t.Errorf("%d flows live, want %d", live, want)
	}
	st := w.Status(t)
	if st.Waiting != 0 || st.Overruns != 0 || st.Bounded != 0 || st.Metered != 0 || st.Strangers != 0 || st.LostMark != 0 || st.Diverted != 0 {
		t.Errorf("waiting %d, overruns %d, bounded %d, metered %d, strangers %d, lost marks %d, diverted %d",
			st.Waiting, st.Overruns, st.Bounded, st.Metered, st.Strangers, st.LostMark, st.Diverted)
	}
	release()
	for end := time.Now().Add(patience); ; time.Sleep(time.Second) {
		last := w.ours(t)
		if !last.captured.above(first.captured) && !last.broker.above(first.broker) {
			t.Logf("after: %v", last)
			break
		}
		if time.Now().After(end) {
			t.Errorf("after: %v\nbefore: %v", last, first)
			break
		}
	}

	if r := w.Run(t, nil, w.Ctl, "connector", "disable"); r.Code != 0 {
		t.Errorf("connector disable: %v", r)
	}
	w.awaitUntracked(t)
	for _, l := range append(holders, maker) {
		l.jobs.Close()
		l.process.Wait(t)
	}
	w.StopSystemBroker(t)
	w.StopCaptured(t)
	w.RequireRestored(t, before, patience)
}

// awaitNoFlows waits until neither the broker nor ssh-captured has any flow.
func (w *world) awaitNoFlows(t *testing.T) {
	t.Helper()
	w.Await(t, "nothing that waits", func(st service.Status) bool { return st.Waiting == 0 })
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		var st struct {
			Live int `json:"flows_live"`
		}
		if err := json.Unmarshal([]byte(w.Client.Output(t, nil, w.Ctl, "-a", w.Address(), "status", "-s")), &st); err != nil {
			t.Fatal(err)
		}
		if st.Live == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d flows do not end", st.Live)
		}
	}
}

// awaitUntracked waits until the kernel tracks no connection of the client any more but
// the broker's to the SSH servers.
func (w *world) awaitUntracked(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		left := 0
		err := w.Client.Do(func() error {
			for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
				flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
				if err != nil {
					return err
				}
				for _, f := range flows {
					if port := f.Forward.DstPort; port < firstSSHD || port >= firstSSHD+targets {
						left++
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if left == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the kernel still tracks %d connections", left)
		}
	}
}
