package connects

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture/origin"
)

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root, and CI=true allows no skip")
	}
	t.Skip("needs root")
}

// hierarchy is where cgroup2 is mounted.
func hierarchy(t testing.TB) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); strings.Contains(line, " - cgroup2 ") && f[3] == "/" {
			return f[4]
		}
	}
	t.Fatal("no cgroup2 hierarchy")
	return ""
}

// world is a cgroup with a tracker on it.
type world struct {
	dir     string
	cgroup  *os.File
	tracker *Tracker
	diag    *origin.Diag
	remote  map[string]netip.AddrPort // listeners on loopback, by network
}

func newWorld(t testing.TB) *world {
	t.Helper()
	requireRoot(t)
	dir, err := os.MkdirTemp(hierarchy(t), "connects-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeCgroup(t, dir) })
	w := &world{dir: dir, remote: map[string]netip.AddrPort{}}
	if w.cgroup, err = os.Open(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.cgroup.Close() })
	if w.tracker, err = Attach(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.tracker.Close(); err != nil {
			t.Error(err)
		}
	})
	if w.diag, err = origin.OpenDiag(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.diag.Close() })
	for network, address := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"} {
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		w.remote[network] = l.Addr().(*net.TCPAddr).AddrPort()
	}
	return w
}

// removeCgroup waits for the kernel to let go of processes that have ended.
func removeCgroup(t testing.TB, dir string) {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := os.Remove(dir)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Error(err)
			return
		}
	}
}

// process is a program in the world's cgroup.
type process struct {
	cmd   *exec.Cmd
	stdin io.Writer
	lines *json.Decoder
	end   func()
}

// start runs the test binary, under the name it is given, in a role. It ends when the
// test does, or by end.
func (w *world) start(t testing.TB, path, role string, files ...*os.File) *process {
	t.Helper()
	cmd := exec.Command(path)
	cmd.Env = append(os.Environ(), envRole+"="+role, envRemote4+"="+w.remote["tcp4"].String(), envRemote6+"="+w.remote["tcp6"].String())
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(w.cgroup.Fd())}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, stdin: stdin, lines: json.NewDecoder(bufio.NewReader(stdout))}
	p.end = sync.OnceFunc(func() {
		stdin.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(p.end)
	return p
}

// connected is what a child says of a connection: it does not wait with the answer,
// which may come before the handshake is over.
type connected struct {
	PID           int
	Local, Remote netip.AddrPort
	Err           string
}

func (p *process) next(t testing.TB) connected {
	t.Helper()
	var c connected
	if err := p.lines.Decode(&c); err != nil {
		t.Fatal(err)
	}
	if c.Err != "" {
		t.Fatal(c.Err)
	}
	return c
}

// expect asks who made a connection.
func (w *world) expect(t testing.TB, c connected, pid int, exe string) {
	t.Helper()
	sock, err := w.diag.Lookup(c.Local, c.Remote)
	if err != nil {
		t.Error(err)
		return
	}
	if o := w.tracker.Origin(sock); o.PID != pid || o.Exe != exe || !o.Known {
		t.Errorf("%v is of %+v, want process %d %s", c.Local, o, pid, exe)
	}
}

// programs makes names of the test binary.
func programs(t testing.TB, n int) []string {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	first := filepath.Join(dir, "program-0")
	if err := os.WriteFile(first, self, 0o755); err != nil {
		t.Fatal(err)
	}
	list := []string{first}
	for i := 1; i < n; i++ {
		name := filepath.Join(dir, fmt.Sprintf("program-%d", i))
		if err := os.Link(first, name); err != nil {
			t.Fatal(err)
		}
		list = append(list, name)
	}
	return list
}

func TestManyProcesses(t *testing.T) {
	w := newWorld(t)
	const processes, each = 25, connectsOfMany
	names := programs(t, processes)
	list := make([]*process, processes)
	for i, name := range names {
		list[i] = w.start(t, name, "many") // all connect at once
	}
	n := 0
	for i, p := range list {
		for range each {
			w.expect(t, p.next(t), p.cmd.Process.Pid, names[i])
			n++
		}
	}
	if n != 300 {
		t.Errorf("%d connections", n)
	}
}

func TestPassedSocket(t *testing.T) {
	w := newWorld(t)
	names := programs(t, 2)
	// One process makes a socket, its child connects it.
	p := w.start(t, names[0], "pass", os.Stdin) // any file: its place is taken by the child's socket
	c := p.next(t)
	if c.PID == p.cmd.Process.Pid {
		t.Fatal("the child did not answer")
	}
	w.expect(t, c, c.PID, names[0])
	// A process that merely holds what another connected is not named.
	second := w.start(t, names[1], "hold-passed")
	c = second.next(t)
	w.expect(t, c, second.cmd.Process.Pid, names[1])
}

func TestExecAfterConnect(t *testing.T) {
	w := newWorld(t)
	p := w.start(t, programs(t, 1)[0], "exec")
	c := p.next(t)
	cat, err := exec.LookPath("cat")
	if err == nil {
		cat, err = filepath.EvalSymlinks(cat)
	}
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.cmd.Process.Pid)); exe == cat {
			break
		}
	}
	w.expect(t, c, p.cmd.Process.Pid, cat)
}

