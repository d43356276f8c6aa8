package cgroups

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sshbroker/capture/service"
	"sshbroker/test/host"
	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

func TestMain(m *testing.M) { sut.Main(m, nil) }

// settle is how long things may take that happen by themselves.
const settle = 20 * time.Second

// world is a host without system-wide rules, and the server's services.
type world struct {
	*host.Host
	wire   *netns.Wire // between client and server
	before netns.Snapshot

	listeners []io.Closer // of services
}

// newWorld has everything but ssh-captured, which the test starts.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Host: host.New(t)}
	w.wire = w.Client.Capture(t, "to-server")
	w.before = w.Snapshot(t)
	return w
}

// newCaptured has ssh-captured too.
func newCaptured(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.StartCaptured(t)
	return w
}

// finish stops brokers and ssh-captured and fails the test if anything is left.
func (w *world) finish(t *testing.T) {
	t.Helper()
	for _, u := range []*netns.User{w.Alice, w.Bob, w.Carol} {
		w.StopBroker(t, u)
	}
	w.idle(t)
	w.StopCaptured(t)
	for _, l := range w.listeners {
		l.Close()
	}
	w.RequireRestored(t, w.before, settle)
}

// idle waits until ssh-captured has no capture left.
func (w *world) idle(t *testing.T) {
	t.Helper()
	w.Await(t, "no capture", func(st service.Status) bool { return len(st.Captures) == 0 && st.Waiting == 0 })
	eventually(t, "no leaf", func() bool { return len(w.leaves(t)) == 0 })
	eventually(t, "a table without cgroups", func() bool {
		return !strings.Contains(w.Client.Output(t, nil, "nft", "list", "ruleset"), "cgroupv2")
	})
}

