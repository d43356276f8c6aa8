package endurance

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/test/netns"
)

// What a flood may take. ssh-captured holds perUID SYNs of one uid.
const (
	perUID          = 2048
	floodedCaptured = 64 << 20  // bytes
	floodedBroker   = 400 << 20 // with a quarter of all flows that it may carry
)

// TestFairness has one user connect as fast as can be, to what is tunneled and to what
// is refused, while another connects once every 20 ms. What the flood's own programs and
// its servers take of the processors is put behind everybody else's by nice(2), and what
// is left of that is measured by programs that do nothing but compute, so that the rest
// is what ssh-captured and the broker do for the flood.
func TestFairness(t *testing.T) {
	length, tries := 3*time.Second, 3
	if long() {
		length, tries = 20*time.Second, 1
	}
	w := newWorld(t)
	w.serveFlood(t)
	alice, bob := w.load(t, w.Alice, w.ports[0]), w.load(t, w.Bob, w.at(floodTarget), nice...)
	paced := func(what string) float64 {
		t.Helper()
		r := alice.do(t, length+patience, "paced 20 %d %s", length.Milliseconds(), w.ports[0])
		t.Logf("%s: %d connects, p50 %.2f ms, p99 %.2f ms; %v", what, r.Count, r.P50/1e3, r.P99/1e3, w.ours(t))
		return r.P50
	}
	alice.do(t, patience, "hold 1") // the transports are there
	bob.do(t, patience, "rush 1 1 %s", w.at(floodTarget))

	for try := 1; ; try++ {
		quiet := paced("nobody else")
		hogs := w.Client.Start(t, netns.Cmd{Args: append(nice, "sh", "-c", "while :; do :; done & while :; do :; done"), User: w.Bob, Limit: -1})
		noise := max(0, paced("programs that compute")-quiet)
		hogs.Kill(t)

		bob.begin(t, "rush 20000 %d %s %s", (length + time.Second).Milliseconds(), w.at(floodTarget), w.at(closedPort))
		// The first second is not measured: the flood is at its height then, and later.
		time.Sleep(time.Second)
		flooded := paced("the flood")
		w.requireBounded(t)
		r := bob.end(t, length+2*patience)
		t.Logf("of the flood: %v in %.1f s", r.Outcomes, r.Seconds)
		if r.Outcomes["ok"] == 0 || r.Outcomes["ECONNREFUSED"] == 0 {
			t.Fatalf("this is no flood: %v", r.Outcomes)
		}
		if flooded <= 2*quiet+noise {
			break
		}
		if try == tries { // others may have had the processors
			t.Fatalf("connect takes %.2f ms at the median with the flood, %.2f ms without, of which processors in use explain %.2f ms",
				flooded/1e3, quiet/1e3, noise/1e3)
		}
	}
	if st := w.Status(t); st.Bounded == 0 {
		t.Error("no SYN was put off, so how many are held was not tried")
	}
	w.blast(t)
}

var nice = []string{"nice", "-n", "19"}

// serveFlood is serve, with a server and a target of the flood's own.
func (w *world) serveFlood(t *testing.T) {
	t.Helper()
	sshd := w.Server.StartSSHD(t, netns.SSHDOptions{Port: floodSSHD, HostKey: w.SSHD.HostKeyFile})
	if err := unix.Setpriority(unix.PRIO_PROCESS, sshd.Pid(), 19); err != nil { // and of its children
		t.Fatal(err)
	}
	w.Service.Write(t, ".ssh/known_hosts", w.SSHD.KnownHosts()+sshd.KnownHosts(), 0o600)
	target := w.Server.Start(t, netns.Cmd{Args: append(nice, w.Testprog, "target", w.at(floodTarget)), Limit: -1})
	target.WaitFor(t, "listening "+w.at(floodTarget))
	w.serve(t, w.profile("p", w.SSHD.Addr4.Port())+w.profile("flood", floodSSHD), fmt.Sprintf(`
<rule ports="%d" action="TUNNEL" profile-id="p"/>
<rule ports="%d,%d" action="TUNNEL" profile-id="flood"/>`, firstTarget, floodTarget, closedPort))
}

// requireBounded fails the test if the flood takes more than it may.
func (w *world) requireBounded(t *testing.T) {
	t.Helper()
	if st := w.Status(t); st.Waiting > perUID+1 {
		t.Errorf("%d SYNs are held, at most %d of one uid", st.Waiting, perUID)
	}
	if o := w.ours(t); o.captured.memory > floodedCaptured || o.broker.memory > floodedBroker {
		t.Errorf("with the flood: %v", o)
	}
}

// blast has Bob send more SYNs at once than a uid may send to the queue in a second.
func (w *world) blast(t *testing.T) {
	t.Helper()
	r := w.Client.Run(t, netns.Cmd{User: w.Bob, Limit: patience, Args: []string{
		w.Testprog, "connect", "-nonblock", "-n", "8000", "-timeout", "500ms", w.at(floodTarget)}})
	if r.Code != 0 {
		t.Fatalf("blast: %v", r)
	}
	if st := w.Status(t); st.Metered == 0 {
		t.Error("8,000 SYNs of one uid at once, and none was dropped for it")
	}
	if a := w.load(t, w.Alice, w.ports[0]).do(t, patience, "connect 1 10"); a.Count == 0 {
		t.Error("Alice does not connect after it")
	}
}
