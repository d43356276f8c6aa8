package crash

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sshbroker/capture/service"
	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// TestPolicyOpen: what needs a broker goes in clear while there is none, which is what
// the policy says, and in the tunnel again once there is one. Where the kernel knows no
// owners the table stays when all are dead: closed, and status says so.
func TestPolicyOpen(t *testing.T) {
	for _, o := range []struct{ ownership, owned, policy string }{
		{"auto", "owner", "open"},
		{"owner", "owner", "open"},
		{"none", "none", "closed"},
	} {
		t.Run(o.ownership, func(t *testing.T) {
			w := newWorld(t, o.ownership, "open")
			before := w.Snapshot(t)
			for _, c := range []struct {
				name      string
				kill      func(*testing.T, *world)
				brokers   bool // ssh-captured is there and lets flows go
				restarted bool // by the keeper
				resets    bool // live tunneled flows are
			}{
				{name: "broker", kill: killBroker, brokers: true, resets: true},
				{name: "worker", kill: killWorker, restarted: true},
				{name: "worker and keeper", kill: killCaptured},
				{name: "stop of ssh-captured", kill: stopCaptured},
				{name: "everything", kill: killAll, resets: true},
			} {
				t.Run(c.name, func(t *testing.T) {
					w.up(t, nil, nil)
					defer w.down(t)
					if st := w.Status(t); st.Ownership != o.owned || st.Policy != o.policy {
						t.Errorf("ownership %q, policy %q, want %q and %q", st.Ownership, st.Policy, o.owned, o.policy)
					}
					w.requireTunneled(t)
					live := w.lives(t)
					defer live.close(t)
					thaw := w.freeze(t)
					p := w.connect(t, many, tunneled)
					w.awaitHeld(t, many)
					c.kill(t, w)
					switch {
					case c.restarted:
					case c.brokers || o.policy == "open":
						w.requireOpen(t)
					default:
						w.requireWaits(t, tunneled)
					}
					w.requireWorks(t, compiled)
					thaw()
					if !c.resets {
						w.requireKept(t, live)
					}
					if !c.restarted && !c.brokers {
						w.StartCaptured(t, w.args...)
					}
					if c.resets {
						w.StartSystemBroker(t, "")
					}
					_, slowest := requireThrough(t, p, many, false)
					t.Logf("the slowest connect() took %v", slowest)
					w.Await(t, "an ssh-captured that serves", func(st service.Status) bool { return st.Serving && st.Enabled })
					w.requireTunneled(t)
					if c.resets {
						live.require(t, (*talk).requireReset)
					} else {
						live.require(t, (*talk).requireLives)
					}
				})
			}
			w.Release(t)
			w.RequireRestored(t, before, settle)
		})
	}
}

// requireKept has live tunneled flows say something, none of which may leave in clear
// whatever the policy is: where they lead was decided.
func (w *world) requireKept(t *testing.T, live lives) {
	t.Helper()
	wire := w.Client.Capture(t, "to-server")
	live.require(t, (*talk).requireLives)
	for _, k := range live.tunnel {
		if wire.Contains(t, []byte(k.last)) {
			t.Errorf("%q of a tunneled flow is on the wire", k.last)
		}
	}
}

// requireTunneled connects to the protected service and expects none of it on the wire.
func (w *world) requireTunneled(t *testing.T) {
	t.Helper()
	wire := w.Client.Capture(t, "to-server")
	w.requireWorks(t, tunneled)
	w.requireClosed(t, wire)
}

