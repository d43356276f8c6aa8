package crash

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture/service"
	"sshbroker/test/host"
	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

func TestMain(m *testing.M) { sut.Main(m, nil) }

// settle is how long things may take that happen by themselves.
const settle = 20 * time.Second

// Ports of the server, and what the rules say of them.
const (
	tunneled = 8000
	compiled = 8001 // in clear, by the kernel alone
	asked    = 8002 // in clear, once the broker has said so
)

const (
	captureEnv = "SSH_CAPTURED_TEST_FAILPOINT"
	brokerEnv  = "SSH_BROKER_TEST_FAILPOINT"
)

// world is a host with rules for everybody, and a server with services that could be
// reached in clear: what leaks is answered.
type world struct {
	*host.Host
	args   []string // of ssh-captured
	config string   // of the system broker
	marker string   // what tunneled flows say
}

// newWorld runs nothing of ours yet. policy is a value of crash-policy.
func newWorld(t *testing.T, ownership, policy string) *world {
	t.Helper()
	w := &world{Host: host.New(t), args: []string{"--ownership", ownership}, marker: "marker-" + rand.Text()}
	w.config = host.Config("<profiles>" + w.Profile("p", w.Service.Name) + fmt.Sprintf(`</profiles>
<filter-engine ip-generate-start="198.18.0.0" crash-policy="%s">
  <rule ip-address=".*" ports="%d" action="TUNNEL" profile-id="p"/>
  <rule ip-address=".*" ports="%d" action="DIRECT"/>
  <rule ip-address=".*" ports="%d" users="%s" action="DIRECT"/>
</filter-engine>`, policy, tunneled, compiled, asked, w.Alice.Name))
	serve := []string{w.Testprog, "serve"}
	for _, port := range []int{tunneled, compiled, asked} {
		serve = append(serve, fmt.Sprintf("[::]:%d", port))
	}
	w.Server.Start(t, netns.Cmd{Args: serve, Limit: -1}).WaitFor(t, fmt.Sprintf("listening [::]:%d", asked))
	return w
}

// up has everything run, with what the two daemons are to have in their environment.
func (w *world) up(t *testing.T, captured, broker []string) {
	t.Helper()
	w.StartCapturedEnv(t, captured, w.args...)
	w.StartSystemBrokerEnv(t, w.config, broker)
	w.Enable(t)
}

// down stops everything.
func (w *world) down(t *testing.T) {
	t.Helper()
	w.StopSystemBroker(t)
	w.StopCaptured(t)
}

// place is the server's address for one of the ports.
func (w *world) place(port int) string {
	return netip.AddrPortFrom(w.Server.Addr4, uint16(port)).String()
}

func (w *world) place6(port int) string {
	return netip.AddrPortFrom(w.Server.Addr6, uint16(port)).String()
}

// connect starts n connects of Alice's to a port, half of them by IPv6, each of which
// has a text sent back: the marker, where that is to be tunneled.
func (w *world) connect(t *testing.T, n, port int, options ...string) *netns.Process {
	t.Helper()
	text := "not secret"
	if port == tunneled {
		text = w.marker
	}
	args := append([]string{w.Testprog, "connect", "-n", strconv.Itoa((n + 1) / 2), "-echo", text}, options...)
	return w.Client.Start(t, w.Cmd(w.Alice, append(args, w.place(port), w.place6(port))...))
}

// connected is one line of testprog connect -echo.
type connected struct {
	target, outcome string
	took            time.Duration
	echoed          string
}

func (c connected) ok() bool { return c.outcome == "ok" && c.echoed == "ok" }

// cut is what a program may see whose flow was in a process that was killed: a reset,
// never an end.
func (c connected) cut() bool {
	return c.outcome == "ECONNRESET" || c.outcome == "ok" && c.echoed == "ECONNRESET"
}

// parse reads what testprog says.
func parse(t *testing.T, out string) (list []connected) {
	t.Helper()
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) != 4 || !strings.Contains(f[0], ":") {
			t.Fatalf("testprog says %q", line)
		}
		ms, err := strconv.ParseFloat(f[2], 64)
		if err != nil {
			t.Fatalf("testprog says %q", line)
		}
		list = append(list, connected{f[0], f[1], time.Duration(ms * float64(time.Millisecond)), f[3]})
	}
	return list
}

