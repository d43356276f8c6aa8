package crash

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/broker"
	"sshbroker/broker/control"
	"sshbroker/capture/captured"
	"sshbroker/capture/service"
	"sshbroker/capture/service/client"
	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// inCgroup is what runs in Alice's capture: connects, once told to, and connects again.
const inCgroup = `echo captured; read go; "$@"; echo; exec "$@"`

// newCgroupWorld has ssh-captured without rules for the host, and Alice's own.
func newCgroupWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, "auto", "closed")
	w.Alice.Write(t, ".ssh2/ssh-broker-config.xml", host.Config("<profiles>"+w.Profile("p", w.Alice.Name)+
		fmt.Sprintf(`</profiles><filter-engine><rule ip-address=".*" ports="%d" action="TUNNEL" profile-id="p"/></filter-engine>`, tunneled)), 0o600)
	return w
}

// TestCgroupCrashes has Alice's broker, or ssh-captured, die while programs in a capture
// of hers connect. ssh-capture starts the one again, the keeper the other.
func TestCgroupCrashes(t *testing.T) {
	w := newCgroupWorld(t)
	before := w.Snapshot(t)
	type row struct {
		name     string
		variable string
		state    string
		kill     func(*testing.T, *world)
		dead     bool
		mayCut   bool
	}
	rows := []row{
		{name: "worker and keeper", kill: killCaptured, dead: true, mayCut: true},
		{name: "worker, at random", kill: atRandom(func(t *testing.T, w *world) { w.KillCaptured(t, false) }), mayCut: true},
		{name: "broker, at random", kill: atRandom(killAlices), mayCut: true},
	}
	for _, state := range captured.States {
		if state != captured.StateApplied { // nothing changes meanwhile
			rows = append(rows, row{name: "worker, " + state, variable: captureEnv, state: state, mayCut: true})
		}
	}
	for _, state := range broker.States {
		rows = append(rows, row{name: "broker, " + state, variable: brokerEnv, state: state, mayCut: true})
	}
	for _, c := range rows {
		t.Run(c.name, func(t *testing.T) {
			env, arm, await := []string(nil), func(*testing.T) {}, func(*testing.T) {}
			if c.state != "" {
				env, arm, await = w.failpoint(t, c.variable, c.state)
			}
			var inCaptured, inBroker []string
			if c.variable == captureEnv {
				inCaptured = env
			} else if c.variable == brokerEnv {
				inBroker = env
				// Whoever removes it dies, which has to be Alice's broker.
				file := w.Service.Path("die-" + c.state)
				if err := os.Chmod(w.Service.Home, 0o777); err != nil {
					t.Fatal(err)
				}
				defer os.Remove(file)
			}
			w.StartCapturedEnv(t, inCaptured, w.args...)
			defer w.StopCaptured(t)
			wire := w.Client.Capture(t, "to-server")
			r, in, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			const n = 50
			cmd := w.Cmd(w.Alice, w.Capture, "--backend=cgroup", "sh", "-c", inCgroup, "sh",
				w.Testprog, "connect", "-n", fmt.Sprint(n), "-echo", w.marker, w.place(tunneled), w.place6(tunneled))
			cmd.Env, cmd.Stdin = append(cmd.Env, inBroker...), r
			p := w.Client.Start(t, cmd)
			r.Close()
			p.WaitFor(t, "captured")
			defer w.StopBroker(t, w.Alice)
			live := w.talkCaptured(t)
			defer live.close(t)
			arm(t)
			fmt.Fprintln(in, "go")
			if c.kill != nil {
				c.kill(t, w)
			}
			await(t)
			if c.dead {
				live.requireLives(t)
				w.StartCaptured(t, w.args...)
			}
			first, second, _ := strings.Cut(strings.TrimPrefix(p.Wait(t).Stdout, "captured\n"), "\n\n")
			cut, slowest := requireAllThrough(t, parse(t, first), 2*n, c.mayCut)
			t.Logf("the slowest connect() took %v, %d were cut", slowest, cut)
			requireAllThrough(t, parse(t, second), 2*n, c.dead || c.name == "worker, at random")
			if c.variable == brokerEnv || strings.HasPrefix(c.name, "broker") {
				live.requireReset(t)
			} else {
				live.requireLives(t)
			}
			w.requireClosed(t, wire)
		})
	}
	w.Release(t)
	w.RequireRestored(t, before, settle)
}

// talkCaptured is a live connection in a capture of its own.
func (w *world) talkCaptured(t *testing.T) *talk {
	t.Helper()
	r, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	c := w.Cmd(w.Alice, w.Capture, "--backend=cgroup", "bash", "-c", talkScript, "bash", w.Server.Addr4.String(), fmt.Sprint(tunneled))
	c.Stdin, c.Limit = r, -1
	k := &talk{Process: w.Client.Start(t, c), in: in}
	r.Close()
	k.WaitFor(t, "open")
	k.requireLives(t)
	return k
}

