package cgroups

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// TestAbsent: without ssh-captured one is told what helps, and auto has another way.
func TestAbsent(t *testing.T) {
	w := newWorld(t)
	s := w.onServer(t, tunneled)
	w.configureWays(t, w.Alice)
	for _, args := range [][]string{{"--backend=cgroup", "echo", "ran"}, {"--pid", fmt.Sprint(os.Getpid())}} {
		r := expect(t, w.Run(t, w.Alice, append([]string{w.Capture}, args...)...), 125)
		if !strings.Contains(r.Stderr, "ssh-captured is not running") || !strings.Contains(r.Stderr, "hint: as root: systemctl start ssh-captured") || r.Stdout != "" {
			t.Errorf("%v: %v", args, r)
		}
	}
	for _, args := range [][]string{nil, {"--backend=auto"}, {"--backend=namespace"}} {
		r := expect(t, w.Run(t, w.Alice, append(append([]string{w.Capture}, args...), "bash", "-c", "readlink /proc/self/ns/net; "+dial(w.Server.Addr4, tunneled))...), 0)
		s.requireFrom(t, r.Stdout, w.Server.Addr4)
		if strings.Contains(r.Stdout, fmt.Sprintf("net:[%d]", w.Client.Inode())) {
			t.Errorf("%v: it runs in the host's network: %v", args, r)
		}
	}
	w.clear(t, s.marker, false)
	w.StopBroker(t, w.Alice)
	for _, l := range w.listeners {
		l.Close()
	}
	w.RequireRestored(t, w.before, settle)
}

