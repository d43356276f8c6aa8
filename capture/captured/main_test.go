package captured

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/keep"
	"sshbroker/capture/loglimit"
	"sshbroker/capture/message"
	"sshbroker/capture/service"
)

// role is what this executable is when it is started again.
const role = "CAPTURED_TEST_ROLE"

// place is where the private cgroup2 hierarchy of the tests is mounted.
const place = "CAPTURED_TEST_PLACE"

// Users of the tests; no account has to have them.
const (
	alice = 54321
	bob   = 54322
	admin = 54323 // is in the group of that number, which may set system-wide rules
)

// patience is for what is meant to happen.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "dialer":
		dialAll()
	case "server":
		serveRole()
	case "outer": // in a cgroup of its own, which is to be the root of all that follows
		os.Exit(again("inner", &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP}))
	case "inner":
		if err := settle(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Setenv(role, "settled")
		os.Exit(m.Run())
	case "settled": // one who fuzzes
		os.Exit(m.Run())
	default:
		if os.Geteuid() != 0 {
			os.Exit(m.Run()) // to say that it is skipped
		}
		os.Exit(isolate())
	}
}

// isolate runs the tests in a network namespace and below a cgroup of their own.
func isolate() int {
	const hierarchy = "/sys/fs/cgroup/unified"
	root := hierarchy
	if _, err := os.Stat(root); err != nil {
		root = "/sys/fs/cgroup"
	}
	mount, err := os.MkdirTemp("", "captured-cgroup-")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.Remove(mount)
	os.Setenv(place, mount)
	dir, err := os.MkdirTemp(root, "captured-test-")
	if err != nil {
		fmt.Println("no cgroup2 hierarchy:", err)
		return again("inner", &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS})
	}
	defer removeCgroup(dir)
	f, err := os.Open(dir)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer f.Close()
	return again("outer", &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())})
}

func removeCgroup(dir string) {
	_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		for _, pattern := range []string{"ssh-capture/*", "ssh-capture", ""} {
			list, _ := filepath.Glob(filepath.Join(dir, pattern))
			for _, path := range list {
				_ = unix.Rmdir(path)
			}
		}
		if _, err := os.Stat(dir); err != nil {
			return
		}
	}
	fmt.Println("left behind:", dir)
}

func again(as string, attr *syscall.SysProcAttr) int {
	signal.Ignore(os.Interrupt, syscall.SIGQUIT) // the child has them too
	attr.Pdeathsig = syscall.SIGKILL
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), role+"="+as)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = os.Stdin, os.Stdout, os.Stderr, attr
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		fmt.Println(err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

// settle mounts the hierarchy and brings the loopback up.
func settle() error {
	return errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("none", os.Getenv(place), "cgroup2", 0, ""),
		exec.Command("ip", "link", "set", "lo", "up").Run())
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// server is an ssh-captured, in this process or not.
type server struct {
	*Server
	opts    Options
	stop    func() error // once
	log     *logBuffer
	limited *loglimit.Handler
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newOptions(t testing.TB) Options {
	t.Helper()
	needRoot(t)
	dir, err := os.MkdirTemp("", "captured-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(filepath.Join(dir, "state"), 0o700)); err != nil {
		t.Fatal(err)
	}
	return Options{Socket: filepath.Join(dir, "socket"), StateDir: filepath.Join(dir, "state"), Admins: admin, Program: "test", NoBPF: true}
}

// start runs a server in this process, which the test's end stops.
func start(t testing.TB, o Options) *server {
	t.Helper()
	s, err := startErr(t, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func startErr(t testing.TB, o Options) (*server, error) {
	t.Helper()
	s := &server{opts: o, log: &logBuffer{}}
	s.limited = loglimit.New(slog.NewTextHandler(s.log, nil))
	o.Log, o.Suppressed = slog.New(s.limited), s.limited.Suppressed
	var err error
	if o.Keep == nil {
		if o.Keep, err = keep.Open(); err != nil {
			t.Fatal(err)
		}
	}
	if s.Server, err = New(o); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	s.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(patience):
			buf := make([]byte, 1<<20)
			t.Fatalf("the server does not end\n%s", buf[:runtime.Stack(buf, true)])
			return nil
		}
	})
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("server: %v", err)
		}
		if t.Failed() {
			t.Log(s.log)
		}
	})
	return s, nil
}

// conn is a connection that says what a test wants.
type conn struct {
	t        testing.TB
	conn     *message.Conn
	uid      int
	attempts chan *service.Message
	others   chan *service.Message // answers without a number
	over     chan struct{}

	mu    sync.Mutex
	seq   uint64
	calls map[uint64]chan reply
}

type reply struct {
	*service.Message
	files []*os.File
}

