package cgroups

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture/service"
	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// gatePort is where SSH connections wait until the gate is opened.
const gatePort = 7098

// gate is before the SSH server.
type gate struct {
	opened chan struct{}
	once   sync.Once
}

func (g *gate) open() { g.once.Do(func() { close(g.opened) }) }

// newGate makes one, and a user's rules that tunnel one port through it and another
// without, and let a third go directly.
func (w *world) newGate(t *testing.T, u *netns.User) *gate {
	t.Helper()
	g := &gate{opened: make(chan struct{})}
	t.Cleanup(g.open)
	l := w.Server.Listen(t, "tcp", netip.AddrPortFrom(w.Server.Addr4, gatePort).String())
	w.listeners = append(w.listeners, l)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				<-g.opened
				ssh, err := w.Server.Dial("tcp", w.ServerAddr().String())
				if err != nil {
					return
				}
				defer ssh.Close()
				go func() { io.Copy(ssh, c); ssh.(*net.TCPConn).CloseWrite() }()
				io.Copy(c, ssh)
			}()
		}
	}()
	u.Write(t, ".ssh/known_hosts", w.SSHD.KnownHosts()+fmt.Sprintf("[%v]:%d %s\n", w.Server.Addr4, gatePort, w.SSHD.HostKey), 0o600)
	through := strings.Replace(w.Profile("gate", ""), fmt.Sprintf(`port="%d"`, w.ServerAddr().Port()), fmt.Sprintf(`port="%d"`, gatePort), 1)
	u.Write(t, ".ssh2/ssh-broker-config.xml", host.Config("<profiles>"+w.Profile("p", "")+through+fmt.Sprintf(`</profiles>
<filter-engine>
  <rule ip-address=".*" ports="%d" action="TUNNEL" profile-id="gate"/>
  <rule ip-address=".*" ports="%d" action="TUNNEL" profile-id="p"/>
</filter-engine>`, gated, tunneled)), 0o600)
	return g
}

const gated = 7011

// brokerOf is the process of a user's broker, 0 where there is none.
func brokerOf(u *netns.User) int {
	b, err := os.ReadFile("/tmp/ssh-" + u.Name + "/ssh-broker.lock")
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid
}

// killBroker kills a user's broker and waits for the next one.
func (w *world) killBroker(t *testing.T, u *netns.User) {
	t.Helper()
	old := brokerOf(u)
	if old == 0 {
		t.Fatalf("%s has no broker", u.Name)
	}
	kill(t, old)
	eventually(t, "a new broker", func() bool { now := brokerOf(u); return now != 0 && now != old })
}

// kill kills a process and waits for its end.
func kill(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(settle); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(end).Milliseconds()))
		switch {
		case n > 0:
			return
		case err != unix.EINTR:
			t.Fatalf("process %d does not end: %v", pid, err)
		}
	}
}

// eventually waits for what has no event.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(settle); !is(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", settle, what)
		}
	}
}

// pending starts n connects through the gate and waits until all are held.
func (w *world) pending(t *testing.T, u *netns.User, n int) (requireDone func(*testing.T)) {
	t.Helper()
	target := netip.AddrPortFrom(w.Server.Addr4, gated)
	p := w.Client.Start(t, w.capture(u, w.Testprog, "connect", "-n", strconv.Itoa(n), target.String()))
	w.Await(t, fmt.Sprintf("%d held SYNs", n), func(st service.Status) bool { return st.Waiting == n })
	return func(t *testing.T) {
		t.Helper()
		r := expect(t, p.Wait(t), 0)
		if got := strings.Count(r.Stdout, " ok "); got != n {
			t.Errorf("%d of %d connected: %v", got, n, r)
		}
		if got := w.syns(t, target); got != 0 {
			t.Errorf("%d SYNs left the host", got)
		}
	}
}

// hold opens a connection that stays, as descriptor fd of the shell.
func (s *shell) hold(t *testing.T, l lines, fd int, to netip.Addr, from netip.Addr) {
	t.Helper()
	said, _ := s.do(t, fmt.Sprintf(`exec %d<>/dev/tcp/%v/%d; read -r -u%d line; echo "$line"`, fd, to, l.port, fd))
	l.requireFrom(t, said, from)
}