// TestNested: a capture in a capture, of each kind in each, by the inner one's rules.
func TestNested(t *testing.T) {
	w := newCaptured(t)
	s := w.onServer(t, tunneled)
	w.configure(t, w.Alice, `<filter-engine><rule ip-address=".*" ports="7001" action="TUNNEL" profile-id="p"/></filter-engine>`)
	file := func(name, action string) string {
		return w.Alice.Write(t, name, host.Config(`<filter-engine><rule ip-address=".*" ports="7001" action="`+action+`"/></filter-engine>`), 0o600)
	}
	direct, block := file("direct.xml", "DIRECT"), file("block.xml", "BLOCK")
	outer := w.start(t, w.capture(w.Alice, "bash"))
	in := func(backend, file string) string {
		return fmt.Sprintf("%s --backend=%s -f %s bash -c '%s'", w.Capture, backend, file, dial(w.Server.Addr4, tunneled))
	}
	for range 2 {
		said, _ := outer.do(t, dial(w.Server.Addr4, tunneled))
		s.requireFrom(t, said, w.Server.Addr4)
		for _, backend := range []string{"cgroup", "auto", "namespace"} {
			said, _ = outer.do(t, in(backend, direct))
			s.requireFrom(t, said, w.Client.Addr4)
			if said, code := outer.do(t, in(backend, block)); code != 1 {
				t.Errorf("%s: blocked inside: exit code %d, %q", backend, code, said)
			}
		}
	}
	// Three deep, and what is left in the background of the inner one.
	said, _ := outer.do(t, fmt.Sprintf("%s --backend=cgroup -f %s %s --backend=cgroup -f %s bash -c '%s'", w.Capture, block, w.Capture, direct, dial(w.Server.Addr6, tunneled)))
	s.requireFrom(t, said, w.Client.Addr6)
	fifo := w.Alice.Path("fifo")
	outer.do(t, fmt.Sprintf("mkfifo %s; %s --backend=cgroup -f %s bash -c '(read <%s; %s >%s.out) >/dev/null 2>&1 &'", fifo, w.Capture, direct, fifo, dial(w.Server.Addr4, tunneled), fifo))
	w.capturesOf(t, w.Alice, 2)
	expect(t, outer.end(t), 0)
	w.capturesOf(t, w.Alice, 2) // the inner one's keeper is in the outer
	if err := os.WriteFile(fifo, []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	w.capturesOf(t, w.Alice, 0)
	s.requireFrom(t, read(t, fifo+".out"), w.Client.Addr4)

	// In a namespace there is no host to capture: its sockets are not on it.
	inside := w.start(t, w.Cmd(w.Alice, w.Capture, "--backend=namespace", "bash"))
	if said, code := inside.do(t, in("cgroup", direct)+" 2>&1"); code != 125 || !strings.Contains(said, "ssh-captured runs in another network namespace") || !strings.Contains(said, "hint: --backend=namespace needs no ssh-captured") {
		t.Errorf("a cgroup in a namespace: exit code %d: %s", code, said)
	}
	said, _ = inside.do(t, in("auto", direct))
	s.requireFrom(t, said, w.Client.Addr4)
	said, _ = inside.do(t, dial(w.Server.Addr4, tunneled))
	s.requireFrom(t, said, w.Server.Addr4)
	expect(t, inside.end(t), 0)
	w.finish(t)
}

// TestRunningProcess captures shells that run already, by both programs.
func TestRunningProcess(t *testing.T) {
	w := newCaptured(t)
	s := w.onServer(t, tunneled)
	w.configureWays(t, w.Alice)
	for name, command := range map[string][]string{
		"ssh-capture":    {w.Capture, "--pid"},
		"via":            {w.Capture, w.via(w.Alice), "--pid"},
		"ssh-broker-ctl": {w.Ctl, "capture", "--pid"},
	} {
		t.Run(name, func(t *testing.T) {
			sh := w.start(t, w.Cmd(w.Alice, "bash"))
			sh.hold(t, s, 7, w.Server.Addr4, w.Client.Addr4)
			r := expect(t, w.Run(t, w.Alice, append(command, fmt.Sprint(sh.Pid()))...), 0)
			c := w.capturesOf(t, w.Alice, 1)[0]
			if !strings.Contains(r.Stdout, c.ID) {
				t.Errorf("it does not name the capture %s: %v", c.ID, r)
			}
			if pids := w.processes(t, w.Alice, c.ID); len(pids) != 1 || pids[0] != sh.Pid() {
				t.Errorf("processes %v in the capture, want %d", pids, sh.Pid())
			}
			for _, a := range both(w.Server) {
				said, _ := sh.do(t, dial(a, tunneled))
				s.requireFrom(t, said, a)
			}
			sh.requireLive(t, s, 7)
			w.killBroker(t, w.Alice) // its keeper starts the next
			said, _ := sh.do(t, dial(w.Server.Addr4, tunneled))
			s.requireFrom(t, said, w.Server.Addr4)
			sh.requireLive(t, s, 7)
			expect(t, sh.end(t), 0)
			w.capturesOf(t, w.Alice, 0)
		})
	}
	w.finish(t)
}

// TestRunningProcessOfOthers: nobody captures another's, and nothing is left of trying.
func TestRunningProcessOfOthers(t *testing.T) {
	w := newWorld(t)
	w.sudoWithout(t, w.Alice)
	w.before = w.Snapshot(t)
	w.StartCaptured(t)
	s := w.onServer(t, tunneled)
	for _, u := range []*netns.User{w.Alice, w.Bob} {
		w.configureWays(t, u)
	}
	bobs, roots := w.start(t, w.Cmd(w.Bob, "bash")), w.start(t, w.Cmd(nil, "bash"))
	sudo := w.start(t, w.Cmd(w.Alice, "sudo", "-n", "bash"))
	sudo.do(t, "true")
	for _, of := range []*shell{bobs, roots, sudo} {
		for _, command := range [][]string{{w.Capture, "--pid"}, {w.Ctl, "capture", "--pid"}} {
			r := w.Run(t, w.Alice, append(command, fmt.Sprint(of.Pid()))...)
			if r.Code == 0 || r.Stdout != "" || !strings.Contains(r.Stderr, "another user's") {
				t.Errorf("%v: %v", of, r)
			}
		}
	}
	// Root could move it, and its connections would be no capture's of root's.
	address := filepath.Join(w.Dir, "broker-of-root")
	if r := w.Run(t, nil, w.Capture, "-a", address, "--allow-direct", "--pid", fmt.Sprint(bobs.Pid())); r.Code != 125 || !strings.Contains(r.Stderr, "another user's") {
		t.Errorf("root captures Bob's: %v", r)
	}
	expect(t, w.Run(t, nil, w.Ctl, "-a", address, "stop", "--drain", "0"), 0)
	w.idle(t)
	for _, of := range []*shell{bobs, roots, sudo} {
		said, _ := of.do(t, dial(w.Server.Addr4, tunneled))
		s.requireFrom(t, said, w.Client.Addr4)
		if got := cgroupOf(t, of.Pid()); strings.Contains(got, "ssh-capture") {
			t.Errorf("%v is in %s", of, got)
		}
		expect(t, of.end(t), 0)
	}
	w.finish(t)
}

// TestUnifiedHierarchy: cgroup2 where a host without the old hierarchies has it.
func TestUnifiedHierarchy(t *testing.T) {
	w := newWorld(t)
	w.Client.MountCgroup(t, "/sys/fs/cgroup")
	w.before = w.Snapshot(t)
	w.StartCaptured(t)
	if st := w.Status(t); st.Hierarchy != "/sys/fs/cgroup" {
		t.Errorf("the hierarchy is at %q", st.Hierarchy)
	}
	s := w.onServer(t, tunneled)
	w.configureWays(t, w.Alice)
	sh := w.start(t, w.capture(w.Alice, "bash"))
	for _, a := range both(w.Server) {
		said, _ := sh.do(t, dial(a, tunneled))
		s.requireFrom(t, said, a)
	}
	if c := w.capturesOf(t, w.Alice, 1)[0]; !strings.HasPrefix(c.Cgroup, "/sys/fs/cgroup/ssh-capture/") {
		t.Errorf("the capture is %+v", c)
	}
	w.clear(t, s.marker, false)
	expect(t, sh.end(t), 0)
	w.finish(t)
}