// as runs f on a thread that has those credentials.
func as(t testing.TB, uid int, groups []int, f func() error) {
	t.Helper()
	err := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		list := make([]uint32, len(groups)+1)
		for i, g := range groups {
			list[i] = uint32(g)
		}
		_, _, errno := syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(addressOf(list)), 0)
		if errno == 0 && uid != 0 {
			_, _, errno = syscall.RawSyscall(unix.SYS_SETRESGID, uintptr(uid), uintptr(uid), uintptr(uid))
		}
		if errno == 0 {
			_, _, errno = syscall.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
		}
		if errno != 0 {
			err <- errno
			return
		}
		err <- f()
	}()
	if err := <-err; err != nil {
		t.Fatal(err)
	}
}

// dial connects as uid, without a hello.
func (s *server) dial(t testing.TB, uid int, groups ...int) *conn {
	t.Helper()
	fd := -1
	as(t, uid, groups, func() (err error) {
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		for {
			if err = unix.Connect(fd, &unix.SockaddrUnix{Name: s.opts.Socket}); err != unix.EAGAIN {
				return err
			}
			time.Sleep(time.Millisecond) // its backlog has no event
		}
	})
	m, err := message.New(os.NewFile(uintptr(fd), "client"))
	if err != nil {
		t.Fatal(err)
	}
	c := &conn{t: t, conn: m, uid: uid, attempts: make(chan *service.Message, 10000), others: make(chan *service.Message, 100),
		over: make(chan struct{}), calls: map[uint64]chan reply{}}
	t.Cleanup(func() { m.Close() })
	return c
}

// client connects as uid and says hello.
func (s *server) client(t testing.TB, uid int, groups ...int) *conn {
	t.Helper()
	c := s.dial(t, uid, groups...)
	c.send(service.Message{Op: service.OpHello, Hello: &service.Hello{Version: service.Version, Program: "test"}})
	var m service.Message
	if _, err := c.conn.Receive(&m); err != nil || m.Op != service.OpHello || m.Error != nil {
		t.Fatalf("hello: %+v, %v", m, err)
	}
	go c.read()
	return c
}

func (c *conn) read() {
	defer close(c.over)
	for {
		m := new(service.Message)
		files, err := c.conn.Receive(m)
		if err != nil {
			message.CloseAll(files)
			c.mu.Lock()
			for _, ch := range c.calls {
				close(ch)
			}
			c.calls = nil
			c.mu.Unlock()
			return
		}
		c.mu.Lock()
		ch := c.calls[m.Seq]
		delete(c.calls, m.Seq)
		c.mu.Unlock()
		switch {
		case m.Op == service.OpAttempt:
			c.attempts <- m
		case ch != nil:
			ch <- reply{m, files}
		default:
			message.CloseAll(files)
			c.others <- m
		}
	}
}

func (c *conn) send(m service.Message, files ...*os.File) {
	c.t.Helper()
	if err := c.conn.Send(m, files...); err != nil {
		c.t.Errorf("send %s: %v", m.Op, err)
	}
}

// ask sends a request; its answer comes from the channel, which is closed without one.
func (c *conn) ask(m service.Message, files ...*os.File) <-chan reply {
	c.t.Helper()
	ch := make(chan reply, 1)
	c.mu.Lock()
	c.seq++
	m.Seq = c.seq
	if c.calls == nil {
		close(ch)
	} else {
		c.calls[m.Seq] = ch
	}
	c.mu.Unlock()
	c.send(m, files...)
	return ch
}

func await[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v, ok := <-ch:
		if !ok {
			t.Fatalf("%s: the connection has ended", what)
		}
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
	}
	panic("unreachable")
}

// must asks and wants no error.
func (c *conn) must(m service.Message, files ...*os.File) reply {
	c.t.Helper()
	r := await(c.t, string(m.Op), c.ask(m, files...))
	if r.Error != nil {
		c.t.Fatalf("%s as %d: %s: %v", m.Op, c.uid, r.Error.Code, r.Error)
	}
	return r
}

// fails asks and wants an error of that code.
func (c *conn) fails(code service.Code, m service.Message, files ...*os.File) {
	c.t.Helper()
	r := await(c.t, string(m.Op), c.ask(m, files...))
	message.CloseAll(r.files)
	if r.Error == nil || r.Error.Code != code {
		c.t.Errorf("%s as %d: %v, want %s", m.Op, c.uid, r.Error, code)
	}
}

func (c *conn) close() {
	c.conn.Close()
	<-c.over
}

// ended waits until the server has ended the connection.
func (c *conn) ended() {
	c.t.Helper()
	select {
	case <-c.over:
	case <-time.After(patience):
		c.t.Fatal("the connection lives")
	}
}

func (c *conn) attempt() *service.Message {
	c.t.Helper()
	return await(c.t, "an attempt", c.attempts)
}

// judge are rules that ask about everything, to the host's own addresses as well.
func judge() *capture.Spec { return &capture.Spec{Local: true} }

func (c *conn) serve(id string, spec *capture.Spec) reply {
	c.t.Helper()
	r := c.must(service.Message{Op: service.OpServe, Capture: id, Spec: spec})
	message.CloseAll(r.files)
	return r
}