// requireThrough fails the test unless all n got through. mayCut allows for resets of
// what was in a process that died. It returns how many were cut, and the slowest.
func requireThrough(t *testing.T, p *netns.Process, n int, mayCut bool) (cut int, slowest time.Duration) {
	t.Helper()
	return requireAllThrough(t, parse(t, p.Wait(t).Stdout), n, mayCut)
}

func requireAllThrough(t *testing.T, list []connected, n int, mayCut bool) (cut int, slowest time.Duration) {
	t.Helper()
	if len(list) != n {
		t.Errorf("%d connects, want %d", len(list), n)
	}
	bad := 0
	for _, c := range list {
		slowest = max(slowest, c.took)
		switch {
		case c.ok():
		case mayCut && c.cut():
			cut++
		default:
			if bad++; bad <= 10 {
				t.Errorf("%+v, want it to get through", c)
			}
		}
	}
	if bad > 10 {
		t.Errorf("and %d more", bad-10)
	}
	return cut, slowest
}

// requireWaits shows that new programs wait: connect() says nothing, and the wire has
// nothing. It is what testprog measures that says how long they did.
func (w *world) requireWaits(t *testing.T, port int) {
	t.Helper()
	list := parse(t, w.connect(t, 4, port, "-nonblock", "-timeout", "1500ms").Wait(t).Stdout)
	if len(list) != 4 {
		t.Errorf("%d connects, want 4", len(list))
	}
	for _, c := range list {
		if c.outcome != "ETIMEDOUT" {
			t.Errorf("%+v, want it to wait", c)
		}
	}
}

// requireWorks connects to a port.
func (w *world) requireWorks(t *testing.T, port int) {
	t.Helper()
	requireThrough(t, w.connect(t, 2, port), 2, false)
}

// requireClosed fails the test if any packet of the protected service crossed the wire.
func (w *world) requireClosed(t *testing.T, wire *netns.Wire) {
	t.Helper()
	if wire.Contains(t, []byte(w.marker)) {
		t.Error("what a tunneled flow said was on the wire in clear")
	}
	packets := wire.Packets(t, func(p netns.Packet) bool { return p.Dst.Port() == tunneled || p.Src.Port() == tunneled })
	for i, p := range packets {
		if t.Errorf("on the wire: %v > %v flags %v at %v", p.Src, p.Dst, p.Flags, p.Time); i == 4 {
			t.Errorf("and %d more", len(packets)-5)
			return
		}
	}
}

// requireOpen connects to the protected service and expects to see it in clear: the
// positive control of requireClosed.
func (w *world) requireOpen(t *testing.T) {
	t.Helper()
	wire := w.Client.Capture(t, "to-server")
	w.requireWorks(t, tunneled)
	if !wire.Contains(t, []byte(w.marker)) {
		t.Error("it is not in clear")
	}
}

// talk is a connection of Alice's that lives.
type talk struct {
	*netns.Process
	in   *os.File
	said int
	last string // word
}

// talkScript connects to $1 port $2, has a line sent back for each that it reads, and
// says when that fails.
const talkScript = `exec 3<>"/dev/tcp/$1/$2" && echo echo >&3 && echo open || exit
while read -r line; do
	echo "$line" >&3 && read -r back <&3 && echo "heard $back" || { echo lost; exit; }
done`

func (w *world) talk(t *testing.T, addr netip.Addr, port int) *talk {
	t.Helper()
	r, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	c := w.Cmd(w.Alice, "bash", "-c", talkScript, "bash", addr.String(), strconv.Itoa(port))
	c.Stdin, c.Limit = r, -1
	k := &talk{Process: w.Client.Start(t, c), in: in}
	r.Close()
	k.WaitFor(t, "open")
	k.requireLives(t)
	return k
}

func (k *talk) say(t *testing.T) (word string) {
	t.Helper()
	k.said++
	word = fmt.Sprintf("%s-%d.", rand.Text(), k.said)
	k.last = word
	if _, err := k.in.WriteString(word + "\n"); err != nil {
		t.Fatalf("%v: %v", k, err)
	}
	return word
}

// requireLives has something said on the connection and sent back.
func (k *talk) requireLives(t *testing.T) {
	t.Helper()
	k.WaitFor(t, "heard "+k.say(t))
}