// TestBoot has a host come up with system-wide capture on: its rules are in force before
// there is a broker.
func TestBoot(t *testing.T) {
	for _, ownership := range []string{"auto", "owner", "none"} {
		t.Run(ownership, func(t *testing.T) {
			w := newWorld(t, ownership, "closed")
			before := w.Snapshot(t)
			w.up(t, nil, nil)
			old := w.Status(t)
			killAll(t, w)
			for _, table := range w.tables(t) { // which a machine that goes down forgets
				w.Client.Output(t, nil, append([]string{"nft", "delete"}, strings.Fields(table)...)...)
			}
			if left := w.tables(t); len(left) != 0 {
				t.Fatalf("still there: %v", left)
			}
			w.Client.Sysctl(t, "net.ipv4.icmp_ratemask", "6168")
			w.requireOpen(t)

			w.StartCaptured(t, w.args...)
			wire := w.Client.Capture(t, "to-server")
			st := w.Status(t)
			if !st.Enabled || st.Serving || st.Ownership != old.Ownership {
				t.Errorf("%+v, want it enabled, without a broker, and owned as before", st)
			}
			p := w.connect(t, many, tunneled)
			w.awaitHeld(t, many)
			w.requireWaits(t, asked)
			w.requireWorks(t, compiled)
			w.StartSystemBroker(t, "")
			_, slowest := requireThrough(t, p, many, false)
			t.Logf("the slowest connect() took %v", slowest)
			for _, port := range []int{tunneled, compiled, asked} {
				w.requireWorks(t, port)
			}
			w.requireClosed(t, wire)
			w.down(t)
			w.Release(t)
			w.RequireRestored(t, before, settle)
		})
	}
}

// tables are those of the client's kernel, as "table FAMILY NAME".
func (w *world) tables(t *testing.T) (list []string) {
	t.Helper()
	for line := range strings.Lines(w.Client.Output(t, nil, "nft", "list", "tables")) {
		list = append(list, strings.TrimSpace(line))
	}
	return list
}

// TestRelease opens everything in every state that ssh-captured can be in, and leaves
// nothing of ours: neither in the kernel nor in the directory of the state.
func TestRelease(t *testing.T) {
	for _, ownership := range []string{"auto", "owner", "none"} {
		t.Run(ownership, func(t *testing.T) {
			w := newWorld(t, ownership, "closed")
			w.Alice.Write(t, ".ssh2/ssh-broker-config.xml", host.Config("<profiles>"+w.Profile("p", w.Alice.Name)+
				`</profiles><filter-engine><rule ip-address=".*" ports="8000" action="TUNNEL" profile-id="p"/></filter-engine>`), 0o600)
			before := w.Snapshot(t)
			for _, c := range []struct {
				name string
				kill func(*testing.T, *world)
				runs bool // ssh-captured does
			}{
				{"running", func(*testing.T, *world) {}, true},
				{"worker killed", killWorker, true},
				{"broker killed", killBroker, true},
				{"stopped", stopCaptured, false},
				{"worker and keeper killed", killCaptured, false},
				{"everything killed", killAll, false},
			} {
				t.Run(c.name, func(t *testing.T) {
					w.up(t, nil, nil)
					defer w.down(t)
					in := w.cgroupCapture(t, w.Alice, "sleep", "1000")
					thaw := w.freeze(t)
					defer thaw()
					held := w.connect(t, many, tunneled)
					w.awaitHeld(t, many)
					c.kill(t, w)
					w.Release(t)
					w.requireOpen(t)
					_, slowest := requireThrough(t, held, many, false)
					t.Logf("the slowest connect() took %v", slowest)
					in.Signal(t, unix.SIGTERM)
					in.Wait(t)
					// A keeper of the capture would start another broker while this one stops.
					eventually(t, "an end of what looks after the capture", func() bool {
						return w.Client.Run(t, netns.Cmd{Args: []string{"pgrep", "-u", w.Alice.Name, "-x", "ssh-capture"}}).Code == 1
					})
					w.StopBroker(t, w.Alice)
					// The table goes once no connection needs it, which is looked for now and then.
					eventually(t, "a kernel without our rules", func() bool { return len(w.tables(t)) == 0 })
					w.requireOpen(t)
					if !c.runs {
						w.Release(t) // nobody else removes cgroups in which there were processes
					}
					eventually(t, "a kernel without our cgroups", func() bool { return len(w.leaves(t)) == 0 })
					if c.runs {
						// A system broker may be back with its rules, which are not in force.
						if st := w.Status(t); st.Enabled || len(st.Captures) > 1 || len(st.Captures) == 1 && st.Captures[0].ID != service.System {
							t.Errorf("%+v, want nothing captured", st)
						}
						w.StopCaptured(t)
					}
					w.StartCaptured(t, w.args...) // and it is forgotten for good
					w.requireOpen(t)
				})
			}
			w.RequireRestored(t, before, settle)
		})
	}
}