// leaves are the directories of captures.
func (w *world) leaves(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(w.Client.CgroupPath("ssh-capture"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// configure writes a user's rules, with the profile p for the server.
func (w *world) configure(t *testing.T, u *netns.User, engine string) {
	t.Helper()
	u.Write(t, ".ssh2/ssh-broker-config.xml", host.Config("<profiles>"+w.Profile("p", "")+"</profiles>\n"+engine), 0o600)
}

// capture is a command line of ssh-capture.
func (w *world) capture(u *netns.User, args ...string) netns.Cmd {
	return w.Cmd(u, append([]string{w.Capture, "--backend=cgroup"}, args...)...)
}

// captured runs one to its end, which must be good.
func (w *world) captured(t *testing.T, u *netns.User, args ...string) string {
	t.Helper()
	return expect(t, w.Client.Run(t, w.capture(u, args...)), 0).Stdout
}

// via is what --via takes for the server.
func (w *world) via(u *netns.User) string {
	return fmt.Sprintf("--via=%s@%s", u.Name, w.ServerAddr())
}

// expect fails the test unless the command ended with that code.
func expect(t *testing.T, r netns.Result, code int) netns.Result {
	t.Helper()
	if r.Code != code {
		t.Fatalf("exit code %d, want %d: %v", r.Code, code, r)
	}
	return r
}

// lines is a TCP service. It says hello with its marker and who calls, and answers each
// line with the marker and the line, until one that says end.
type lines struct {
	port   uint16
	marker string
}

// serve serves lines on addresses of a machine.
func (w *world) serve(t *testing.T, m *netns.Machine, port uint16, addrs ...netip.Addr) lines {
	t.Helper()
	s := lines{port, "marker-" + rand.Text()}
	for _, a := range addrs {
		l := m.Listen(t, "tcp", netip.AddrPortFrom(a, port).String())
		w.listeners = append(w.listeners, l)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go s.talk(c)
			}
		}()
	}
	return s
}

// onServer serves on the server's two addresses.
func (w *world) onServer(t *testing.T, port uint16) lines {
	t.Helper()
	return w.serve(t, w.Server, port, w.Server.Addr4, w.Server.Addr6)
}

func (s lines) talk(c net.Conn) {
	defer c.Close()
	fmt.Fprintf(c, "%s from %v\n", s.marker, c.RemoteAddr())
	for in := bufio.NewScanner(c); in.Scan() && in.Text() != "end"; {
		fmt.Fprintf(c, "%s %s\n", s.marker, in.Text())
	}
}

// caller is whom the service has taken a program for that printed its hello; the zero
// value where that is not in the text.
func (s lines) caller(text string) netip.AddrPort {
	_, rest, _ := strings.Cut(text, s.marker+" from ")
	line, _, _ := strings.Cut(rest, "\n")
	from, _ := netip.ParseAddrPort(strings.TrimSpace(line))
	return from
}

// dial is a shell command that connects, says end and prints what came. It ends with 1
// where nothing could be reached.
func dial(host any, port uint16) string {
	return fmt.Sprintf("(exec 9<>/dev/tcp/%v/%d && echo end >&9 && cat <&9)", host, port)
}

// requireFrom fails the test unless the service was called from that address, which
// tells who made the connection.
func (s lines) requireFrom(t *testing.T, said string, from netip.Addr) {
	t.Helper()
	if got := s.caller(said).Addr(); got != from {
		t.Errorf("port %d was called from %v, want %v; the program said %q", s.port, got, from, said)
	}
}

// outcome is what connect(2) of one captured program says, and how long that took.
func (w *world) outcome(t *testing.T, c netns.Cmd, target netip.AddrPort) (string, time.Duration) {
	t.Helper()
	c.Args = append(c.Args, w.Testprog, "connect", target.String())
	return parseConnect(t, expect(t, w.Client.Run(t, c), 0).Stdout)
}

func parseConnect(t *testing.T, line string) (string, time.Duration) {
	t.Helper()
	var target, outcome string
	var ms float64
	if _, err := fmt.Sscan(line, &target, &outcome, &ms); err != nil {
		t.Fatalf("testprog said %q", line)
	}
	return outcome, time.Duration(ms * float64(time.Millisecond))
}

// clear fails the test if text was on the wire in clear, or was not where that is wanted.
func (w *world) clear(t *testing.T, text string, want bool) {
	t.Helper()
	if got := w.wire.Contains(t, []byte(text)); got != want {
		t.Errorf("%q on the wire in clear: %t, want %t", text, got, want)
	}
}

// syns counts the connection attempts to addr on the wire.
func (w *world) syns(t *testing.T, to netip.AddrPort) int {
	t.Helper()
	return len(w.wire.Packets(t, func(p netns.Packet) bool { return netns.NewConnections(p) && p.Dst == to }))
}

// records waits for n audit records of a user's broker.
func records(t *testing.T, u *netns.User, n int) []host.Record {
	t.Helper()
	return host.AwaitRecords(t, host.UserAuditFile(u), n)
}

// shell is a running captured shell that does what it is told.
type shell struct {
	*netns.Process
	in *os.File
	n  int
}

// start starts a shell in a capture that reads commands until its input is closed.
func (w *world) start(t *testing.T, c netns.Cmd) *shell {
	t.Helper()
	r, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	c.Stdin, c.Limit = r, -1
	s := &shell{Process: w.Client.Start(t, c), in: in}
	r.Close()
	return s
}

// do runs a command in it and returns what it said on standard output, with its exit code.
func (s *shell) do(t *testing.T, command string) (said string, code int) {
	t.Helper()
	s.n++
	mark := fmt.Sprintf("done-%d-%d", s.Pid(), s.n)
	before := len(s.Stdout())
	if _, err := fmt.Fprintf(s.in, "{ %s\n}\necho %s=$?.\n", command, mark); err != nil {
		t.Fatal(err)
	}
	s.WaitFor(t, mark+"=")
	for end := time.Now().Add(settle); ; <-time.After(time.Millisecond) {
		said, rest, _ := strings.Cut(s.Stdout()[before:], mark+"=")
		if number, _, whole := strings.Cut(rest, "."); whole {
			code, err := strconv.Atoi(number)
			if err != nil {
				t.Fatal(err)
			}
			return said, code
		}
		if time.Now().After(end) {
			t.Fatalf("%s says only %q", s, s.Output())
		}
	}
}

// end closes the shell's input and waits for its end.
func (s *shell) end(t *testing.T) netns.Result {
	t.Helper()
	s.in.Close()
	return s.Wait(t)
}

// capturesOf waits until a user has n captures, and returns them.
func (w *world) capturesOf(t *testing.T, u *netns.User, n int) []service.Capture {
	t.Helper()
	own := func(st service.Status) []service.Capture {
		return slices.DeleteFunc(st.Captures, func(c service.Capture) bool { return c.Owner != u.UID })
	}
	return own(w.Await(t, fmt.Sprintf("%d captures of %s", n, u.Name), func(st service.Status) bool { return len(own(st)) == n }))
}

// cgroupOf is the cgroup that a process is in, as the client sees it.
func cgroupOf(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path
		}
	}
	t.Fatalf("process %d has no cgroup: %s", pid, b)
	return ""
}

// processes are those in a capture's leaf.
func (w *world) processes(t *testing.T, u *netns.User, id string) (pids []int) {
	t.Helper()
	b, err := os.ReadFile(w.Client.CgroupPath(filepath.Join("ssh-capture", fmt.Sprintf("%d-%s", u.UID, id), "cgroup.procs")))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}
