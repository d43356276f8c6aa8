package keep

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const within = 10 * time.Second

var quiet = slog.New(slog.DiscardHandler)

// stage is where workers report.
type stage struct {
	dir      string
	listener *net.UnixListener
}

func newStage(t *testing.T) *stage {
	t.Helper()
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "stage"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &stage{dir: dir, listener: l}
}

// actor is a worker that has come on.
type actor struct {
	hello
	conn *net.UnixConn
	in   *json.Decoder
}

// next waits for the next worker.
func (s *stage) next(t *testing.T) *actor {
	t.Helper()
	_ = s.listener.SetDeadline(time.Now().Add(within))
	c, err := s.listener.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(within))
	a := &actor{conn: c, in: json.NewDecoder(c)}
	if err := a.in.Decode(&a.hello); err != nil {
		t.Fatal(err)
	}
	if len(a.Env) != 0 {
		t.Errorf("the environment still has %q", a.Env)
	}
	return a
}

func (a *actor) hear(t *testing.T) string {
	t.Helper()
	var r reply
	if err := a.in.Decode(&r); err != nil {
		t.Fatal(err)
	}
	if r.Err != "" {
		t.Fatal(r.Err)
	}
	return r.Text
}

func (a *actor) tell(t *testing.T, o order) {
	t.Helper()
	if err := json.NewEncoder(a.conn).Encode(o); err != nil {
		t.Fatal(err)
	}
}

func (a *actor) do(t *testing.T, op, name string) string {
	t.Helper()
	a.tell(t, order{Op: op, Name: name})
	return a.hear(t)
}

