// Item 5: the broker, ssh-capture and the command are killed at every point. Nothing
// leaves in clear, programs that are connecting get through by the next broker, and
// nothing is left.
package interop

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/broker"
	"sshbroker/broker/control"
	"sshbroker/test/host"
	"sshbroker/test/netns"
)

const (
	echoPort = 8000 // where startEcho listens

	// failpointEnv makes a broker kill itself at a state of a flow; see ssh-broker.
	failpointEnv = "SSH_BROKER_TEST_FAILPOINT"

	// takeover is how long connect() may take when the broker dies under it.
	takeover = 2 * time.Second
)

// TestBrokerDiesInEveryStateOfAFlow: a program connects, the broker dies in one state
// of that flow, and the program connects once more.
func TestBrokerDiesInEveryStateOfAFlow(t *testing.T) {
	for _, way := range []string{"via", "rules"} {
		t.Run(way, func(t *testing.T) {
			w := newWorld(t, netns.SSHDOptions{})
			startEcho(t, w)
			var options []string
			target := netip.AddrPortFrom(w.Server.Addr6, echoPort).String() // as the rules judge it
			if way == "via" {
				options, target = []string{"--via", w.via(w.Alice)}, fmt.Sprintf("server:%d", echoPort)
			} else {
				w.configure(t, tunnelEverything(w))
			}
			before := w.Snapshot(t)
			for _, state := range broker.States {
				t.Run(state, func(t *testing.T) { dieIn(t, w, state, options, target) })
			}
			w.stopBroker(t, w.Alice)
			w.RequireRestored(t, before, settle)
			if way == "rules" {
				requireClearIsSeen(t, w, target)
			}
		})
	}
}

func dieIn(t *testing.T, w *world, state string, options []string, target string) {
	w.stopBroker(t, w.Alice) // the next one gets this case's environment
	file := w.Alice.Write(t, "die-"+state, "", 0o600)
	marker := "marker-" + rand.Text()
	wire := w.Client.Capture(t, "to-server")

	c := w.capture(append(options, "sh", "-c", `"$@"; "$@"`, "sh", w.Testprog, "connect", "-echo", marker, target)...)
	c.Env = []string{failpointEnv + "=" + state + "=" + file}
	r := expect(t, w.Client.Run(t, c), 0)

	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("no broker died in state %q: stat %s: %v", state, file, err)
	}
	attempts := connects(t, r.Stdout)
	if len(attempts) != 2 {
		t.Fatalf("%d connects, want 2: %v", len(attempts), r)
	}
	for i, a := range attempts {
		good := a.outcome == "ok" && a.echoed == "ok"
		if i == 0 && state == broker.StateAdmitted {
			// What the dead broker had let in is cut, perhaps before connect() has returned.
			good = a.outcome == "ok" && a.echoed == "ECONNRESET" || a.outcome == "ECONNRESET"
		}
		if !good || a.took > takeover {
			t.Errorf("connect %d: %+v, want ok or, for what was let in, a reset, within %v", i+1, a, takeover)
		}
	}
	t.Logf("connect() with the broker killed in %s: %v, the next one: %v", state, attempts[0].took, attempts[1].took)
	requireNothingInClear(t, wire, marker)
}