func TestThread(t *testing.T) {
	w := newWorld(t)
	name := programs(t, 1)[0]
	p := w.start(t, name, "thread")
	c := p.next(t)
	sock, err := w.diag.Lookup(c.Local, c.Remote)
	if err != nil {
		t.Fatal(err)
	}
	if call, ok := w.tracker.find(sock.Cookie); !ok || uint32(call.PIDTGID) == uint32(call.PIDTGID>>32) {
		t.Errorf("connect was not called by another thread: %+v", call)
	}
	w.expect(t, c, p.cmd.Process.Pid, name)
}

// TestMPTCP shows that the first subflow of a multipath connection is found as well.
func TestMPTCP(t *testing.T) {
	w := newWorld(t)
	name := programs(t, 1)[0]
	p := w.start(t, name, "mptcp")
	var c connected
	if err := p.lines.Decode(&c); err != nil {
		t.Fatal(err)
	}
	if c.Err != "" {
		t.Skip("no MPTCP in this kernel: " + c.Err)
	}
	w.expect(t, c, p.cmd.Process.Pid, name)
}

func TestReplacedExecutable(t *testing.T) {
	w := newWorld(t)
	name := programs(t, 1)[0]
	p := w.start(t, name, "many")
	c := p.next(t)
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	w.expect(t, c, p.cmd.Process.Pid, name)
}

// TestUnknown has what must not be answered.
func TestUnknown(t *testing.T) {
	w := newWorld(t)
	self := os.Getpid()
	if o := w.tracker.Origin(origin.Socket{}); o.Known || o.Err != nil {
		t.Errorf("the zero socket is of %+v", o)
	}
	// Not in the cgroup.
	c, err := net.Dial("tcp4", w.remote["tcp4"].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sock, err := w.diag.Lookup(c.LocalAddr().(*net.TCPAddr).AddrPort(), w.remote["tcp4"])
	if err != nil {
		t.Fatal(err)
	}
	if o := w.tracker.Origin(sock); o.Known {
		t.Errorf("a socket of outside is of %+v", o)
	}
	// By a process that is younger than the call, or gone.
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	started, ok := startTime(stat)
	if !ok {
		t.Fatalf("no start time in %q", stat)
	}
	begin := started * uint64(tick)
	for _, c := range []struct {
		name  string
		call  call
		known bool
	}{
		{"now", call{PIDTGID: uint64(self) << 32, At: uint64(now.Nano())}, true},
		{"at its start", call{PIDTGID: uint64(self) << 32, At: begin}, true},
		{"before its start", call{PIDTGID: uint64(self) << 32, At: begin - 1}, false},
		{"of no process", call{PIDTGID: 1 << 62, At: uint64(now.Nano())}, false},
		{"of a thread of the kernel", call{PIDTGID: 2 << 32, At: uint64(now.Nano())}, false},
	} {
		cookie := uint64(1) << 63
		if err := w.tracker.calls.Put(&cookie, &c.call); err != nil {
			t.Fatal(err)
		}
		if o := w.tracker.Origin(origin.Socket{Cookie: cookie}); o.Known != c.known {
			t.Errorf("a call %s: %+v", c.name, o)
		}
	}
}

// TestReusedPID makes the kernel give the id of a dead process to a new one.
func TestReusedPID(t *testing.T) {
	w := newWorld(t)
	name := programs(t, 1)[0]
	for attempt := range 50 {
		// The socket outlives the process that connected it: we hold it too.
		file := socket(t, w)
		p := w.start(t, name, "connect-3", file)
		c := p.next(t)
		pid := p.cmd.Process.Pid
		w.expect(t, c, pid, name)
		p.end()
		sock, err := w.diag.Lookup(c.Local, c.Remote)
		if err != nil {
			t.Fatal(err)
		}
		if o := w.tracker.Origin(sock); o.Known {
			t.Errorf("of a dead process: %+v", o)
		}
		time.Sleep(2 * tick) // not for anybody: the clock is to move on
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			t.Skip(err)
		}
		next := exec.Command("cat")
		stdin, err := next.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := next.Start(); err != nil {
			t.Fatal(err)
		}
		same := next.Process.Pid == pid
		o := w.tracker.Origin(sock)
		stdin.Close()
		if err := next.Wait(); err != nil {
			t.Fatal(err)
		}
		if !same {
			continue // somebody else was faster
		}
		if call, ok := w.tracker.find(sock.Cookie); !ok || int(call.PIDTGID>>32) != pid {
			t.Errorf("the map has %+v, %t", call, ok)
		}
		if o.Known {
			t.Errorf("the new process %d is taken for the old one: %+v", pid, o)
		}
		t.Logf("the same id at attempt %d", attempt)
		return
	}
	t.Fatal("no process got the id of another")
}

