package script

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture/service"
	"sshbroker/test/sut"
)

func TestMain(m *testing.M) { sut.Main(m, nil) }

// patience is how long anything may take before a test gives up on it. The machine may
// be busy; where a time matters, the test says so itself.
const patience = 30 * time.Second

// capturedEnv names the socket of an ssh-captured by which the programs are to capture;
// without it none is to be found, and they capture by namespaces.
const capturedEnv = "SSHBROKER_TEST_CAPTURED"

// mark is in the environment of every process of a place.
const mark = "SSHBROKER_TEST_PLACE"

// place is a home directory with a broker's address of its own, and an account that
// the programs run as. Nothing may be left of it but what its test has put there.
type place struct {
	t        testing.TB
	programs sut.Programs
	uid, gid int
	groups   []uint32
	id       string
	dir      string // everybody may look into it
	home     string // the account's, with the broker's socket
	env      []string
}

// eachAccount runs a test as the account of the test, and, where that is root, as an
// ordinary one as well.
func eachAccount(t *testing.T, test func(t *testing.T, p *place)) {
	t.Parallel()
	if os.Geteuid() != 0 {
		test(t, newPlace(t, os.Getuid(), os.Getgid()))
		return
	}
	t.Run("root", func(t *testing.T) { t.Parallel(); test(t, newPlace(t, 0, 0)) })
	t.Run("user", func(t *testing.T) { t.Parallel(); test(t, ordinary(t)) })
}

// ordinary is a place of an account that is not root's, and that has no name.
func ordinary(t testing.TB) *place {
	t.Helper()
	if uid := os.Getuid(); uid != 0 {
		return newPlace(t, uid, os.Getgid())
	}
	for range 100 {
		uid := 52000 + mathrand.IntN(8000)
		if _, err := user.LookupId(strconv.Itoa(uid)); err == nil {
			continue
		}
		// Another test process may look for one, too.
		if l, err := net.Listen("unix", fmt.Sprintf("@sshbroker-test-uid-%d", uid)); err == nil {
			t.Cleanup(func() { l.Close() })
			return newPlace(t, uid, uid)
		}
	}
	t.Fatal("no free uid")
	return nil
}

func newPlace(t testing.TB, uid, gid int) *place {
	t.Helper()
	dir, err := os.MkdirTemp("", "sshbroker-script-")
	if err != nil {
		t.Fatal(err)
	}
	p := &place{t: t, programs: sut.Build(t), uid: uid, gid: gid, id: rand.Text(), dir: dir, home: filepath.Join(dir, "home")}
	t.Cleanup(func() {
		p.requireNothingLeft(t)
		os.RemoveAll(dir)
	})
	for _, err := range []error{os.Chmod(dir, 0o755), os.Mkdir(p.home, 0o700), os.Chown(p.home, uid, gid)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	p.env = []string{"HOME=" + p.home, "PATH=" + p.programs.Dir + ":/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "TERM=xterm", "LANG=C.UTF-8",
		"SSH_SECSH_BROKER=" + p.address(), service.EnvSocket + "=" + cmp.Or(os.Getenv(capturedEnv), p.noCaptured()), mark + "=" + p.id}
	if dir := os.Getenv("GOCOVERDIR"); dir != "" { // see sut
		p.env = append(p.env, "GOCOVERDIR="+dir)
	}
	return p
}

// noCaptured is where no ssh-captured listens.
func (p *place) noCaptured() string { return filepath.Join(p.dir, "no-ssh-captured") }

func (p *place) address() string { return filepath.Join(p.home, "broker") }

// auditFile is where the broker of this place writes.
func (p *place) auditFile() string { return filepath.Join(p.home, ".ssh2", "ssh-broker-audit.jsonl") }

// write makes a file of the account below its home directory.
func (p *place) write(name, content string, mode os.FileMode) string {
	p.t.Helper()
	path := filepath.Join(p.home, name)
	for dir := filepath.Dir(path); dir != p.home; dir = filepath.Dir(dir) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			p.t.Fatal(err)
		}
		_ = os.Chown(dir, p.uid, p.gid)
	}
	if err := writeFile(path, []byte(content), mode); err != nil {
		p.t.Fatal(err)
	}
	for _, err := range []error{os.Chmod(path, mode), os.Chown(path, p.uid, p.gid)} {
		if err != nil {
			p.t.Fatal(err)
		}
	}
	return path
}

// writeFile keeps other tests from forking meanwhile: a child that still has the
// descriptor makes the file "text file busy" for whoever runs it.
func writeFile(path string, content []byte, mode os.FileMode) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, content, mode)
}

// configure writes the broker's configuration: a filter engine with these rules.
func (p *place) configure(rules string) string {
	return p.write(".ssh2/ssh-broker-config.xml", config(rules), 0o600)
}

func config(rules string) string {
	return `<?xml version="1.0"?>
<secsh-broker version="1.0">
  <filter-engine>
` + rules + `
  </filter-engine>
</secsh-broker>
`
}

// command is a program of the place that has not been started: in the account's home,
// with its identity and environment.
func (p *place) command(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	p.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, p.lookPath(args[0]), args[1:]...)
	cmd.Args[0] = args[0]
	cmd.Env = slices.Clone(p.env)
	cmd.Dir = p.home
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(p.uid), Gid: uint32(p.gid), Groups: p.groups}
	}
	return cmd
}

// lookPath finds our programs and the system's.
func (p *place) lookPath(name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	if path := filepath.Join(p.programs.Dir, name); exists(path) {
		return path
	}
	for _, dir := range []string{"/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"} {
		if path := filepath.Join(dir, name); exists(path) {
			return path
		}
	}
	skip(p.t, "needs "+name)
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// skip ends a test that cannot run here; in CI everything must be there.
func skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s, and CI=true allows no skip", why)
	}
	t.Skip(why)
}

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "needs root")
	}
}