// TestHundredPendingConnectsOutliveTheirBroker: the SSH server is silent, so that all
// of them wait for it when the broker dies.
func TestHundredPendingConnectsOutliveTheirBroker(t *testing.T) {
	const many = 100
	for _, way := range []string{"via", "rules"} {
		t.Run(way, func(t *testing.T) {
			w := newWorld(t, netns.SSHDOptions{})
			startEcho(t, w)
			var options []string
			if way == "via" {
				options = []string{"--via", w.via(w.Alice)}
			} else {
				w.configure(t, tunnelEverything(w))
			}
			before := w.Snapshot(t)
			wire := w.Client.Capture(t, "to-server")
			marker, target := "marker-"+rand.Text(), netip.AddrPortFrom(w.Server.Addr4, echoPort).String()
			stdin, typing := pipe(t)
			c := w.capture(append(options, "sh", "-c", `"$1" connect -echo "$2" "$3" && read go && exec "$1" connect -n "$4" -echo "$2" "$3"`,
				"sh", w.Testprog, marker, target, strconv.Itoa(many))...)
			c.Stdin = stdin
			p := w.Client.Start(t, c)
			p.WaitFor(t, " ok\n") // connected through a transport that is there now

			sessions := w.sshdSessions(t)
			if len(sessions) == 0 {
				t.Fatal("sshd has no session to stop")
			}
			signalAll(t, sessions, unix.SIGSTOP)
			typing.WriteString("go\n")
			w.awaitFlows(t, many)
			killed := time.Now()
			killHard(t, w.brokerPID(t))
			signalAll(t, sessions, unix.SIGCONT)
			r := expect(t, p.Wait(t), 0)
			after := time.Since(killed)

			attempts := connects(t, r.Stdout)[1:]
			if len(attempts) != many {
				t.Fatalf("%d connects, want %d: %v", len(attempts), many, r)
			}
			for _, a := range attempts {
				if a.outcome != "ok" || a.echoed != "ok" {
					t.Errorf("%+v, want ok and its echo", a)
				}
			}
			if after > takeover {
				t.Errorf("all were connected and served %v after the kill, want %v", after, takeover)
			}
			t.Logf("%d pending connects were connected and served %v after the kill", many, after)
			requireNothingInClear(t, wire, marker)
			w.stopBroker(t, w.Alice)
			w.RequireRestored(t, before, settle)
		})
	}
}

// TestBrokerDiesUnderLiveFlows: the program must not take the end for an orderly one,
// and neither must the destination of a flow without a tunnel.
func TestBrokerDiesUnderLiveFlows(t *testing.T) {
	for _, action := range []string{"TUNNEL", "DIRECT"} {
		t.Run(action, func(t *testing.T) {
			w := newWorld(t, netns.SSHDOptions{})
			service := startEcho(t, w)
			w.configure(t, tunnelEverything(w))
			if action == "DIRECT" {
				w.configure(t, `<filter-engine><rule ip-address=".*" action="DIRECT"/></filter-engine>`)
				w.Server.AllowAll(t)
			}
			before := w.Snapshot(t)
			target := netip.AddrPortFrom(w.Server.Addr4, echoPort).String()
			p := w.Client.Start(t, w.capture("sh", "-c",
				`"$1" exchange -n 1000000000 talk "$2"; "$1" exchange -n 1000000000 talk "$2"; "$1" connect -echo again "$2"`,
				"sh", w.Testprog, target))
			for range 2 { // the second broker dies as the first
				w.awaitBytes(t)
				killHard(t, w.brokerPID(t))
			}
			r := expect(t, p.Wait(t), 0)
			if strings.Count(r.Stderr, "connection reset by peer") != 2 {
				t.Errorf("the programs did not see a reset each: %v", r)
			}
			if a := connects(t, r.Stdout); len(a) != 1 || a[0].outcome != "ok" || a[0].echoed != "ok" {
				t.Errorf("the capture does not work on: %v", r)
			}
			if action == "DIRECT" {
				service.WaitFor(t, "talk 1000000000: ")
				if out := service.Output(); !strings.Contains(out, "connection reset by peer") {
					t.Errorf("the destination did not see a reset: %s", out)
				}
			}
			w.stopBroker(t, w.Alice)
			w.RequireRestored(t, before, settle)
		})
	}
}