// requireLive fails the test unless the connection of hold still works.
func (s *shell) requireLive(t *testing.T, l lines, fd int) {
	t.Helper()
	s.n++
	want := fmt.Sprintf("%s still-%d\n", l.marker, s.n)
	if said, _ := s.do(t, fmt.Sprintf(`echo still-%d >&%d; read -r -t 60 -u%d line; echo "$line"`, s.n, fd, fd)); said != want {
		t.Errorf("port %d: the connection of before says %q, want %q", l.port, said, want)
	}
}

// TestBrokerKilled: programs that connect meanwhile get through by the next broker.
func TestBrokerKilled(t *testing.T) {
	w := newCaptured(t)
	s := w.onServer(t, gated)
	plain := w.onServer(t, direct)
	g := w.newGate(t, w.Alice)
	sh := w.start(t, w.capture(w.Alice, "bash"))
	sh.hold(t, plain, 8, w.Server.Addr4, w.Client.Addr4)
	done := w.pending(t, w.Alice, 50)
	w.killBroker(t, w.Alice)
	w.killBroker(t, w.Alice) // perhaps before it serves
	g.open()
	done(t)
	sh.requireLive(t, plain, 8) // the kernel's
	said, _ := sh.do(t, dial(w.Server.Addr4, gated))
	s.requireFrom(t, said, w.Server.Addr4)
	w.clear(t, s.marker, false)
	expect(t, sh.end(t), 0)
	w.finish(t)
}

// TestCapturedKilled: with its keeper, and then without, programs that connect wait,
// and what lives lives on.
func TestCapturedKilled(t *testing.T) {
	for _, all := range []bool{false, true} {
		t.Run(map[bool]string{false: "worker", true: "everything"}[all], func(t *testing.T) {
			w := newCaptured(t)
			s, plain := w.onServer(t, tunneled), w.onServer(t, direct)
			w.onServer(t, gated)
			g := w.newGate(t, w.Alice)
			sh := w.start(t, w.capture(w.Alice, "bash"))
			sh.hold(t, s, 7, w.Server.Addr4, w.Server.Addr4)
			sh.hold(t, plain, 8, w.Server.Addr6, w.Client.Addr6)
			done := w.pending(t, w.Alice, 50)
			w.KillCaptured(t, all)
			sh.requireLive(t, s, 7)
			sh.requireLive(t, plain, 8)
			if all {
				w.StartCaptured(t)
			}
			w.Await(t, "captures that are served again", func(st service.Status) bool {
				return len(st.Captures) == 2 && st.Captures[0].Served && st.Captures[1].Served
			})
			g.open()
			done(t)
			sh.requireLive(t, s, 7)
			said, _ := sh.do(t, dial(w.Server.Addr6, tunneled))
			s.requireFrom(t, said, w.Server.Addr6)
			w.clear(t, s.marker, false)
			expect(t, sh.end(t), 0)
			w.finish(t)
		})
	}
}

// TestCommandKilled: ssh-capture tells, and nothing is left.
func TestCommandKilled(t *testing.T) {
	w := newCaptured(t)
	w.configureWays(t, w.Alice)
	sh := w.start(t, w.capture(w.Alice, "bash"))
	pid, _ := sh.do(t, "echo $$")
	n, err := strconv.Atoi(strings.TrimSpace(pid))
	if err != nil {
		t.Fatal(err)
	}
	kill(t, n)
	if r := sh.Wait(t); r.Code != 128+int(unix.SIGKILL) {
		t.Errorf("ssh-capture ended with %v", r)
	}
	w.idle(t)
	eventually(t, "the table is gone, though ssh-captured runs", func() bool { return w.Client.Output(t, nil, "nft", "list", "ruleset") == "" })
	w.finish(t)
}

// TestSSHCaptureKilled: the command stays captured, and all goes with it.
func TestSSHCaptureKilled(t *testing.T) {
	w := newCaptured(t)
	s := w.onServer(t, tunneled)
	w.configureWays(t, w.Alice)
	sh := w.start(t, w.capture(w.Alice, "bash"))
	sh.hold(t, s, 7, w.Server.Addr4, w.Server.Addr4)
	id := w.capturesOf(t, w.Alice, 1)[0].ID
	pids := w.processes(t, w.Alice, id)
	if len(pids) != 1 {
		t.Fatalf("processes %v in the capture, want the shell", pids)
	}
	out := w.Alice.Write(t, "out", "", 0o600)
	write(t, sh.in, "exec >"+out+" 2>&1\n") // its output ends with ssh-capture
	kill(t, sh.Pid())
	write(t, sh.in, dial(w.Server.Addr4, tunneled)+"\necho over\n")
	eventually(t, "the command goes on", func() bool { return strings.Contains(read(t, out), "over") })
	s.requireFrom(t, read(t, out), w.Server.Addr4)
	w.clear(t, s.marker, false)
	sh.in.Close()
	w.finish(t)
}