// socket is made by a process in the cgroup, as it then belongs to that, and held here.
func socket(t *testing.T, w *world) *os.File {
	t.Helper()
	ours, theirs, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	p := w.start(t, "/proc/self/exe", "make-socket", theirs)
	theirs.Close()
	oob := make([]byte, unix.CmsgSpace(4))
	raw, err := ours.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var oobn int
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		_, oobn, _, _, rerr = unix.Recvmsg(int(fd), make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
		return rerr != unix.EAGAIN && rerr != unix.EINTR
	})
	if err := errors.Join(err, rerr); err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		t.Fatal(err, len(messages))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatal(err, len(fds))
	}
	p.end()
	f := os.NewFile(uintptr(fds[0]), "socket")
	t.Cleanup(func() { f.Close() })
	return f
}

func pair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "pair"), os.NewFile(uintptr(fds[1]), "pair"), nil
}

// TestGoneWithTheProcess shows that nothing stays in the kernel, nor in the cgroup.
func TestGoneWithTheProcess(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.dir, "below")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	t.Setenv(envCgroup, dir)
	p := w.start(t, "/proc/self/exe", "attach")
	p.next(t)
	if n := attached(t, dir); n != 2 {
		t.Errorf("%d programs while it lives", n)
	}
	p.end() // by SIGKILL
	// The kernel lets go of them after the process has been waited for.
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		n := attached(t, dir)
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d programs after its end", n)
		}
	}
}

// TestExactCapabilities attaches and looks with the four that ssh-captured has, at a
// process of another user.
func TestExactCapabilities(t *testing.T) {
	w := newWorld(t)
	t.Setenv(envCgroup, w.dir)
	p := w.start(t, "/proc/self/exe", "attach-reduced")
	p.next(t)
	name := programs(t, 1)[0]
	other := w.start(t, name, "user")
	if err := json.NewEncoder(p.stdin).Encode(other.next(t)); err != nil {
		t.Fatal(err)
	}
	var f found
	if err := p.lines.Decode(&f); err != nil {
		t.Fatal(err)
	}
	if want := (found{Known: true, PID: other.cmd.Process.Pid, Exe: name}); f != want {
		t.Errorf("%+v, want %+v", f, want)
	}
}

func TestAttachFails(t *testing.T) {
	if _, err := Attach(filepath.Join(t.TempDir(), "nothing")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if tr, err := Attach(t.TempDir()); err == nil {
		tr.Close()
		t.Error("attached to what is no cgroup")
	}
}

func FuzzStartTime(f *testing.F) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(stat), uint64(0))
	f.Add("a) S 1 2 3 (", uint64(7))
	f.Add(")))\n(", uint64(1)<<63)
	f.Fuzz(func(t *testing.T, name string, want uint64) {
		startTime([]byte(name)) // whatever it is
		// No name of a program makes another number of it.
		line := fmt.Sprintf("12 (%s) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 %d 20 21\n", name, want)
		if got, ok := startTime([]byte(line)); got != want || !ok {
			t.Errorf("%q: %d, %t, want %d", line, got, ok, want)
		}
	})
}

// BenchmarkOrigin compares both ways among 500 processes of 20 descriptors each.
func BenchmarkOrigin(b *testing.B) {
	w := newWorld(b)
	const others, descriptors = 499, 20
	null, err := os.Open(os.DevNull)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	files := make([]*os.File, descriptors-3)
	for i := range files {
		files[i] = null
	}
	pids := make([]int, 0, others+1)
	idle := func(n int) {
		for range n {
			cmd := exec.Command("sleep", "1000")
			cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = null, null, null, files
			cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(w.cgroup.Fd()), Pdeathsig: syscall.SIGKILL}
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
			pids = append(pids, cmd.Process.Pid)
		}
	}
	idle(others / 2)
	name := programs(b, 1)[0]
	p := w.start(b, name, "many")
	c := p.next(b)
	pids = append(pids, p.cmd.Process.Pid)
	idle(others - others/2)

	b.Run("bpf", func(b *testing.B) {
		var times []time.Duration
		for b.Loop() {
			start := time.Now()
			w.expect(b, c, p.cmd.Process.Pid, name)
			times = append(times, time.Since(start))
		}
		reportMedian(b, times)
	})
	b.Run("proc", func(b *testing.B) {
		var times []time.Duration
		for b.Loop() {
			start := time.Now()
			sock, err := w.diag.Lookup(c.Local, c.Remote)
			if err != nil {
				b.Fatal(err)
			}
			if o := origin.Holder(pids, sock.Inode); o.PID != p.cmd.Process.Pid {
				b.Fatalf("%+v", o)
			}
			times = append(times, time.Since(start))
		}
		reportMedian(b, times)
	})
}