// TestPseudoAddressOutlivesTheBroker: an address that stood for a name before the
// crash stands for the same name after it, and for no other.
func TestPseudoAddressOutlivesTheBroker(t *testing.T) {
	w := newBastionWorld(t, netns.SSHDOptions{})
	w.Inner.Start(t, netns.Cmd{Args: []string{w.Testprog, "serve", fmt.Sprintf("[::]:%d", echoPort)}, Limit: -1}).WaitFor(t, "listening")
	before := w.Snapshot(t)
	wire := w.Client.Capture(t, "to-server")
	marker := "marker-" + rand.Text()
	stdin, typing := pipe(t)
	c := w.capture("--via", w.via(w.Alice), "sh", "-c", `
		addr=$(getent ahostsv4 db.internal | { read a rest; echo $a; }); echo address $addr; read go
		getent ahostsv4 other.internal | { read a rest; echo other $a; }
		exec "$@" $addr:`+strconv.Itoa(echoPort), "sh", w.Testprog, "connect", "-echo", marker)
	c.Stdin = stdin
	p := w.Client.Start(t, c)
	p.WaitFor(t, "address 198.18.")
	killHard(t, w.brokerPID(t))
	typing.WriteString("go\n")
	r := expect(t, p.Wait(t), 0)

	var got, other string
	for line := range strings.Lines(r.Stdout) {
		fmt.Sscanf(line, "address %s", &got)
		fmt.Sscanf(line, "other %s", &other)
	}
	if got == other || !strings.HasPrefix(other, "198.18.") {
		t.Errorf("db.internal got %q before the crash, other.internal %q after it", got, other)
	}
	if !strings.Contains(r.Stdout, fmt.Sprintf("%s:%d ok ", got, echoPort)) || !strings.HasSuffix(strings.TrimSpace(r.Stdout), " ok") {
		t.Errorf("the old address does not connect: %v", r)
	}
	rec := w.awaitRecords(t, 1)[0]
	if rec.Reason != "carried" || rec.Name != "db.internal" || rec.Target != fmt.Sprintf("db.internal:%d", echoPort) {
		t.Errorf("recorded %+v, want it carried to db.internal", rec)
	}
	requireNothingInClear(t, wire, marker)
	w.stopBroker(t, w.Alice)
	w.RequireRestored(t, before, settle)
}

// TestNobodyLeftToServe: without ssh-capture and broker the capture is closed. What
// runs in it connects to nothing, and nothing of it is on the wire.
func TestNobodyLeftToServe(t *testing.T) {
	for _, way := range []string{"via", "rules"} {
		t.Run(way, func(t *testing.T) {
			w := newWorld(t, netns.SSHDOptions{})
			startEcho(t, w)
			options := []string{"--via", w.via(w.Alice)}
			if way == "rules" {
				// Also what would be allowed in clear has no way out without a broker.
				options = nil
				w.configure(t, `<filter-engine><rule ip-address=".*" action="DIRECT"/></filter-engine>`)
				w.Server.AllowAll(t)
			}
			before := w.Snapshot(t)
			wire := w.Client.Capture(t, "to-server")
			marker := "marker-" + rand.Text()
			target := netip.AddrPortFrom(w.Server.Addr4, echoPort).String()
			result := w.Alice.Path("result")
			start := fifo(t, w.Alice, "start")
			p := w.Client.Start(t, w.capture(append(options, "sh", "-c", `"$@"; read go <"$HOME/start"; "$@" >"$HOME/result.new" 2>&1; mv "$HOME/result.new" "$HOME/result"`,
				"sh", w.Testprog, "connect", "-nonblock", "-timeout", "3s", "-echo", marker, target)...))
			p.WaitFor(t, " ok\n")
			seen := len(wire.Packets(t, toEcho))
			if way == "rules" && (seen == 0 || !wire.Contains(t, []byte(marker))) {
				t.Error("the control connection is not on the wire: the capture proves nothing")
			}
			killHard(t, p.Pid())
			killHard(t, w.brokerPID(t))
			start(t)
			out := awaitFile(t, result)
			if a := connects(t, out); len(a) != 1 || a[0].outcome != "ETIMEDOUT" {
				t.Errorf("a program that nobody serves: %s, want ETIMEDOUT", out)
			}
			if n := len(wire.Packets(t, toEcho)); n != seen {
				t.Errorf("%d packets to the destination after the crash", n-seen)
			}
			// The next broker cleans up after the dead one.
			expect(t, w.Client.Run(t, w.capture(append(options, "true")...)), 0)
			w.stopBroker(t, w.Alice)
			os.Remove(result)
			w.RequireRestored(t, before, settle)
		})
	}
}

