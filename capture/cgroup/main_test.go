package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sshbroker/capture/cgroup/view"
)

// role is what this executable is when a test starts it again.
const role = "CGROUP_TEST_ROLE"

var roles = map[string]func() error{
	"keeper":   keeper,
	"foreign":  foreign,
	"drop":     dropAndExec,
	"captured": captured,
	"boot":     boot,
	"maker":    maker,
}

func TestMain(m *testing.M) {
	if f := roles[os.Getenv(role)]; f != nil {
		if err := f(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// The owner of most captures here. No account has to have it.
const user = 54321

// skip ends a test that cannot run here; in CI it fails.
func skip(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s, and CI=true allows no skip", reason)
	}
	t.Skip(reason)
}

// tree returns the hierarchy, and sees to it that the test leaves nothing of its own
// there. Tests that use it are not parallel.
func tree(t *testing.T) *Tree {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "needs root")
	}
	tr, err := Find()
	if errors.Is(err, ErrNone) {
		skip(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

var made int

// newLeaf makes a leaf that is gone after the test, with every process in it.
func newLeaf(t *testing.T, tr *Tree, uid uint32) *Leaf {
	t.Helper()
	made++
	l, err := tr.Make(t.Context(), uid, fmt.Sprintf("test%d-%d", os.Getpid(), made))
	if err != nil {
		t.Fatal(err)
	}
	cleanUp(t, l)
	return l
}

func cleanUp(t *testing.T, l *Leaf) {
	t.Helper()
	t.Cleanup(func() {
		l.settled()
		_ = os.WriteFile(filepath.Join(l.Path, "cgroup.kill"), []byte("1"), 0)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(view.WaitEmpty(ctx, l.Path), l.Remove()); err != nil {
			t.Error(err)
		}
	})
}

// program is a process that waits for its input.
type program struct {
	cmd   *exec.Cmd
	pidfd *os.File
	stdin io.WriteCloser
	out   *bufio.Reader
}

// start runs a program as uid. It is killed with the test.
func start(t *testing.T, uid uint32, argv ...string) *program {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = "/", append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	return startCmd(t, uid, cmd)
}

func startRole(t *testing.T, uid uint32, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Dir, cmd.Env = "/", append(os.Environ(), "GORACE=atexit_sleep_ms=0", role+"="+name)
	return cmd
}

func startCmd(t *testing.T, uid uint32, cmd *exec.Cmd) *program {
	t.Helper()
	fd := -1
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.PidFD = &fd
	if uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		t.Fatal(err)
	}
	p := &program{cmd, os.NewFile(uintptr(fd), "pidfd"), stdin, bufio.NewReader(r)}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		p.pidfd.Close()
		r.Close()
	})
	return p
}

// waiting starts a process of uid's that does nothing.
func waiting(t *testing.T, uid uint32) *program {
	t.Helper()
	return start(t, uid, "/bin/sh", "-c", "read _")
}

func (p *program) pid() int { return p.cmd.Process.Pid }

// end lets a waiting program end, and waits for it.
func (p *program) end(t *testing.T) {
	t.Helper()
	p.stdin.Close()
	if _, err := p.cmd.Process.Wait(); err != nil {
		t.Fatal(err)
	}
}

// line reads what the program says next.
func (p *program) line(t *testing.T) string {
	t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatalf("program said %q: %v", s, err)
	}
	return strings.TrimSuffix(s, "\n")
}

// in reports where a process is, below the mount.
func in(t *testing.T, tr *Tree, pid int) string {
	t.Helper()
	path, err := OfProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(tr.Mount, path)
}

func expectIn(t *testing.T, l *Leaf, p *program, want bool) {
	t.Helper()
	if got := in(t, l.tree, p.pid()); (got == l.Path) != want {
		t.Errorf("process is in %s; in %s: want %t", got, l.Path, want)
	}
}

func populatedNow(t *testing.T, l *Leaf) bool {
	t.Helper()
	yes, err := l.Populated()
	if err != nil {
		t.Fatal(err)
	}
	return yes
}

func uid(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
