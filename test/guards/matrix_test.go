package guards

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sshbroker/capture/service"
	"sshbroker/test/netns"
)

// TestMatrix has protected connections meet each foreign firewall, loaded before ours
// and after, and loaded again while connections live and SYNs are held.
func TestMatrix(t *testing.T) {
	w := newWorld(t)
	for _, f := range foreigners() {
		t.Run(f.name, func(t *testing.T) {
			w.off(t)
			w.load(t, f)
			f.control(t, w)
			w.on(t)
			t.Run("before", func(t *testing.T) { w.meet(t, f, f.droppedBefore) })
			live := w.protected(t)
			for _, c := range live {
				w.through(t, c)
			}
			w.load(t, f)
			t.Run("reloaded", func(t *testing.T) { w.reload(t, f, live) })
			t.Run("after", func(t *testing.T) { w.meet(t, f, f.dropped) })
			for _, c := range live {
				w.speaks(t, c)
				c.close(t)
			}
		})
	}
}

// TestWriters has rules write marks at every priority that could matter.
func TestWriters(t *testing.T) {
	w := newWorld(t)
	for _, f := range writers() {
		t.Run(f.name, func(t *testing.T) {
			if f.dropped != f.droppedBefore || strings.HasSuffix(f.name, " 0") { // their order matters, or one for all
				w.off(t)
				w.load(t, f)
				f.control(t, w)
				w.on(t)
				t.Run("before", func(t *testing.T) { w.meet(t, f, f.droppedBefore) })
			}
			w.on(t)
			w.load(t, f)
			t.Run("after", func(t *testing.T) { w.meet(t, f, f.dropped) })
		})
	}
}

// TestGivenUp has programs give up while their SYNs are held, which are let in then:
// nobody is there any more whose SYN it could be told to be.
func TestGivenUp(t *testing.T) {
	w := newWorld(t)
	w.on(t)
	since := w.mark(t)
	for range 5 {
		w.pause(t)
		for _, c := range w.hold(t) {
			c.close(t)
			c.answer(t)
		}
		w.resume(t)
		w.Await(t, "all SYNs decided", func(st service.Status) bool { return st.Waiting == 0 })
	}
	for _, c := range w.protected(t) {
		w.through(t, c)
		c.close(t)
	}
	w.unseen(t, since)
}

// TestWaits has foreign rules divert first for so long that ssh-captured has given up a
// connection: it is let in all the same when they are gone.
func TestWaits(t *testing.T) {
	w := newWorld(t)
	w.on(t)
	f := redirect(-110, diverted, diverted)
	w.load(t, f)
	since, before := w.mark(t), w.Status(t)
	flows := w.protected(t)
	w.Await(t, "the third SYN of each", func(st service.Status) bool { return st.Diverted-before.Diverted >= 3*uint64(len(flows)) })
	w.sh(t, w.Client, f.unload)
	for _, c := range flows {
		w.through(t, c)
		c.close(t)
	}
	w.unseen(t, since)
}

// load loads f, which goes with t should that not come so far as to unload it.
func (w *world) load(t *testing.T, f foreign) {
	t.Helper()
	w.sh(t, w.Client, f.load)
	t.Cleanup(func() {
		if t.Failed() {
			w.Client.Run(t, netns.Cmd{Args: []string{"bash", "-c", f.unload}})
		}
	})
}

// meet has connections made while f is in force, takes f away, and has them made again.
func (w *world) meet(t *testing.T, f foreign, dropped guard) {
	since, before := w.mark(t), w.Status(t)
	var other *netns.Wire
	if f.device != "" {
		other = w.Client.Capture(t, f.device)
	}
	flows := w.protected(t)
	for i, c := range flows {
		six := i == 1
		switch {
		case six && !f.six || dropped == "" && !f.refused:
			w.through(t, c)
		case f.refused:
			if got := c.answer(t); got == "connected" {
				t.Errorf("to %s: connected, where the foreign rules refuse", c.to)
			}
		}
	}
	w.counts(t, before, dropped)
	for i, c := range flows {
		if dropped != "" && (i != 1 || f.six) && c.answered() {
			t.Errorf("to %s: %s, where it had to wait", c.to, c.answer(t))
		}
	}
	w.unseen(t, since)
	if f.allowed {
		w.plain(t, compiled, compiled)
	}
	if other != nil {
		if got := other.Packets(t, netns.NewConnections); len(got) > 0 {
			t.Errorf("on %s: %v", f.device, got)
		}
	}
	since = w.mark(t)
	w.sh(t, w.Client, f.unload)
	for i, c := range flows {
		if dropped != "" && (i != 1 || f.six) { // it has waited
			w.through(t, c)
		}
		c.close(t)
	}
	for _, c := range w.protected(t) {
		w.through(t, c)
		c.close(t)
	}
	w.unseen(t, since)
}

// counts waits for what a guard has to count since before, and fails the test if the
// other one counts.
func (w *world) counts(t *testing.T, before service.Status, dropped guard) {
	t.Helper()
	since := func(st service.Status) map[guard]uint64 {
		return map[guard]uint64{lostMark: st.LostMark - before.LostMark, diverted: st.Diverted - before.Diverted}
	}
	st := w.Status(t)
	if dropped != "" {
		st = w.Await(t, "a guard that counts: "+string(dropped), func(st service.Status) bool { return since(st)[dropped] >= 2 })
		says := w.Run(t, nil, w.Ctl, "connector", "status").Stdout
		if want := map[guard]string{lostMark: "had taken our mark", diverted: "had diverted them first"}[dropped]; !strings.Contains(says, want) {
			t.Errorf("connector status says nothing of it: %s", says)
		}
	}
	for g, n := range since(st) {
		if g != dropped && n != 0 {
			t.Errorf("guard %s has counted %d", g, n)
		}
	}
}

// reload has f loaded again, base chains and all, while SYNs are held and live is alive.
func (w *world) reload(t *testing.T, f foreign, live []*flow) {
	since := w.mark(t)
	w.pause(t)
	held := w.hold(t)
	w.sh(t, w.Client, f.unload)
	w.sh(t, w.Client, f.load)
	w.resume(t)
	for i, c := range held {
		if f.dropped == "" && !f.refused || i == 1 && !f.six {
			w.through(t, c)
		}
		c.close(t)
	}
	for _, c := range live {
		w.speaks(t, c)
	}
	w.unseen(t, since)
}

// hold begins protected connections, which the paused brokers do not decide about.
func (w *world) hold(t *testing.T) []*flow {
	t.Helper()
	flows := w.protected(t)
	w.Await(t, "held SYNs", func(st service.Status) bool { return st.Waiting == len(flows) })
	return flows
}

// pause stops both brokers, so that SYNs stay held.
func (w *world) pause(t *testing.T) {
	t.Helper()
	for _, p := range []*netns.Process{w.SystemBroker(), w.bobs} {
		p.Signal(t, syscall.SIGSTOP)
		poll(t, "a broker to stop", func() bool { return stopped(p.Pid()) })
	}
}

// stopped tells whether every thread has heard of it.
func stopped(pid int) bool {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, file := range files {
		b, rerr := os.ReadFile(file)
		if rerr != nil || !bytes.Contains(b, []byte(") T ")) {
			return false
		}
	}
	return err == nil && len(files) > 0
}

func (w *world) resume(t *testing.T) {
	t.Helper()
	w.SystemBroker().Signal(t, syscall.SIGCONT)
	w.bobs.Signal(t, syscall.SIGCONT)
}
