package client

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture/command"
	"sshbroker/capture/message"
	"sshbroker/capture/service"
)

func (f *fake) dialer() Dialer { return Dialer{Path: f.path, Program: "test 1", AnyOwner: true} }

func dialFake(t *testing.T, f *fake) *Client {
	t.Helper()
	c, err := f.dialer().Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestClient(t *testing.T) {
	f := newFake(t).start()
	c := dialFake(t, f)
	made, err := c.Make(t.Context(), "c1")
	if err != nil || made != (service.Made{Cgroup: "/c/c1", Held: true}) {
		t.Errorf("made %+v, %v", made, err)
	}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()
	if err := c.Enter(t.Context(), "c1", pidfd); err != nil {
		t.Error(err)
	}
	if err := c.Connector(t.Context(), true); err != nil {
		t.Error(err)
	}
	if status, err := c.Status(t.Context()); err != nil || status.PID != 7 || !status.Enabled {
		t.Errorf("status %+v, %v", status, err)
	}
	if err := c.Release(t.Context()); err != nil {
		t.Error(err)
	}
	closed, _ := os.Open(os.DevNull)
	closed.Close()
	if err := c.Enter(t.Context(), "c1", closed); err == nil || errors.Is(err, ErrLost) {
		t.Errorf("a closed file: %v", err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("after a request that could not be sent: %v", err)
	}
}

func TestClientIsRefused(t *testing.T) {
	f := newFake(t)
	f.answer = func(m *service.Message, usual service.Message) service.Message {
		if m.Op != service.OpHello {
			usual = service.Message{Op: service.OpAnswer, Seq: m.Seq}
			if m.Op == service.OpConnector {
				usual.Error = &service.Error{Code: service.CodeForbidden, Message: "only root may", Hint: "sudo"}
			}
		}
		return usual
	}
	f.start()
	c := dialFake(t, f)
	var refused *service.Error
	if err := c.Connector(t.Context(), true); !errors.As(err, &refused) || refused.Code != service.CodeForbidden || refused.Hint != "sudo" {
		t.Errorf("connector: %v", err)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, errEmpty) {
		t.Errorf("status without a status: %v", err)
	}
	if _, err := c.Make(t.Context(), "c1"); !errors.Is(err, errEmpty) {
		t.Errorf("made nothing: %v", err)
	}
}

func TestNotRunning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	if _, err := Dial(t.Context(), path, "test"); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), path) {
		t.Errorf("no socket: %v", err)
	}
	f := newFake(t).start()
	f.listener.SetUnlinkOnClose(false)
	f.stop()
	if _, err := Dial(t.Context(), f.path, "test"); !errors.Is(err, ErrNotRunning) || !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("refused: %v", err)
	}
	t.Setenv(service.EnvSocket, path)
	if _, err := Dial(t.Context(), "", "test"); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), path) {
		t.Errorf("by the environment: %v", err)
	}
	_, err := Serve(t.Context(), Options{Dialer: Dialer{Path: path}, Capture: "c1"})
	if !errors.Is(err, ErrNotRunning) {
		t.Errorf("serve: %v", err)
	}
}

func TestVersionMismatch(t *testing.T) {
	f := newFake(t)
	f.version = service.Version + 1
	f.start()
	_, err := f.dialer().Dial(t.Context())
	if codeOf(err) != service.CodeVersion || !strings.Contains(err.Error(), "fake 1 speaks version 2") {
		t.Errorf("other version: %v", err)
	}
	f = newFake(t)
	f.answer = func(*service.Message, service.Message) service.Message {
		return service.Message{Op: service.OpAnswer, Error: &service.Error{Code: service.CodeVersion, Message: "too old"}}
	}
	f.start()
	if _, err := f.dialer().Dial(t.Context()); codeOf(err) != service.CodeVersion || !strings.Contains(err.Error(), "too old") {
		t.Errorf("told so by ssh-captured: %v", err)
	}
}

func TestHelloOfAnotherKind(t *testing.T) {
	for _, reply := range []service.Message{{Op: service.OpAttempt}, {Op: service.OpHello}} {
		f := newFake(t)
		f.answer = func(*service.Message, service.Message) service.Message { return reply }
		f.start()
		if _, err := f.dialer().Dial(t.Context()); err == nil || !strings.Contains(err.Error(), "says") {
			t.Errorf("%+v: %v", reply, err)
		}
	}
	f := newFake(t)
	f.before = func(*service.Message) bool { return false }
	f.start()
	if _, err := f.dialer().Dial(t.Context()); !errors.Is(err, ErrLost) {
		t.Errorf("closed at once: %v", err)
	}
}