// result is what became of a program.
type result struct {
	code           int // -1: ended by signal
	signal         syscall.Signal
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d, signal %d\nstdout:\n%s\nstderr:\n%s", r.code, r.signal, r.stdout, r.stderr)
}

// run runs a program to its end.
func (p *place) run(args ...string) result {
	p.t.Helper()
	return p.finish(p.command(args...))
}

// capture runs a command inside a capture where everything may go out directly.
func (p *place) capture(args ...string) result {
	p.t.Helper()
	return p.run(append([]string{"ssh-capture", "--allow-direct"}, args...)...)
}

func (p *place) finish(cmd *exec.Cmd) result {
	p.t.Helper()
	var out, err bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &err
	}
	return p.outcome(cmd, cmd.Run(), &out, &err)
}

func (p *place) outcome(cmd *exec.Cmd, err error, stdout, stderr *bytes.Buffer) result {
	p.t.Helper()
	r := result{stdout: stdout.String(), stderr: stderr.String()}
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		r.code = exit.ExitCode()
		if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
			r.signal = status.Signal()
		}
	default:
		p.t.Fatalf("%q: %v\n%v", cmd.Args, err, r)
	}
	return r
}

// require fails the test unless the program ended with that code.
func (r result) require(t testing.TB, code int) result {
	t.Helper()
	if r.code != code {
		t.Fatalf("%v\nwant exit code %d", r, code)
	}
	return r
}

// says fails the test unless standard error holds each text.
func (r result) says(t testing.TB, texts ...string) result {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(r.stderr, text) {
			t.Errorf("standard error lacks %q\n%v", text, r)
		}
	}
	return r
}

// prints fails the test unless standard output is exactly that.
func (r result) prints(t testing.TB, want string) result {
	t.Helper()
	if r.stdout != want {
		t.Errorf("%v\nwant standard output %q", r, want)
	}
	return r
}

// process is a living process of the place.
type process struct {
	pid  int
	args string
}

func (p process) String() string { return fmt.Sprintf("%d %s", p.pid, p.args) }

// processes lists the living processes of the place whose command line holds text.
func (p *place) processes(text string) []process {
	entries, _ := os.ReadDir("/proc")
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		environ, _ := os.ReadFile(dir + "/environ") // empty for a zombie
		if !bytes.Contains(environ, []byte(mark+"="+p.id)) {
			continue
		}
		line, _ := os.ReadFile(dir + "/cmdline")
		args := strings.TrimRight(strings.ReplaceAll(string(line), "\x00", " "), " ")
		if strings.Contains(args, text) {
			found = append(found, process{pid, args})
		}
	}
	return found
}

// one waits until exactly one process's command line holds text.
func (p *place) one(text string) process {
	p.t.Helper()
	var found []process
	p.eventually(func() bool {
		found = p.processes(text)
		return len(found) == 1
	}, func() string { return fmt.Sprintf("processes with %q: %v", text, found) })
	return found[0]
}

// none waits until no process's command line holds text.
func (p *place) none(text string) {
	p.t.Helper()
	p.eventually(func() bool { return len(p.processes(text)) == 0 },
		func() string { return fmt.Sprintf("processes with %q: %v", text, p.processes(text)) })
}

// eventually waits for what the kernel sends no event for.
func (p *place) eventually(is func() bool, but func() string) {
	p.t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("after %v: %s", patience, but())
		}
	}
}

// state is the letter of a process's state, T for a stopped one; "" where it is gone.
func state(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(b[bytes.LastIndexByte(b, ')'):]), " ")
	return rest[:1]
}

func (p *place) waitState(pid int, want string) {
	p.t.Helper()
	p.eventually(func() bool { return strings.Contains(want, state(pid)) == (state(pid) != "") },
		func() string { return fmt.Sprintf("process %d is in state %q, want one of %q", pid, state(pid), want) })
}

// waitExit waits for the end of any process.
func waitExit(t testing.TB, pid int, most time.Duration) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // gone
	}
	defer unix.Close(fd)
	for deadline := time.Now().Add(most); ; {
		left := time.Until(deadline)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(left, 0).Milliseconds()))
		switch {
		case n > 0:
			return
		case err != nil && err != unix.EINTR:
			t.Fatal(err)
		case left <= 0:
			t.Fatalf("process %d has not ended within %v", pid, most)
		}
	}
}

// broker is the process id of the place's broker, 0 where there is none.
func (p *place) broker() int {
	b, err := os.ReadFile(p.address() + ".lock")
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid
}

// stopBroker ends the broker, if there is one, and waits for its end.
func (p *place) stopBroker() {
	p.t.Helper()
	pid := p.broker()
	if pid == 0 {
		return
	}
	if r := p.run("ssh-broker", "--exit"); r.code != 0 && r.code != 3 {
		p.t.Errorf("ssh-broker --exit: %v", r)
	}
	waitExit(p.t, pid, patience)
}

// requireNothingLeft ends the broker and fails the test if a process, a socket, a
// lock or a name map is left then.
func (p *place) requireNothingLeft(t testing.TB) {
	t.Helper()
	p.stopBroker()
	deadline := time.Now().Add(patience)
	for len(p.processes("")) > 0 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	for _, left := range p.processes("") {
		t.Errorf("left behind: process %v", left)
		_ = syscall.Kill(left.pid, syscall.SIGKILL)
	}
	entries, err := os.ReadDir(p.home)
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		if name := e.Name(); strings.HasPrefix(name, "broker") || strings.HasPrefix(name, "names-") || e.Type()&fs.ModeSocket != 0 {
			t.Errorf("left behind: %s (%v)", name, e.Type())
		}
	}
}