// TestDaemonSurvivesBrokerCrash: the command has ended and left a process behind; its
// keeper starts the next broker.
func TestDaemonSurvivesBrokerCrash(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	startEcho(t, w)
	before := w.Snapshot(t)
	wire := w.Client.Capture(t, "to-server")
	marker := "marker-" + rand.Text()
	start := fifo(t, w.Alice, "start")
	r := expect(t, w.Client.Run(t, w.capture("--via", w.via(w.Alice), "sh", "-c",
		`(read go <"$HOME/start"; "$@" >"$HOME/result.new"; mv "$HOME/result.new" "$HOME/result") </dev/null >/dev/null 2>&1 &`,
		"sh", w.Testprog, "connect", "-echo", marker, fmt.Sprintf("server:%d", echoPort))), 0)
	if r.PipesHeld {
		t.Error("something holds the output of the command that has ended")
	}
	keepers := w.processesOf(t, w.Alice, "--keep-capture")
	if len(keepers) != 1 {
		t.Fatalf("keepers: %v, want one", keepers)
	}
	first := w.brokerPID(t)
	killHard(t, first)
	start(t)
	out := awaitFile(t, w.Alice.Path("result"))
	if a := connects(t, out); len(a) != 1 || a[0].outcome != "ok" || a[0].echoed != "ok" || a[0].took > takeover {
		t.Errorf("the daemon got %s, want ok within %v", out, takeover)
	}
	requireNothingInClear(t, wire, marker)
	// The keeper goes by itself, then the broker that it has started.
	w.RequireRestored(t, before, lingerTime+settle)
}

// lingerTime is how long a broker on demand stays after its last client.
const lingerTime = 10 * time.Second

