package command

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sshbroker/capture/inherit"
)

const arg = "--test-inside"

// TestMain is the other half as well.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == arg {
		w := Inside(os.Args[2:])
		var id string
		w.Hear(&id)
		if id == "hang" {
			select {}
		}
		w.Become(id, inherit.State{})
	}
	os.Exit(m.Run())
}

func begin(t *testing.T, path string, argv ...string) *Child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c, err := Start(Options{Self: self, Arg: arg, Path: path, Argv: argv})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestBecomes(t *testing.T) {
	t.Setenv("SSH_CAPTURE", "outer")
	before := descriptors(t)
	for _, script := range []struct {
		text string
		code int
	}{
		{`test "$SSH_CAPTURE $0 $1" = "abcd name arg" && test "$(env | grep -c ^SSH_CAPTURE=)" = 1 && exit 7`, 7},
		{`for fd in /proc/$$/fd/*; do test ${fd##*/} -gt 2 && readlink $fd | grep -q socket && exit 1; done; exit 8`, 8},
	} {
		c := begin(t, "/bin/sh", "sh", "-c", script.text, "name", "arg")
		if err := c.Release("abcd"); err != nil {
			t.Fatal(err)
		}
		state, err := c.Process.Wait()
		if err != nil || state.ExitCode() != script.code {
			t.Errorf("%s: %v, %v", script.text, state, err)
		}
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestCannotBecome(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("\x00\x01\x02"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, errno := range map[string]syscall.Errno{"/no/such/file": unix.ENOENT, "/": unix.EACCES, plain: unix.ENOEXEC} {
		c := begin(t, path, "x")
		err := c.Release("abcd")
		if e, ok := errors.AsType[*ExecError](err); !ok || e.Errno != errno || e.Path != path || !errors.Is(err, errno) {
			t.Errorf("%s: %v", path, err)
		}
		requireGone(t, c)
	}
}

// requireGone fails the test unless the child was waited for.
func requireGone(t *testing.T, c *Child) {
	t.Helper()
	if err := unix.Kill(c.Process.Pid, 0); err != unix.ESRCH {
		t.Errorf("process %d: %v", c.Process.Pid, err)
	}
}

func TestKilledBefore(t *testing.T) {
	for _, when := range []string{"before release", "before exec"} {
		c := begin(t, "/bin/true", "true")
		id := "abcd"
		if when == "before exec" {
			id = "hang"
			go func() { _ = unix.Kill(c.Process.Pid, unix.SIGTERM) }()
		} else if err := unix.Kill(c.Process.Pid, unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := c.Release(id); err != KilledError(unix.SIGTERM) {
			t.Errorf("%s: %v", when, err)
		}
		requireGone(t, c)
	}
}

// TestStarterGone: the process ends, and does not become the command.
func TestStarterGone(t *testing.T) {
	ran := filepath.Join(t.TempDir(), "ran")
	c := begin(t, "/usr/bin/touch", "touch", ran)
	c.Close()
	if state, err := c.Process.Wait(); err != nil || state.ExitCode() != ExitOwn {
		t.Errorf("%v, %v", state, err)
	}
	c = begin(t, "/usr/bin/touch", "touch", ran)
	c.Abort()
	requireGone(t, c)
	if _, err := os.Stat(ran); !os.IsNotExist(err) {
		t.Errorf("the command ran: %v", err)
	}
}

func TestWrongUse(t *testing.T) {
	for _, args := range [][]string{nil, {"3"}, {"x", "/bin/true", "true"}, {"2000", "/bin/true", "true"}} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		p, err := os.StartProcess(self, slices.Concat([]string{self, arg}, args), &os.ProcAttr{Files: []*os.File{nil, w, w}})
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		said, _ := io.ReadAll(r)
		r.Close()
		if state, err := p.Wait(); err != nil || state.ExitCode() != ExitOwn {
			t.Errorf("%q: %v, %v: %s", args, state, err, said)
		}
	}
}
