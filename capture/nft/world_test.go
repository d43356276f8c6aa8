package nft

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/queue"
)

// dialEnv makes the test binary a program that connects as it is told on its input.
const dialEnv = "NFT_TEST_DIAL"

func TestMain(m *testing.M) {
	if os.Getenv(dialEnv) != "" {
		dialAll()
		return
	}
	os.Exit(m.Run())
}

// patience is for what is meant to be answered.
const patience = 10 * time.Second

// dialAll answers each line "UID NETWORK ADDRESS MILLISECONDS" with one about how it
// went. A network like "udp4/5000" has the local port in it.
func dialAll() {
	runtime.LockOSThread()
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		f := strings.Fields(in.Text())
		uid, _ := strconv.Atoi(f[0])
		_ = unix.Setfsuid(uid) // of this thread: the owner of the sockets it makes
		limit, _ := time.ParseDuration(f[3] + "ms")
		fmt.Println(dialOne(f[1], f[2], limit))
	}
}

func dialOne(network, addr string, limit time.Duration) string {
	d := net.Dialer{Timeout: limit}
	network, from, local := strings.Cut(network, "/")
	if local {
		port, _ := strconv.Atoi(from)
		d.LocalAddr = &net.UDPAddr{Port: port}
	}
	d.SetMultipathTCP(network == "mptcp")
	c, err := d.Dial(strings.TrimPrefix(network, "mp"), addr)
	if err != nil {
		return outcomeOf(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	if _, err := c.Write([]byte("x")); err != nil {
		return outcomeOf(err)
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil {
		return outcomeOf(err)
	}
	return string(b[:n])
}

func outcomeOf(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	if timeout := (net.Error)(nil); errors.As(err, &timeout) && timeout.Timeout() {
		return "timeout"
	}
	return err.Error()
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// namespace is a network namespace, which one thread of the test process holds.
type namespace struct {
	work chan func()
	tid  int
}

func newNamespace(t *testing.T) *namespace {
	t.Helper()
	needRoot(t)
	n := &namespace{work: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		n.tid = unix.Gettid()
		ready <- unix.Unshare(unix.CLONE_NEWNET)
		for f := range n.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(n.work) })
	return n
}

// do runs f in the namespace.
func (n *namespace) do(f func()) {
	done := make(chan struct{})
	n.work <- func() { defer close(done); f() }
	<-done
}

func (n *namespace) run(t *testing.T, stdin string, args ...string) (out string, err error) {
	t.Helper()
	n.do(func() {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdin = strings.NewReader(stdin)
		var b []byte
		b, err = cmd.CombinedOutput()
		out = string(b)
	})
	return out, err
}

func (n *namespace) must(t *testing.T, script string) {
	t.Helper()
	for line := range strings.Lines(script) {
		if f := strings.Fields(line); len(f) > 0 {
			if out, err := n.run(t, "", f...); err != nil {
				t.Fatalf("%s: %v: %s", line, err, out)
			}
		}
	}
}

func (n *namespace) nft(t *testing.T, script string) {
	t.Helper()
	if out, err := n.run(t, script, "nft", "-f", "-"); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
}

// world is a host and a peer, which answers at every address there is.
type world struct {
	*namespace
	peer *namespace
	form QueueForm
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{namespace: newNamespace(t), peer: newNamespace(t)}
	w.do(func() { w.form = ProbeQueue() })
	if w.form == NoQueue {
		t.Skip("the kernel has no packet queue")
	}
	w.must(t, fmt.Sprintf(`
		ip link set lo up
		ip link add v0 type veth peer name v1
		ip link set v1 netns /proc/%d/task/%d/ns/net
		ip addr add 10.9.0.1/24 dev v0
		ip addr add fd09::1/64 dev v0 nodad
		ip link set v0 up
	`, os.Getpid(), w.peer.tid))
	w.peer.must(t, `
		ip link set lo up
		ip addr add 10.9.0.2/24 dev v1
		ip addr add fd09::2/64 dev v1 nodad
		ip link set v1 up
		ip route add local default dev lo table main
		ip -6 route add local default dev lo table main
	`)
	w.must(t, `
		ip route add default via 10.9.0.2
		ip -6 route add default via fd09::2 dev v0
	`)
	w.peer.answer(t, "tcp4", "0.0.0.0:80", "peer")
	w.peer.answer(t, "tcp6", "[::]:80", "peer")
	w.peer.answer(t, "tcp4", "0.0.0.0:443", "peer")
	w.peer.answer(t, "tcp4", "0.0.0.0:53", "peer")
	w.peer.answer(t, "udp4", "0.0.0.0:53", "peer")
	w.peer.answer(t, "udp4", "0.0.0.0:443", "peer")
	for _, addr := range []string{"10.9.0.2:80", "[fd09::2]:80", "203.0.113.1:80", "[2001:db8::1]:80"} {
		w.connect(t, 0, addr)
	}
	return w
}

// answer says who to whoever connects and sends something, or sends a datagram, for as
// long as that goes on. It returns the port.
func (n *namespace) answer(t *testing.T, network, addr, who string) uint16 {
	t.Helper()
	return n.answerMarked(t, network, addr, who, 0)
}

// marking makes sockets with a mark.
func marking(mark uint32) *net.ListenConfig {
	return &net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark)) })
		return errors.Join(cerr, err)
	}}
}