// cgroupCapture starts a command of a user's in a capture of its own, and waits until
// it is in.
func (w *world) cgroupCapture(t *testing.T, u *netns.User, command ...string) *netns.Process {
	t.Helper()
	n := len(w.Status(t).Captures)
	c := w.Cmd(u, append([]string{w.Capture, "--backend=cgroup", "sh", "-c", `echo captured; exec "$@"`, "sh"}, command...)...)
	c.Limit = -1
	p := w.Client.Start(t, c)
	p.WaitFor(t, "captured")
	w.Await(t, "one more capture", func(st service.Status) bool { return len(st.Captures) == n+1 })
	return p
}

// leaves are the cgroups of captures.
func (w *world) leaves(t *testing.T) []string {
	t.Helper()
	return strings.Fields(w.Client.Output(t, nil, "find", "/sys/fs/cgroup", "-type", "d", "-path", "*/ssh-capture/*"))
}

// TestReleaseKeepsLiveFlows: what was tunneled stays so to its end, also when everything
// is opened for what comes, and ssh-captured is dead.
func TestReleaseKeepsLiveFlows(t *testing.T) {
	w := newWorld(t, "auto", "closed")
	before := w.Snapshot(t)
	for _, c := range []struct {
		name string
		kill func(*testing.T, *world)
	}{
		{"running", func(*testing.T, *world) {}},
		{"stopped", stopCaptured},
		{"worker and keeper killed", killCaptured},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.up(t, nil, nil)
			defer w.down(t)
			live := w.lives(t)
			c.kill(t, w)
			w.Release(t)
			w.requireKept(t, live)
			w.requireOpen(t)
			live.close(t)
			eventually(t, "a kernel without our rules", func() bool {
				w.Release(t) // nobody else looks after what was kept where nothing runs
				return len(w.tables(t)) == 0
			})
		})
	}
	w.RequireRestored(t, before, settle)
}

// TestKeeperDies: the worker goes on without its keeper, and says so.
func TestKeeperDies(t *testing.T) {
	w := newWorld(t, "auto", "closed")
	// Its messages go to a file: what the test reads from ends with the keeper.
	c := netns.Cmd{Args: append([]string{"sh", "-c", `exec "$@" 2>"$HOME/captured.log"`, "sh", w.Captured,
		"--socket", w.Socket, "--state-dir", filepath.Join(w.Dir, "captured"), "--admin-group", w.Service.Name}, w.args...), Limit: -1}
	keeper := w.Client.Start(t, c)
	eventually(t, "ssh-captured", func() bool { return w.Run(t, nil, w.Ctl, "connector", "status").Code == 0 })
	w.StartSystemBroker(t, w.config)
	w.Enable(t)
	wire := w.Client.Capture(t, "to-server")
	live := w.lives(t)
	thaw := w.freeze(t)
	p := w.connect(t, many, tunneled)
	w.awaitHeld(t, many)
	old := w.Status(t)
	keeper.Signal(t, unix.SIGKILL)
	st := w.Await(t, "a worker without a keeper", func(st service.Status) bool { return st.Keeper == "none" })
	if st.PID != old.PID || old.Keeper != "parent" {
		t.Errorf("process %d kept by %s, want %d as before, kept by parent before", st.PID, old.Keeper, old.PID)
	}
	thaw()
	requireThrough(t, p, many, false)
	live.require(t, (*talk).requireLives)
	for _, port := range []int{tunneled, compiled, asked} {
		w.requireWorks(t, port)
	}
	live.close(t)
	w.requireClosed(t, wire)
	if err := unix.Kill(st.PID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an end of the worker", func() bool { return unix.Kill(st.PID, 0) == unix.ESRCH })
}