// TestNothingIsLeft kills one after the other whatever takes part, at every point of
// a capture's life.
func TestNothingIsLeft(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	startEcho(t, w)
	via := []string{"--via", w.via(w.Alice)}
	target := netip.AddrPortFrom(w.Server.Addr4, echoPort).String()
	before := w.Snapshot(t)
	// point is one of them. Each begins and ends without a broker.
	point := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			w.stopBroker(t, w.Alice)
			f(t)
			w.stopBroker(t, w.Alice)
			w.RequireRestored(t, before, settle)
		})
	}

	point("ssh-capture while it makes the namespace", func(t *testing.T) {
		p, inside := w.stopWhileMaking(t, via)
		killHard(t, p.Pid())
		signalAll(t, []int{inside}, unix.SIGCONT)
	})
	point("the process inside while it makes the namespace", func(t *testing.T) {
		p, inside := w.stopWhileMaking(t, via)
		killHard(t, inside)
		expect(t, p.Wait(t), 137) // as if it had been the command
	})
	point("ssh-capture while it asks", func(t *testing.T) {
		w.Alice.Write(t, ".ssh/known_hosts", "", 0o600)
		defer w.sshd.Trust(t, w.Alice)
		p := w.Client.Start(t, netns.Cmd{Args: append([]string{w.Capture, "--via", w.via(w.Alice)}, "sleep", "1000"), User: w.Alice, TTY: &terminal})
		p.WaitFor(t, "Do you trust this key")
		killHard(t, p.Pid())
	})
	point("broker while ssh-capture asks", func(t *testing.T) {
		w.Alice.Write(t, ".ssh/known_hosts", "", 0o600)
		defer w.sshd.Trust(t, w.Alice)
		p := w.Client.Start(t, netns.Cmd{Args: append([]string{w.Capture, "--via", w.via(w.Alice)}, "echo", "command", "ran"), User: w.Alice, TTY: &terminal})
		p.WaitFor(t, "Do you trust this key")
		killHard(t, w.brokerPID(t))
		// It asks again on behalf of the next broker, or gives up; it does not hang and
		// does not run the command untrusted.
		p.Type(t, "no\r")
		p.Type(t, "no\r")
		r := p.Wait(t)
		if r.Code != 125 || strings.Contains(r.Stdout, "command ran") {
			t.Errorf("got %v", r)
		}
	})
	point("ssh-capture while the command runs", func(t *testing.T) {
		start := fifo(t, w.Alice, "start")
		p := w.Client.Start(t, w.capture(append(via, "sh", "-c",
			`echo up; read go <"$HOME/start"; "$@" >"$HOME/result.new"; mv "$HOME/result.new" "$HOME/result"`,
			"sh", w.Testprog, "connect", "-echo", "hello", target)...))
		p.WaitFor(t, "up")
		killHard(t, p.Pid())
		start(t)
		if a := connects(t, awaitFile(t, w.Alice.Path("result"))); len(a) != 1 || a[0].outcome != "ok" || a[0].echoed != "ok" {
			t.Errorf("the command that lost its ssh-capture is served no more: %+v", a)
		}
		os.Remove(w.Alice.Path("result"))
		w.awaitCaptures(t, 0)
	})
	point("the command", func(t *testing.T) {
		p := w.Client.Start(t, w.capture(append(via, "sh", "-c", `echo up $$; exec sleep 1000`)...))
		var pid int
		fmt.Sscanf(p.WaitFor(t, "\n"), "up %d", &pid)
		killHard(t, pid)
		expect(t, p.Wait(t), 137)
		// By itself: nobody stops the broker.
		w.RequireRestored(t, before, lingerTime+settle)
	})
	point("the broker, twice", func(t *testing.T) {
		stdin, typing := pipe(t)
		c := w.capture(append(via, "sh", "-c", `echo up; read go; exec "$@"`, "sh", w.Testprog, "connect", "-echo", "hello", target)...)
		c.Stdin = stdin
		p := w.Client.Start(t, c)
		p.WaitFor(t, "up")
		first := w.brokerPID(t)
		killHard(t, first)
		second := w.brokerPID(t)
		killHard(t, second)
		typing.WriteString("go\n")
		r := expect(t, p.Wait(t), 0)
		if a := connects(t, r.Stdout); first == second || len(a) != 1 || a[0].outcome != "ok" || a[0].echoed != "ok" {
			t.Errorf("brokers %d and %d died: %v", first, second, r)
		}
	})
	point("everything but a background child", func(t *testing.T) {
		expect(t, w.Client.Run(t, w.capture(append(via, "sh", "-c",
			`getent ahostsv4 db.internal >/dev/null; echo $$ >"$HOME/pid"; (exec sleep 1000) </dev/null >/dev/null 2>&1 & echo $! >"$HOME/child"`)...)), 0)
		text, err := os.ReadFile(w.Alice.Path("child"))
		if err != nil {
			t.Fatal(err)
		}
		child, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		for _, keeper := range w.processesOf(t, w.Alice, "--keep-capture") {
			killHard(t, keeper)
		}
		killHard(t, w.brokerPID(t))
		// A broker that comes while the child lives leaves the child's names alone.
		expect(t, w.Client.Run(t, w.capture(append(via, "true")...)), 0)
		w.awaitCaptures(t, 0)
		if names := w.nameJournals(t); len(names) != 1 {
			t.Errorf("name journals with the child alive: %v, want its own", names)
		}
		killHard(t, child)
	})
}