func write(t *testing.T, f *os.File, text string) {
	t.Helper()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestBackground: what the command leaves running stays captured, by a keeper that
// starts another broker, and even when both are gone for a moment.
func TestBackground(t *testing.T) {
	w := newCaptured(t)
	s := w.onServer(t, tunneled)
	w.configureWays(t, w.Alice)
	out := w.Alice.Write(t, "out", "", 0o600)
	fifo := w.Alice.Path("fifo")
	if err := unix.Mkfifo(fifo, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(fifo, int(w.Alice.UID), int(w.Alice.GID)); err != nil {
		t.Fatal(err)
	}
	r := w.Client.Run(t, w.capture(w.Alice, "bash", "-c", fmt.Sprintf(`(exec <>%s >>%s 2>&1; while read -r line; do eval "$line"; echo did "$line"; done) & exit 3`, fifo, out)))
	expect(t, r, 3)
	if r.PipesHeld {
		t.Error("the caller's standard output is held open")
	}
	do := func(command string) string {
		t.Helper()
		before := len(read(t, out))
		if err := os.WriteFile(fifo, []byte(command+"\n"), 0); err != nil {
			t.Fatal(err)
		}
		eventually(t, command, func() bool { return strings.Contains(read(t, out)[before:], "did "+command+"\n") })
		return read(t, out)[before:]
	}
	s.requireFrom(t, do(dial(w.Server.Addr4, tunneled)), w.Server.Addr4)
	keeper := w.keeper(t, w.Alice)
	w.killBroker(t, w.Alice)
	s.requireFrom(t, do(dial(w.Server.Addr6, tunneled)), w.Server.Addr6)
	kill(t, keeper)
	s.requireFrom(t, do(dial(w.Server.Addr4, tunneled)), w.Server.Addr4)
	w.clear(t, s.marker, false)
	if l := w.leaves(t); len(l) != 1 {
		t.Errorf("leaves: %v", l)
	}
	os.WriteFile(fifo, []byte("exit\n"), 0)
	w.finish(t)
}

// keeper is the process that keeps a user's one capture.
func (w *world) keeper(t *testing.T, u *netns.User) (pid int) {
	t.Helper()
	eventually(t, "a keeper", func() bool {
		r := w.Client.Run(t, netns.Cmd{Args: []string{"pgrep", "-u", fmt.Sprint(u.UID), "-f", "^[^ ]*/ssh-capture --keep-capture"}})
		pid, _ = strconv.Atoi(strings.TrimSpace(r.Stdout))
		return pid != 0
	})
	return pid
}

// TestLastWords: what a program says that connects and ends at once, the last of its
// capture, arrives.
func TestLastWords(t *testing.T) {
	w := newCaptured(t)
	for _, backend := range []string{"cgroup", "namespace"} {
		t.Run(backend, func(t *testing.T) {
			const many = 40
			heard := make(chan string, many)
			l := w.Server.Listen(t, "tcp", netip.AddrPortFrom(w.Server.Addr4, tunneled).String())
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						defer c.Close()
						b, _ := io.ReadAll(c)
						heard <- string(b)
					}()
				}
			}()
			w.configureWays(t, w.Alice)
			for i := range many {
				last := fmt.Sprintf("last words %d\n", i)
				expect(t, w.Run(t, w.Alice, w.Capture, "--backend", backend, "bash", "-c", fmt.Sprintf("echo '%s' >/dev/tcp/%v/%d", strings.TrimSpace(last), w.Server.Addr4, tunneled)), 0)
				select {
				case got := <-heard:
					if got != last {
						t.Errorf("the server heard %q, want %q", got, last)
					}
				case <-time.After(settle):
					t.Fatalf("nothing was heard of %q", last)
				}
			}
		})
	}
	w.finish(t)
}
