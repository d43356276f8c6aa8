package crash

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/broker"
	"sshbroker/capture/captured"
	"sshbroker/capture/service"
)

// many is how many programs connect while something dies.
const many = 100

// crash is one way to die, and what is expected under the policy "closed".
type crash struct {
	name string

	captured, broker string // dies at this state of its own; else kill says what dies
	kill             func(*testing.T, *world)
	held             bool // the programs all wait for the tunnel when it happens
	dead             bool // nothing keeps the SYNs, and nobody starts anything but the test

	mayCut bool // what was let in already, or was in hands that died, is reset
	resets bool // live tunneled flows are
}

// crashes is the table of outcomes. In all of them nothing tunneled is seen on the wire,
// programs that connect get through, and flows in clear live.
func crashes() []crash {
	list := []crash{
		{name: "worker, with programs held", held: true, kill: killWorker},
		{name: "worker, at random", mayCut: true, kill: atRandom(killWorker)},
		{name: "worker and keeper, with programs held", held: true, dead: true, kill: killCaptured},
		{name: "worker and keeper, at random", dead: true, mayCut: true, kill: atRandom(killCaptured)},
		{name: "stop of ssh-captured, with programs held", held: true, dead: true, kill: stopCaptured},
		{name: "broker, with programs held", held: true, resets: true, kill: killBroker},
		{name: "broker, at random", mayCut: true, resets: true, kill: atRandom(killBroker)},
		{name: "everything, with programs held", held: true, dead: true, resets: true, kill: killAll},
		{name: "everything, at random", dead: true, mayCut: true, resets: true, kill: atRandom(killAll)},
	}
	for _, state := range captured.States {
		// What the dead worker has accepted and not handed over is lost with it, be it
		// another flow's than the one in that state.
		list = append(list, crash{name: "worker, " + state, captured: state, mayCut: true})
	}
	for _, state := range broker.States {
		list = append(list, crash{name: "broker, " + state, broker: state, mayCut: true, resets: true})
	}
	return list
}

func killWorker(t *testing.T, w *world) {
	t.Helper()
	pid := w.Status(t).PID
	w.KillCaptured(t, false)
	w.Await(t, "another worker", func(st service.Status) bool { return st.PID != pid && st.Serving })
}

func killCaptured(t *testing.T, w *world) { t.Helper(); w.KillCaptured(t, true) }

func stopCaptured(t *testing.T, w *world) { t.Helper(); w.StopCaptured(t) }

func killBroker(t *testing.T, w *world) { t.Helper(); w.KillSystemBroker(t) }

func killAll(t *testing.T, w *world) {
	t.Helper()
	w.SystemBroker().Signal(t, unix.SIGKILL)
	w.KillCaptured(t, true)
	w.KillSystemBroker(t)
}

// atRandom kills at a moment within the time that the programs take.
func atRandom(kill func(*testing.T, *world)) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		t.Helper()
		after := rand.N(40 * time.Millisecond)
		t.Logf("killed after %v", after)
		<-time.After(after)
		kill(t, w)
	}
}

// TestCrashes is the matrix of crashes by the ownership that the kernel allows, under
// the policy "closed".
func TestCrashes(t *testing.T) {
	for _, ownership := range []string{"auto", "owner", "none"} {
		t.Run(ownership, func(t *testing.T) {
			w := newWorld(t, ownership, "closed")
			before := w.Snapshot(t)
			for _, c := range crashes() {
				t.Run(c.name, func(t *testing.T) { w.crash(t, c) })
			}
			w.Release(t)
			w.requireOpen(t)
			w.RequireRestored(t, before, settle)
		})
	}
}

func (w *world) crash(t *testing.T, c crash) {
	var inCaptured, inBroker []string
	arm, await := func(*testing.T) {}, func(*testing.T) {}
	switch {
	case c.captured != "":
		inCaptured, arm, await = w.failpoint(t, captureEnv, c.captured)
	case c.broker != "":
		inBroker, arm, await = w.failpoint(t, brokerEnv, c.broker)
	}
	w.up(t, inCaptured, inBroker)
	defer w.down(t)
	old := w.Status(t)
	live := w.lives(t)
	defer live.close(t)
	wire := w.Client.Capture(t, "to-server")
	thaw := func() {}
	if c.held {
		thaw = w.freeze(t)
	}
	again := w.retransmitted(t)
	arm(t)
	p := w.connect(t, many, tunneled)
	if c.held {
		w.awaitHeld(t, many)
	}
	if c.captured == captured.StateApplied {
		w.reload(t)
	}
	await(t)
	if c.kill != nil {
		c.kill(t, w)
	}
	died := time.Now()
	thaw()
	if c.dead {
		if !c.resets {
			live.require(t, (*talk).requireLives)
		}
		w.requireWaits(t, tunneled)
		w.requireWaits(t, asked)
		w.requireWorks(t, compiled)
		w.StartCaptured(t, w.args...)
	}
	switch {
	case c.broker != "":
		w.SystemBroker().Wait(t)
		fallthrough
	case c.resets:
		w.StartSystemBroker(t, "")
	}
	cut, slowest := requireThrough(t, p, many, c.mayCut)
	t.Logf("all connected and served %v after it; the slowest connect() took %v, %d were cut, %d SYNs sent again", time.Since(died), slowest, cut, w.retransmitted(t)-again)
	if c.held && !c.dead {
		if n := w.retransmitted(t) - again; n != 0 {
			t.Errorf("%d SYNs were lost, and sent again", n)
		}
	}
	if c.resets {
		live.require(t, (*talk).requireReset)
	} else {
		live.require(t, (*talk).requireLives)
	}
	st := w.Await(t, "an ssh-captured that serves", func(st service.Status) bool { return st.Serving })
	if !st.Enabled || st.Ownership != old.Ownership || st.Policy != "closed" {
		t.Errorf("enabled %v, ownership %q, policy %q, want it as before: %q, closed", st.Enabled, st.Ownership, st.Policy, old.Ownership)
	}
	for _, port := range []int{tunneled, compiled, asked} {
		w.requireWorks(t, port)
	}
	w.requireClosed(t, wire)
}

// reload changes the rules.
func (w *world) reload(t *testing.T) {
	t.Helper()
	extra := fmt.Sprintf(`<rule ip-address=".*" ports="%d" action="BLOCK"/></filter-engine>`, 9000+rand.N(1000))
	w.WriteConfig(t, replaceLast(w.config, "</filter-engine>", extra))
	if r := w.Run(t, nil, w.Ctl, "-a", w.Address(), "reload"); r.Code != 0 {
		t.Errorf("reload: %v", r)
	}
}