// nameJournals are the files of Alice's brokers that keep pseudo addresses.
func (w *world) nameJournals(t *testing.T) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join("/tmp", "ssh-"+w.Alice.Name, "ssh-broker-names-*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// startEcho runs a service on the server that the client cannot reach directly.
func startEcho(t *testing.T, w *world) *netns.Process {
	t.Helper()
	p := w.Server.Start(t, netns.Cmd{Args: []string{w.Testprog, "serve", fmt.Sprintf("[::]:%d", echoPort)}, Limit: -1})
	p.WaitFor(t, "listening")
	return p
}

// tunnelEverything is a configuration by which every flow goes through the server.
func tunnelEverything(w *world) string {
	return "<profiles>" + w.profile("srv") + `</profiles>
<filter-engine><rule ip-address=".*" action="TUNNEL" profile-id="srv"/></filter-engine>`
}

func toEcho(p netns.Packet) bool { return p.Dst.Port() == echoPort || p.Src.Port() == echoPort }

// requireNothingInClear fails the test if the marker, or any packet for the service,
// was on the wire.
func requireNothingInClear(t *testing.T, wire *netns.Wire, marker string) {
	t.Helper()
	if wire.Contains(t, []byte(marker)) {
		t.Errorf("%s was on the wire in clear", marker)
	}
	if p := wire.Packets(t, toEcho); len(p) != 0 {
		t.Errorf("%d packets of the destination's port were on the wire, the first %v > %v", len(p), p[0].Src, p[0].Dst)
	}
}

// requireClearIsSeen is the positive control of requireNothingInClear.
func requireClearIsSeen(t *testing.T, w *world, target string) {
	t.Helper()
	w.configure(t, `<filter-engine><rule ip-address=".*" action="DIRECT"/></filter-engine>`)
	w.Server.AllowAll(t)
	wire := w.Client.Capture(t, "to-server")
	marker := "marker-" + rand.Text()
	expect(t, w.Client.Run(t, w.capture(w.Testprog, "connect", "-echo", marker, target)), 0)
	if !wire.Contains(t, []byte(marker)) || len(wire.Packets(t, toEcho)) == 0 {
		t.Error("a flow in clear is not on the wire: the capture proves nothing")
	}
}

// connected is a line of testprog connect -echo.
type connected struct {
	target, outcome string
	took            time.Duration
	echoed          string
}

// connects reads the lines of testprog connect -echo among others.
func connects(t *testing.T, out string) []connected {
	t.Helper()
	var list []connected
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) != 4 || !strings.Contains(f[0], ":") {
			continue
		}
		ms, err := strconv.ParseFloat(f[2], 64)
		if err != nil {
			t.Fatalf("testprog said %q: %v", line, err)
		}
		list = append(list, connected{f[0], f[1], time.Duration(ms * float64(time.Millisecond)), f[3]})
	}
	return list
}

// ask has Alice's broker do one thing; false where there is none just now.
func ask[Row any](t *testing.T, w *world, op string) (rows []Row, ok bool) {
	t.Helper()
	return host.Ask[Row](t.Context(), w.Alice, op)
}

// socket is where Alice's broker listens.
func (w *world) socket() string { return host.BrokerSocket(w.Alice) }

// awaitStatus waits until the broker, which may be about to come up, is as is says.
func (w *world) awaitStatus(t *testing.T, what string, is func(control.StatusRow) bool) control.StatusRow {
	t.Helper()
	var last control.StatusRow
	eventually(t, what, func() bool {
		rows, ok := ask[control.StatusRow](t, w, control.OpStatus)
		if ok && len(rows) == 1 {
			last = rows[0]
		}
		return ok && len(rows) == 1 && is(last)
	})
	return last
}

func (w *world) brokerPID(t *testing.T) int {
	t.Helper()
	return w.awaitStatus(t, "a broker", func(control.StatusRow) bool { return true }).PID
}

// awaitFlows waits until the broker serves exactly n flows that have not ended.
func (w *world) awaitFlows(t *testing.T, n int64) {
	t.Helper()
	w.awaitStatus(t, fmt.Sprintf("%d live flows", n), func(s control.StatusRow) bool { return s.FlowsLive == n })
}

// awaitCaptures waits until the broker serves exactly n captures.
func (w *world) awaitCaptures(t *testing.T, n int) {
	t.Helper()
	w.awaitStatus(t, fmt.Sprintf("%d captures", n), func(s control.StatusRow) bool { return s.Captures == n })
}

// awaitBytes waits until a flow has brought something.
func (w *world) awaitBytes(t *testing.T) {
	t.Helper()
	eventually(t, "bytes", func() bool {
		rows, _ := ask[control.ChannelRow](t, w, control.OpChannels)
		return slices.ContainsFunc(rows, func(r control.ChannelRow) bool { return r.BytesDown > 0 })
	})
}