func (n *namespace) answerMarked(t *testing.T, network, addr, who string, mark uint32) uint16 {
	t.Helper()
	var l net.Listener
	var p net.PacketConn
	var err error
	c := marking(mark)
	n.do(func() {
		if strings.HasPrefix(network, "udp") {
			p, err = c.ListenPacket(t.Context(), network, addr)
		} else {
			l, err = c.Listen(t.Context(), network, addr)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if p != nil {
		t.Cleanup(func() { p.Close() })
		go func() {
			b := make([]byte, 100)
			for {
				_, from, err := p.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = p.WriteTo([]byte(who), from)
			}
		}()
		return netip.MustParseAddrPort(p.LocalAddr().String()).Port()
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for b := make([]byte, 100); err == nil; {
					if _, err = c.Read(b); err == nil {
						_, err = c.Write([]byte(who))
					}
				}
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String()).Port()
}

// both answers at the same port of 127.0.0.1 and ::1, as ssh-captured's sockets.
func (n *namespace) both(t *testing.T, network, who string) uint16 {
	t.Helper()
	port := n.answerMarked(t, network+"4", "127.0.0.1:0", who, capture.MarkServer)
	n.answerMarked(t, network+"6", fmt.Sprintf("[::1]:%d", port), who, capture.MarkServer)
	return port
}

// open makes a Table in the namespace.
func (n *namespace) open(t *testing.T, o Ownership) *Table {
	t.Helper()
	var table *Table
	var err error
	n.do(func() { table, err = NewTable(o) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	return table
}

// seen are the SYNs that a queue got.
type seen struct {
	mu    sync.Mutex
	dsts  []string
	again chan queue.SYN
}

func (s *seen) list() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.dsts, " ")
}

// serve gives every SYN of a queue the class that decide says; 0 keeps it held.
func (n *namespace) serve(t *testing.T, number uint16, decide func(queue.SYN) (class uint32)) (*queue.Queue, *seen) {
	t.Helper()
	var q *queue.Queue
	var err error
	n.do(func() { q, err = queue.OpenSocket(4 << 20) })
	if err != nil {
		t.Fatal(err)
	}
	s := &seen{again: make(chan queue.SYN, 1000)}
	t.Cleanup(func() { q.Close() })
	go func() {
		for {
			err := q.Receive(func(p queue.Packet) {
				syn, ok := queue.ParseSYN(p.Payload)
				if !ok {
					t.Errorf("queue %d: no SYN: %x", number, p.Payload)
				}
				class := decide(syn)
				s.mu.Lock()
				s.dsts = append(s.dsts, syn.Dst.String())
				s.mu.Unlock()
				select {
				case s.again <- syn:
				default:
				}
				if class != 0 {
					_ = q.Verdict(number, p.ID, queue.Accept, p.Mark|class)
				}
			})
			if err != nil {
				return
			}
		}
	}()
	if err := q.Bind(number, 8192); err != nil {
		t.Fatal(err)
	}
	return q, s
}

// dialer is a process that connects, in the namespace and maybe a cgroup of its own.
type dialer struct {
	in  io.Writer
	out *bufio.Scanner
	mu  sync.Mutex
}

func (n *namespace) dialer(t *testing.T, cgroup string) *dialer {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), dialEnv+"=1")
	cmd.Stderr = os.Stderr
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	var err error
	if cgroup != "" {
		dir, oerr := os.Open(cgroup)
		if oerr != nil {
			t.Fatal(oerr)
		}
		defer dir.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	}
	n.do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return &dialer{in: in, out: bufio.NewScanner(out)}
}

func (d *dialer) dial(t *testing.T, uid int, network, addr string, limit time.Duration) string {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintln(d.in, uid, network, addr, limit.Milliseconds())
	if !d.out.Scan() {
		return "the dialer ended"
	}
	return d.out.Text()
}

// expect connects and compares how it went.
func (d *dialer) expect(t *testing.T, uid int, network, addr, want string) {
	t.Helper()
	if got := d.dial(t, uid, network, addr, patience); got != want {
		t.Errorf("uid %d, %s %s: %s, want %s", uid, network, addr, got, want)
	}
}

const hierarchy = "/sys/fs/cgroup/unified"

// cgroup makes a leaf, below parent or the root, and returns its id.
func cgroup(t *testing.T, parent string) (dir string, id uint64) {
	t.Helper()
	if parent == "" {
		parent = hierarchy
	}
	dir, err := os.MkdirTemp(parent, "nft-test-")
	if err != nil {
		t.Skipf("no cgroup2 hierarchy: %v", err)
	}
	t.Cleanup(func() {
		poll(t, "the cgroup to be empty", func() bool { return os.Remove(dir) == nil })
	})
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	return dir, st.Ino
}

func level(dir string) uint32 {
	rel, _ := filepath.Rel(hierarchy, dir)
	return uint32(strings.Count(rel, "/") + 1)
}

// poll waits for what has no event.
func poll(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