// killAlices kills Alice's broker.
func killAlices(t *testing.T, w *world) {
	t.Helper()
	c, err := control.Dialer{Address: filepath.Join("/tmp", "ssh-"+w.Alice.Name, "ssh-broker"), AnyOwner: true}.Dial(t.Context())
	if err != nil {
		t.Fatalf("no broker of Alice's: %v", err)
	}
	defer c.Close()
	if err := unix.Kill(c.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// TestCaptureEndsWithSYNsHeld: programs in a capture end at once after they began to
// connect, so that the capture does while their SYNs are refused, admitted or held.
// None of them leaves.
func TestCaptureEndsWithSYNsHeld(t *testing.T) {
	for _, c := range []struct {
		name   string
		frozen bool
		port   string // of the destination; what the rules say of it
		action string
	}{
		{"held", true, "8000", "TUNNEL"},
		{"admitted", false, "8000", "TUNNEL"},
		// The address is nobody's SSH server: refused at once, by ICMP two milliseconds later.
		{"refused", false, "8000", "refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newCgroupWorld(t)
			if c.action == "refused" {
				w.Alice.Write(t, ".ssh2/ssh-broker-config.xml", host.Config("<profiles>"+
					strings.Replace(w.Profile("p", w.Alice.Name), fmt.Sprintf(`port="%d"`, w.SSHD.Addr4.Port()), `port="9"`, 1)+
					`</profiles><filter-engine><rule ip-address=".*" ports="8000" action="TUNNEL" profile-id="p"/></filter-engine>`), 0o600)
			}
			w.StartCaptured(t, w.args...)
			before := w.Client.Capture(t, "to-server")
			if c.frozen {
				first := w.cgroupCapture(t, w.Alice, w.Testprog, "connect", "-echo", w.marker, w.place(tunneled))
				if r := first.Wait(t); !strings.Contains(r.Stdout, " ok ") {
					t.Fatalf("no tunnel: %v", r)
				}
				pids := w.sessions(t)
				for _, pid := range pids {
					_ = unix.Kill(pid, unix.SIGSTOP)
				}
				defer func() {
					for _, pid := range pids {
						_ = unix.Kill(pid, unix.SIGCONT)
					}
				}()
			}
			const rounds = 30
			for range rounds {
				w.Client.Run(t, w.Cmd(w.Alice, w.Capture, "--backend=cgroup",
					w.Testprog, "connect", "-n", "20", "-cancel", "3ms", w.place(tunneled), w.place6(tunneled)))
			}
			w.Await(t, "no capture", func(st service.Status) bool { return len(st.Captures) == 0 && st.Waiting == 0 })
			w.requireClosed(t, before)
		})
	}
}

// TestEnterWhileTheCaptureEnds has a process enter a capture in the moment in which its
// last one dies. Either it is told that it cannot, or it is captured.
func TestEnterWhileTheCaptureEnds(t *testing.T) {
	w := newWorld(t, "auto", "closed")
	w.StartCaptured(t, w.args...)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, err := client.Dial(ctx, w.Socket, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	wire := w.Client.Capture(t, "to-server")
	entered, ended := 0, 0
	const rounds = 100
	for i := range rounds {
		id := "race" + strings.ToLower(rand.Text()[:8])
		if _, err := c.Make(ctx, id); err != nil {
			t.Fatal(err)
		}
		last := w.waiting(t, "exit")
		if err := c.Enter(ctx, id, last.pidfd); err != nil {
			t.Fatal(err)
		}
		// It tries to connect until it is killed; the time says whether it was held.
		next := w.waiting(t, fmt.Sprintf("exec %s connect -nonblock -timeout 300ms %s", w.Testprog, w.place(tunneled)))
		go func() {
			<-time.After(time.Duration(i%20) * 100 * time.Microsecond) // so that they meet at every point
			last.release()
		}()
		err := c.Enter(ctx, id, next.pidfd)
		next.release()
		out := next.Wait(t).Stdout
		switch {
		case err != nil:
			ended++ // in clear, as nobody told it otherwise
		case strings.Contains(out, "ETIMEDOUT"):
			entered++
		default:
			t.Errorf("round %d: it was told that it is in the capture, and its connect() said %q", i, out)
		}
		last.Wait(t)
	}
	t.Logf("%d entered, %d came too late", entered, ended)
	if entered == 0 {
		t.Error("none entered: nothing is proven")
	}
	n := len(wire.Packets(t, func(p netns.Packet) bool { return netns.NewConnections(p) && p.Dst.Port() == tunneled }))
	if n != ended {
		t.Errorf("%d SYNs left in clear, want one for each of the %d that came too late", n, ended)
	}
}

// waiting is a process of root's that goes on once released.
type waiting struct {
	*netns.Process
	pidfd   *os.File
	release func()
}

func (w *world) waiting(t *testing.T, script string) waiting {
	t.Helper()
	r, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := w.Client.Start(t, netns.Cmd{Args: []string{"sh", "-c", "read go; " + script}, Stdin: r})
	r.Close()
	fd, err := unix.PidfdOpen(p.Pid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { f.Close(); in.Close() })
	return waiting{p, f, func() { in.Close() }}
}