// requireReset expects that the program was told that the connection broke.
func (k *talk) requireReset(t *testing.T) {
	t.Helper()
	k.say(t)
	k.WaitFor(t, "lost")
	if out := k.Wait(t); !strings.Contains(out.Stderr, "reset by peer") {
		t.Errorf("the connection ended without a reset: %v", out)
	}
}

func (k *talk) close(t *testing.T) {
	t.Helper()
	k.in.Close()
	k.Wait(t)
}

// lives are connections of every kind.
type lives struct{ tunnel, clear []*talk }

func (w *world) lives(t *testing.T) lives {
	t.Helper()
	return lives{
		tunnel: []*talk{w.talk(t, w.Server.Addr4, tunneled), w.talk(t, w.Server.Addr6, tunneled)},
		clear:  []*talk{w.talk(t, w.Server.Addr4, compiled), w.talk(t, w.Server.Addr6, compiled), w.talk(t, w.Server.Addr4, asked)},
	}
}

// require checks both kinds; those in clear live whatever happens.
func (l lives) require(t *testing.T, tunnel func(*talk, *testing.T)) {
	t.Helper()
	for _, k := range l.clear {
		k.requireLives(t)
	}
	for _, k := range l.tunnel {
		tunnel(k, t)
	}
}

func (l lives) close(t *testing.T) {
	t.Helper()
	for _, k := range append(l.clear, l.tunnel...) {
		k.close(t)
	}
}

// freeze stops the SSH server's connections, so that what connects waits, until thaw.
func (w *world) freeze(t *testing.T) (thaw func()) {
	t.Helper()
	w.requireWorks(t, tunneled) // there is a transport
	pids := w.sessions(t)
	if len(pids) == 0 {
		t.Fatal("sshd has no session to stop")
	}
	signal := func(s unix.Signal) {
		for _, pid := range pids {
			_ = unix.Kill(pid, s)
		}
	}
	signal(unix.SIGSTOP)
	t.Cleanup(func() { signal(unix.SIGCONT) })
	return func() { signal(unix.SIGCONT) }
}

// sessions are the processes of the SSH server's present connections.
func (w *world) sessions(t *testing.T) (pids []int) {
	t.Helper()
	parents := map[int]int{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat")); err == nil {
			// The name in brackets may hold anything.
			if f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])); len(f) > 1 {
				parents[pid], _ = strconv.Atoi(f[1])
			}
		}
	}
	for pid := range parents {
		for up := parents[pid]; up > 1; up = parents[up] {
			if up == w.SSHD.Pid() {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}

// awaitHeld waits until n SYNs of the whole host are undecided.
func (w *world) awaitHeld(t *testing.T, n int) {
	t.Helper()
	w.Await(t, fmt.Sprintf("%d held SYNs", n), func(st service.Status) bool {
		for _, c := range st.Captures {
			if c.ID == service.System {
				return c.Waiting == n
			}
		}
		return false
	})
}

// failpoint names a file whose removal kills a process at a state, and the environment
// that makes it so. arm puts the file there.
func (w *world) failpoint(t *testing.T, variable, state string) (env []string, arm, await func(t *testing.T)) {
	t.Helper()
	file := w.Service.Path("die-" + state)
	return []string{variable + "=" + state + "=" + file}, func(t *testing.T) {
			t.Helper()
			w.Service.Write(t, "die-"+state, "", 0o600)
		}, func(t *testing.T) {
			t.Helper()
			eventually(t, "a process that dies in state "+state, func() bool {
				_, err := os.Stat(file)
				return errors.Is(err, fs.ErrNotExist)
			})
		}
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

// retransmitted counts the SYNs that the client machine has sent more than once.
func (w *world) retransmitted(t *testing.T) int {
	t.Helper()
	out := w.Client.Output(t, nil, "cat", "/proc/net/netstat")
	var names []string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if f[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i, name := range names {
			if name == "TCPSynRetrans" {
				n, _ := strconv.Atoi(f[i])
				return n
			}
		}
	}
	t.Fatal("/proc/net/netstat has no TCPSynRetrans")
	return 0
}

func replaceLast(s, old, text string) string {
	i := strings.LastIndex(s, old)
	return s[:i] + text + s[i+len(old):]
}