// sshdSessions are the processes of the server's present connections.
func (w *world) sshdSessions(t *testing.T) []int {
	t.Helper()
	parents := map[int]int{}
	for _, pid := range allProcesses(t) {
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
			// The name in brackets may hold anything.
			if f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])); len(f) > 1 {
				parents[pid], _ = strconv.Atoi(f[1])
			}
		}
	}
	var list []int
	for pid := range parents {
		for up := parents[pid]; up > 1; up = parents[up] {
			if up == w.sshd.Pid() {
				list = append(list, pid)
				break
			}
		}
	}
	return list
}

// processesOf are a user's processes that have word among their arguments.
func (w *world) processesOf(t *testing.T, u *netns.User, word string) []int {
	t.Helper()
	var list []int
	for _, pid := range allProcesses(t) {
		var st unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d", pid), &st) == nil && st.Uid == u.UID && slices.Contains(arguments(pid), word) {
			list = append(list, pid)
		}
	}
	return list
}

func allProcesses(t *testing.T) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var list []int
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			list = append(list, pid)
		}
	}
	return list
}

func arguments(pid int) []string {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.Split(string(line), "\x00")
}

// stopWhileMaking starts ssh-capture and stops the process inside the namespace before
// there is anything in it.
func (w *world) stopWhileMaking(t *testing.T, options []string) (p *netns.Process, inside int) {
	t.Helper()
	for range 5 {
		p := w.Client.Start(t, w.capture(append(options, "sleep", "1000")...))
		inside := awaitChild(t, p.Pid(), "--inside-capture")
		signalAll(t, []int{inside}, unix.SIGSTOP)
		dev, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", inside))
		if err == nil && !strings.Contains(string(dev), "v1:") {
			return p, inside
		}
		// We were too late.
		p.Kill(t)
		w.awaitCaptures(t, 0)
	}
	t.Fatal("the namespace was always made already")
	return nil, 0
}

// awaitChild waits for a child of a process that has word among its arguments.
func awaitChild(t *testing.T, parent int, word string) int {
	t.Helper()
	for end := time.Now().Add(settle); time.Now().Before(end); { // as fast as it can: the child is soon on
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
		for _, thread := range threads {
			text, _ := os.ReadFile(thread)
			for _, field := range strings.Fields(string(text)) {
				if pid, err := strconv.Atoi(field); err == nil && slices.Contains(arguments(pid), word) {
					return pid
				}
			}
		}
	}
	t.Fatalf("process %d has no child with %s", parent, word)
	return 0
}

// killHard kills one process and waits for its end.
func killHard(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatalf("process %d: %v", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(settle.Milliseconds()))
	if err != nil || n != 1 {
		t.Fatalf("process %d does not die: %v", pid, err)
	}
}

func signalAll(t *testing.T, pids []int, s syscall.Signal) {
	t.Helper()
	for _, pid := range pids {
		if err := unix.Kill(pid, s); err != nil {
			t.Fatalf("signal %v to %d: %v", s, pid, err)
		}
	}
}

// pipe is a program's standard input that the test writes to.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// fifo makes a named pipe in a user's home directory. The function returned lets the
// program go on that reads a line from it, and waits until there is one.
func fifo(t *testing.T, u *netns.User, name string) (start func(*testing.T)) {
	t.Helper()
	path := u.Path(name)
	if err := errors.Join(unix.Mkfifo(path, 0o600), os.Chown(path, int(u.UID), int(u.GID))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
	return func(t *testing.T) {
		t.Helper()
		eventually(t, "a reader of "+path, func() bool {
			fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err != nil {
				return false
			}
			defer unix.Close(fd)
			_, err = unix.Write(fd, []byte("go\n"))
			return err == nil
		})
	}
}

// awaitFile waits for a file that is put in its place whole.
func awaitFile(t *testing.T, path string) string {
	t.Helper()
	var content []byte
	eventually(t, path, func() bool {
		var err error
		content, err = os.ReadFile(path)
		return err == nil
	})
	return string(content)
}

// eventually asks again and again, for what has no event to wait for.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(settle); !is(); {
		if time.Now().After(end) {
			t.Fatalf("waited %v in vain for %s", settle, what)
		}
		<-time.After(5 * time.Millisecond)
	}
}