// TestNobodyAccepts has a socket of the service manager's whose service cannot be started.
func TestNobodyAccepts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := Dialer{Path: path, AnyOwner: true, patience: 20 * time.Millisecond}
	if _, err := d.Dial(t.Context()); !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), "does not answer within 20ms") {
		t.Errorf("connected to nobody: %v", err)
	}
}

// TestOnlyRootAnswers lets another uid listen.
func TestOnlyRootAnswers(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root to become somebody else")
		}
		t.Skip("needs root to become somebody else")
	}
	dir, err := os.MkdirTemp("", "client")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "socket")
	listened := make(chan net.Listener)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with us
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 4711, 4711, 4711); errno != 0 {
			t.Error(errno)
		}
		l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
		if err != nil {
			t.Error(err)
		}
		listened <- l
	}()
	l := <-listened
	defer l.Close()
	if _, err := Dial(t.Context(), path, "test"); err == nil || !strings.Contains(err.Error(), "uid 4711") || errors.Is(err, ErrNotRunning) {
		t.Errorf("answered by another uid: %v", err)
	}
}

// TestContexts talks to a server that reads nothing and answers nothing.
func TestContexts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	d := Dialer{Path: path, AnyOwner: true}
	if _, err := d.Dial(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no hello: %v", err)
	}

	f := newFake(t)
	f.answer = func(m *service.Message, usual service.Message) service.Message {
		if m.Op != service.OpHello {
			usual.Op = ""
		}
		return usual
	}
	f.start()
	c := dialFake(t, f)
	cause := errors.New("enough")
	ctx, stop := context.WithCancelCause(t.Context())
	time.AfterFunc(20*time.Millisecond, func() { stop(cause) })
	if _, err := c.Status(ctx); !errors.Is(err, cause) {
		t.Errorf("no answer: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Serve(ctx, Options{Dialer: f.dialer(), Capture: "c1"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("serve without an answer: %v", err)
	}
}

func TestClientLost(t *testing.T) {
	f := newFake(t)
	f.before = func(m *service.Message) bool { return m.Op != service.OpStatus }
	f.start()
	c := dialFake(t, f)
	if _, err := c.Status(t.Context()); !errors.Is(err, ErrLost) {
		t.Errorf("killed by it: %v", err)
	}
	if err := c.Release(t.Context()); !errors.Is(err, ErrLost) {
		t.Errorf("afterwards: %v", err)
	}
}

// TestWordsOfTheDead sees to it that an answer is read which was there before the server
// died with requests unread: the socket says ECONNRESET first.
func TestWordsOfTheDead(t *testing.T) {
	for _, room := range []*spares{nil, {}} {
		ours, theirs, err := command.Pair("pair")
		if err != nil {
			t.Fatal(err)
		}
		other, err := message.New(theirs)
		if err != nil {
			t.Fatal(err)
		}
		w, err := newSocket(ours, room)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := w.Send(service.Message{Op: service.OpStatus}); err != nil {
				t.Fatal(err)
			}
		}
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Send(service.Message{Op: service.OpAttempt, ID: 9}, null); err != nil {
			t.Fatal(err)
		}
		null.Close()
		other.Close()
		heard := make(chan int, 1)
		s := newSession(w, func(_ *session, m *service.Message, files []*os.File) {
			message.CloseAll(files)
			heard <- int(m.ID) + len(files)
		}, nil)
		<-s.done
		s.shut()
		select {
		case n := <-heard:
			if n != 10 {
				t.Errorf("heard %d", n)
			}
		default:
			t.Error("nothing was heard")
		}
	}
}

// TestSpareFreed has no descriptor but the reserved one when another comes.
func TestSpareFreed(t *testing.T) {
	room := &spares{}
	if err := room.add(); err != nil {
		t.Fatal(err)
	}
	defer room.done()
	ours, theirs, err := command.Pair("pair")
	if err != nil {
		t.Fatal(err)
	}
	w, err := newSocket(ours, room)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	other, err := message.New(theirs)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Send(service.Message{Op: service.OpAnswer}); err != nil {
		t.Fatal(err)
	}
	if err := other.Send(service.Message{Op: service.OpAnswer}, other.File()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{0, 1} {
		files, err := w.Receive(new(service.Message))
		if err != nil || len(files) != want || len(room.fds) != 1-want {
			t.Errorf("%d files and %d spares, want %d and %d: %v", len(files), len(room.fds), want, 1-want, err)
		}
		message.CloseAll(files)
	}
	if err := room.add(); err != nil || len(room.fds) != 2 {
		t.Errorf("%d spares after add: %v", len(room.fds), err)
	}
	if room.done(); len(room.fds) != 1 {
		t.Errorf("%d spares after done", len(room.fds))
	}
}