func (a *actor) kill(t *testing.T) {
	t.Helper()
	if err := unix.Kill(a.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// keeper is a supervising process.
type keeper struct {
	cmd *exec.Cmd
	log *bytes.Buffer
	end func() int // waits, at most within, and returns its code; 128 and more for a signal
}

func (s *stage) keeper(t *testing.T, env ...string) *keeper {
	t.Helper()
	k := &keeper{cmd: exec.Command("/proc/self/exe"), log: &bytes.Buffer{}}
	k.cmd.Env = append(append(os.Environ(), envRole+"=keeper", envSocket+"="+s.listener.Addr().String()), env...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	k.cmd.Stderr = w
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	logged := make(chan struct{})
	go func() { // it ends with the last worker, not with the keeper
		_, _ = io.Copy(k.log, r)
		r.Close()
		close(logged)
	}()
	k.end = sync.OnceValue(func() int {
		late := time.AfterFunc(within, func() { _ = k.cmd.Process.Kill() })
		defer late.Stop()
		_ = k.cmd.Wait()
		status := k.cmd.ProcessState.Sys().(syscall.WaitStatus)
		if status.Signaled() {
			return 128 + int(status.Signal())
		}
		return status.ExitStatus()
	})
	t.Cleanup(func() {
		_ = k.cmd.Process.Signal(unix.SIGTERM)
		k.end()
		s.listener.Close()
		<-logged // no worker is left
		if t.Failed() {
			t.Logf("keeper:\n%s", k.log)
		}
	})
	return k
}

// await waits until the keeper has both ends of a pipe, or none, and so many descriptors
// in all, which it returns; -1 stands for any number.
func (k *keeper) await(t *testing.T, pipe string, ends, all int) int {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", k.cmd.Process.Pid)
	for deadline := time.Now().Add(within); ; time.Sleep(time.Millisecond) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var links []string
		n := 0
		for _, entry := range entries {
			link, _ := os.Readlink(filepath.Join(dir, entry.Name()))
			if links = append(links, link); link == pipe {
				n++
			}
		}
		if n == ends && (all == -1 || len(links) == all) {
			return len(links)
		}
		if time.Now().After(deadline) {
			t.Fatalf("the keeper has %d ends of %s and %d descriptors, want %d and %d: %q", n, pipe, len(links), ends, all, links)
		}
	}
}

// checkKept has what a worker finds: a pipe with both ends and a listener with a connection.
func checkKept(t *testing.T, a *actor) {
	t.Helper()
	if !slices.Equal(a.Names, []string{"listener", "pipe"}) {
		t.Fatalf("inherited %q", a.Names)
	}
	if got, want := a.do(t, "look", "pipe"), "readable=1 nonblocking=true cloexec=true; readable=0 nonblocking=true cloexec=true"; got != want {
		t.Errorf("pipe: %s, want %s", got, want)
	}
	if got, want := a.do(t, "look", "listener"), "readable=1 nonblocking=true cloexec=true"; got != want {
		t.Errorf("listener: %s, want %s", got, want)
	}
}

// setUp has a first worker store a listener and a pipe, and connects to the former. It
// names the pipe.
func setUp(t *testing.T, a *actor) (c net.Conn, pipe string) {
	t.Helper()
	addr := a.do(t, "listen", "listener")
	pipe = a.do(t, "pipe", "pipe")
	a.do(t, "ready", "")
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, pipe
}

func takeUp(t *testing.T, a *actor, c net.Conn) {
	t.Helper()
	a.do(t, "accept", "listener")
	_ = c.SetDeadline(time.Now().Add(within))
	if b, err := io.ReadAll(c); string(b) != "at last" || err != nil {
		t.Errorf("the pending connection got %q, %v", b, err)
	}
}

func TestParentKeepsThroughKills(t *testing.T) {
	s := newStage(t)
	var env []string
	if os.Geteuid() == 0 {
		env = []string{envReduce + "=1"} // with ssh-captured's capabilities
	}
	k := s.keeper(t, env...)
	a := s.next(t)
	if a.Kind != Parent || len(a.Names) != 0 {
		t.Fatalf("kept by %q, inherited %q", a.Kind, a.Names)
	}
	c, pipe := setUp(t, a)
	before := k.await(t, pipe, 2, -1)
	for range 20 {
		a.kill(t)
		a = s.next(t)
		checkKept(t, a)
		a.do(t, "ready", "")
		k.await(t, pipe, 2, before)
	}
	takeUp(t, a, c)
	a.tell(t, order{Op: "exit"})
	if code := k.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestParentRemoves(t *testing.T) {
	s := newStage(t)
	k := s.keeper(t)
	a := s.next(t)
	a.do(t, "ready", "")
	pipe := a.do(t, "pipe", "one")
	empty := k.await(t, pipe, 2, -1) - 2
	a.do(t, "pipe", "two")
	a.do(t, "remove", "one")
	a.do(t, "remove", "never stored")
	a.kill(t)
	a = s.next(t)
	if !slices.Equal(a.Names, []string{"two"}) {
		t.Errorf("inherited %q", a.Names)
	}
	a.do(t, "remove", "two") // which it inherited
	a.kill(t)
	if a = s.next(t); len(a.Names) != 0 {
		t.Errorf("inherited %q", a.Names)
	}
	k.await(t, pipe, 0, empty)
}

// TestStoredLast shows that what was stored counts, however soon the worker dies.
func TestStoredLast(t *testing.T) {
	s := newStage(t)
	s.keeper(t)
	for i := range 10 {
		a := s.next(t)
		if len(a.Names) != i {
			t.Fatalf("start %d inherited %q", i, a.Names)
		}
		a.tell(t, order{Op: "store-and-die", Name: fmt.Sprint("file-", i)})
	}
}

func TestParentIsFull(t *testing.T) {
	s := newStage(t)
	s.keeper(t)
	a := s.next(t)
	a.do(t, "ready", "")
	name := strings.Repeat("n", 40)
	if n := a.do(t, "many", name); n != fmt.Sprint(Max) {
		t.Errorf("%s were stored, %d is most", n, Max)
	}
	a.do(t, "remove", name)
	other := strings.Repeat("o", 40)
	if n := a.do(t, "many", other); n != fmt.Sprint(Max) {
		t.Errorf("%s were stored once there was room again", n)
	}
	a.kill(t)
	a = s.next(t) // the kernel takes so many names
	if !slices.Equal(a.Names, []string{other}) {
		t.Errorf("inherited %q", a.Names)
	}
}

func TestParentEnds(t *testing.T) {
	t.Run("with a worker that fails at its first start", func(t *testing.T) {
		s := newStage(t)
		if code := s.keeper(t, envFail+"=7").end(); code != 7 {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("not with one that is killed there", func(t *testing.T) {
		s := newStage(t)
		k := s.keeper(t, envFail+"=kill")
		s.next(t).tell(t, order{Op: "exit"})
		if code := k.end(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("not with one that fails later", func(t *testing.T) {
		s := newStage(t)
		k := s.keeper(t)
		a := s.next(t)
		a.do(t, "ready", "")
		a.tell(t, order{Op: "exit", Code: 3})
		s.next(t).tell(t, order{Op: "exit", Code: 4}) // it was not ready, but one has been
		s.next(t).tell(t, order{Op: "exit"})
		if code := k.end(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGINT} {
		t.Run("after "+sig.String(), func(t *testing.T) {
			s := newStage(t)
			k := s.keeper(t)
			a := s.next(t)
			a.do(t, "ready", "")
			if err := k.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if got := a.hear(t); got != unix.SIGTERM.String() {
				t.Errorf("the worker got %q", got)
			}
			if code := k.end(); code != 0 {
				t.Errorf("exit code %d", code)
			}
		})
	}
	t.Run("with its context, and the program is looked for", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if code := Supervise(ctx, []string{"sleep", "1000"}, os.Environ(), quiet); code != 128+int(unix.SIGTERM) {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("with a program that is not there", func(t *testing.T) {
		if code := Supervise(t.Context(), []string{filepath.Join(t.TempDir(), "none")}, nil, quiet); code != 126 {
			t.Errorf("exit code %d", code)
		}
	})
}

func TestWorkerOutlivesParent(t *testing.T) {
	s := newStage(t)
	k := s.keeper(t)
	a := s.next(t)
	c, _ := setUp(t, a)
	if err := k.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	k.end()
	if kind := a.do(t, "kind", ""); kind != None {
		t.Errorf("kept by %q", kind)
	}
	a.do(t, "pipe", "another") // is no error
	a.do(t, "remove", "pipe")
	takeUp(t, a, c)
	a.tell(t, order{Op: "exit"})
}

func TestPause(t *testing.T) {
	p := pause{first: 10 * time.Millisecond, most: 2 * time.Second, reset: 10 * time.Second}
	var got []time.Duration
	for range 10 {
		got = append(got, p.after(time.Second)/time.Millisecond)
	}
	got = append(got, p.after(10*time.Second)/time.Millisecond, p.after(0)/time.Millisecond)
	if want := []time.Duration{10, 20, 40, 80, 160, 320, 640, 1280, 2000, 2000, 10, 20}; !slices.Equal(got, want) {
		t.Errorf("%d, want %d ms", got, want)
	}
}

// manager is a service manager, as far as this package goes.
type manager struct {
	conn  *net.UnixConn
	addr  string
	kept  []kept // in the order of sd's store, the last first
	words []string
}

func newManager(t *testing.T, addr string) *manager {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: addr, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{conn: c, addr: addr}
	t.Cleanup(func() {
		c.Close()
		for _, k := range m.kept {
			unix.Close(k.fd)
		}
	})
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	if err := errors.Join(cerr, err); err != nil {
		t.Fatal(err)
	}
	return m
}

// start starts a worker as the main process of a unit.
func (m *manager) start(t *testing.T, s *stage) *actor {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	var names []string
	for _, k := range m.kept {
		fd, err := unix.FcntlInt(uintptr(k.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), k.name)
		defer f.Close()
		cmd.ExtraFiles, names = append(cmd.ExtraFiles, f), append(names, k.name)
	}
	cmd.Env = append(os.Environ(), envRole+"=manager", envSocket+"="+s.listener.Addr().String(), "NOTIFY_SOCKET="+m.addr,
		fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, k := range m.kept { // os/exec has made them blocking
		if err := unix.SetNonblock(k.fd, true); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return s.next(t)
}

// obey reads n messages, which have to come from that process.
func (m *manager) obey(t *testing.T, n, pid int) {
	t.Helper()
	for range n {
		_ = m.conn.SetReadDeadline(time.Now().Add(within))
		text, oob := make([]byte, 4096), make([]byte, 256)
		n, oobn, _, _, err := m.conn.ReadMsgUnix(text, oob)
		if err != nil {
			t.Fatal(err)
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			t.Fatal(err)
		}
		word := string(text[:n])
		m.words = append(m.words, word)
		_, name, _ := strings.Cut(word, "FDNAME=")
		name, _, _ = strings.Cut(name, "\n")
		for _, message := range messages {
			if cred, err := unix.ParseUnixCredentials(&message); err == nil && int(cred.Pid) != pid {
				t.Errorf("%q is from %d, not from the main process %d", word, cred.Pid, pid)
			}
			fds, err := unix.ParseUnixRights(&message)
			if err != nil {
				continue
			}
			for _, fd := range fds {
				m.kept = append([]kept{{name, fd}}, m.kept...)
			}
		}
		if strings.HasPrefix(word, "FDSTOREREMOVE=1") {
			m.kept = slices.DeleteFunc(m.kept, func(k kept) bool {
				if k.name == name {
					unix.Close(k.fd)
				}
				return k.name == name
			})
		}
	}
}

func TestServiceManager(t *testing.T) {
	for _, abstract := range []bool{false, true} {
		t.Run(fmt.Sprintf("abstract=%t", abstract), func(t *testing.T) {
			s := newStage(t)
			addr := filepath.Join(s.dir, "notify")
			if abstract {
				addr = fmt.Sprintf("@sshbroker-test-%d", os.Getpid())
			}
			m := newManager(t, addr)
			a := m.start(t, s)
			if a.Kind != ServiceManager || len(a.Names) != 0 {
				t.Fatalf("kept by %q, inherited %q", a.Kind, a.Names)
			}
			c, _ := setUp(t, a)
			m.obey(t, 4, a.PID)
			want := []string{"FDSTORE=1\nFDPOLL=0\nFDNAME=listener", "FDSTORE=1\nFDPOLL=0\nFDNAME=pipe", "FDSTORE=1\nFDPOLL=0\nFDNAME=pipe", "READY=1"}
			if !slices.Equal(m.words, want) {
				t.Errorf("it was told %q", m.words)
			}
			for range 3 {
				a.kill(t)
				a = m.start(t, s)
				if !slices.Equal(a.Names, []string{"listener", "pipe"}) {
					t.Fatalf("inherited %q", a.Names)
				}
				if got := a.do(t, "look", "listener"); !strings.HasPrefix(got, "readable=1 ") {
					t.Errorf("listener: %s", got)
				}
			}
			takeUp(t, a, c)
			a.do(t, "remove", "pipe")
			m.obey(t, 1, a.PID)
			a.kill(t)
			if a = m.start(t, s); !slices.Equal(a.Names, []string{"listener"}) {
				t.Errorf("inherited %q", a.Names)
			}
		})
	}
}

// TestNobody has environments in which nothing is meant for this process.
func TestNobody(t *testing.T) {
	for name, env := range map[string]map[string]string{
		"empty":                    {},
		"descriptors of another":   {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"},
		"left by a process above":  {"NOTIFY_SOCKET": "/run/nobody", "SYSTEMD_EXEC_PID": "1"},
		"descriptors of no number": {"LISTEN_PID": "1", "LISTEN_FDS": "many"},
	} {
		t.Run(name, func(t *testing.T) {
			for key, value := range env {
				t.Setenv(key, value)
			}
			k, err := Open()
			if err != nil {
				t.Fatal(err)
			}
			if k.Kind() != None || len(k.files) != 0 || k.Take("x") != nil {
				t.Errorf("kept by %q, inherited %v", k.Kind(), k.files)
			}
			if err := errors.Join(k.Store("x", os.Stdin), k.Remove("x"), k.Ready()); err != nil {
				t.Error(err)
			}
			for key := range env {
				if os.Getenv(key) != "" {
					t.Errorf("%s is still set", key)
				}
			}
		})
	}
}

// TestNoParent has an environment that promises a parent's socket.
func TestNoParent(t *testing.T) {
	t.Setenv(envParent, "1")
	if k, err := Open(); err == nil {
		t.Errorf("kept by %q", k.Kind())
	}
}

func FuzzObey(f *testing.F) {
	f.Add("FDSTORE=1\nFDNAME=x", []byte{})
	f.Add("FDSTOREREMOVE=1\nFDNAME=x", []byte("0123456789abcdef"))
	f.Add("READY=1\n\n=\n", []byte{16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, text string, oob []byte) {
		if h := unix.UnixRights(0)[:unix.SizeofCmsghdr]; bytes.Contains(oob, h[8:]) {
			return // the kernel alone makes descriptors; these numbers would be of this process
		}
		s := supervisor{log: quiet, kept: []kept{{"x", -1}}}
		s.obey(text, oob)
		if removes := strings.Contains(text, "FDSTOREREMOVE=1"); !removes && len(s.kept) != 1 || len(s.kept) > 1 {
			t.Errorf("%q keeps %v", text, s.kept)
		}
	})
}