func (c *conn) refuse(m *service.Message, r capture.Refusal) {
	c.t.Helper()
	c.send(service.Message{Op: service.OpRefuse, ID: m.ID, Refusal: r})
}

func (c *conn) pass(m *service.Message) {
	c.t.Helper()
	c.send(service.Message{Op: service.OpPass, ID: m.ID})
}

// admit has an attempt admitted and greets its program.
func (c *conn) admit(m *service.Message, word string) {
	c.t.Helper()
	c.greet(c.must(service.Message{Op: service.OpAdmit, ID: m.ID}), word)
}

func (c *conn) greet(r reply, word string) {
	c.t.Helper()
	if len(r.files) != 1 {
		c.t.Fatalf("%d descriptors with an admitted connection", len(r.files))
	}
	nc, err := net.FileConn(r.files[0])
	message.CloseAll(r.files)
	if err != nil {
		c.t.Fatal(err)
	}
	fmt.Fprint(nc, word)
	_ = nc.(*net.TCPConn).SetLinger(-1)
	nc.Close()
}

// program is a process of a user's that connects as it is told.
type program struct {
	t     testing.TB
	cmd   *exec.Cmd
	pidfd *os.File
	in    io.WriteCloser

	mu    sync.Mutex
	next  int
	calls map[string]chan string
}

func start1(t testing.TB, uid int) *program {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), role+"=dialer", "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0) // not cmd's own: who gets one makes it non-blocking for everybody
	if err != nil {
		t.Fatal(err)
	}
	p := &program{t: t, cmd: cmd, pidfd: os.NewFile(uintptr(fd), "pidfd"), in: in, calls: map[string]chan string{}}
	t.Cleanup(p.kill)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			id, how, _ := strings.Cut(lines.Text(), " ")
			p.mu.Lock()
			p.calls[id] <- how
			delete(p.calls, id)
			p.mu.Unlock()
		}
	}()
	return p
}

func (p *program) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// connect begins to connect, and says how that went.
func (p *program) connect(addr string, limit time.Duration) <-chan string {
	p.t.Helper()
	ch := make(chan string, 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next++
	id := fmt.Sprint(p.next)
	p.calls[id] = ch
	fmt.Fprintln(p.in, id, addr, limit.Milliseconds())
	return ch
}

func (p *program) dial(addr string) <-chan string { return p.connect(addr, patience) }

func expect(t testing.TB, how <-chan string, want string) {
	t.Helper()
	select {
	case got := <-how:
		if got != want {
			t.Errorf("the program: %s, want %s", got, want)
		}
	case <-time.After(patience + 5*time.Second):
		t.Errorf("the program hangs; want %s", want)
	}
}

// dialAll is the program: each line "ID ADDRESS MILLISECONDS" is answered with how it went.
func dialAll() {
	var mu sync.Mutex
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		f := strings.Fields(in.Text())
		go func() {
			limit, _ := time.ParseDuration(f[2] + "ms")
			how := dialOne(f[1], limit)
			mu.Lock()
			defer mu.Unlock()
			fmt.Println(f[0], how)
		}()
	}
}

func dialOne(addr string, limit time.Duration) string {
	c, err := net.DialTimeout("tcp", addr, limit)
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(limit))
		var b []byte
		if b, err = io.ReadAll(c); err == nil {
			return string(b)
		}
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	if timeout := (net.Error)(nil); errors.As(err, &timeout) && timeout.Timeout() {
		return "timeout"
	}
	return err.Error()
}

// listen answers everybody with "direct".
func listenDirect(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "direct")
			c.Close()
		}
	}()
	return l.Addr().String()
}

var made int

// capture makes a capture of uid's that c has made, with a program in it.
func (c *conn) capture(t testing.TB, uid int) (id string, p *program) {
	t.Helper()
	made++
	id = fmt.Sprintf("test%d", made)
	c.must(service.Message{Op: service.OpMake, Capture: id})
	p = start1(t, uid)
	c.must(service.Message{Op: service.OpEnter, Capture: id}, p.pidfd)
	return id, p
}

func poll(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (s *server) status(t testing.TB) *service.Status {
	t.Helper()
	c := s.client(t, 0)
	defer c.close()
	return c.must(service.Message{Op: service.OpStatus}).Status
}

// serveRole is a server of its own process, which its keeper starts again.
func serveRole() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	k, err := keep.Open()
	if err != nil {
		panic(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if k.Kind() == keep.None {
		os.Exit(keep.Supervise(ctx, os.Args, os.Environ(), log))
	}
	var o Options
	if err := json.Unmarshal([]byte(os.Getenv("CAPTURED_TEST_OPTIONS")), &o); err != nil {
		panic(err)
	}
	o.Keep, o.Log = k, log
	s, err := New(o)
	if err == nil {
		err = s.Run(ctx)
	}
	if err != nil {
		log.Error("server", "error", err)
		os.Exit(1)
	}
	os.Exit(0)
}
