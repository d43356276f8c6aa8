package netns

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// Cmd says what to run. Only Args is required.
type Cmd struct {
	Args []string // the program is looked up in the PATH of Env
	User *User    // nil for root
	// Env is added to a clean environment: HOME, USER, LOGNAME, SHELL, PATH,
	// LANG=C.UTF-8, TERM and nothing else but the mark of the test. "NAME" alone
	// removes a variable.
	Env   []string
	Dir   string        // "" for the home directory
	Stdin io.Reader     // nil for /dev/null; not with TTY
	TTY   *pty.Winsize  // a terminal of this size, in a session of its own
	Limit time.Duration // killed after that; 0 for two minutes, <0 for never
	Files []*os.File    // descriptors 3 and up; the caller closes its copies

	conn *os.File // standard input and output, for servers started by inetd
}

// Process is a running command. Its methods may be used by several goroutines.
type Process struct {
	// Terminal is the test's end of the TTY, nil without one. What arrives there
	// is read by the Process; tests write to it, or change its size.
	Terminal *os.File

	cmd     *exec.Cmd
	args    []string
	machine string
	limit   time.Duration // as Cmd has it
	all     *transcript   // stdout and stderr as they came
	out     *transcript
	err     *transcript
	done    chan struct{}
	result  Result // valid after done
}

// Result is how a command ended.
type Result struct {
	Code           int            // exit status, or -1
	Signal         syscall.Signal // that ended it, or 0
	Stdout, Stderr string         // with a TTY all is Stdout
	Took           time.Duration
	// PipesHeld says that the command ended and left its standard output or error
	// open in another process, on which $(command) would hang.
	PipesHeld bool
}

func (r Result) String() string {
	end := fmt.Sprintf("exit %d", r.Code)
	if r.Signal != 0 {
		end = fmt.Sprintf("signal %v", r.Signal)
	}
	return fmt.Sprintf("%s after %.3f s\nstdout: %s\nstderr: %s", end, r.Took.Seconds(), tail(r.Stdout, 4<<10), tail(r.Stderr, 4<<10))
}

// pipeDelay is how long an ended command's output may stay open elsewhere.
const pipeDelay = 2 * time.Second

// Run runs a command to its end.
func (m *Machine) Run(t testing.TB, c Cmd) Result {
	t.Helper()
	return m.Start(t, c).Wait(t)
}

// Output runs a command that must succeed and returns its standard output
// without the last newline.
func (m *Machine) Output(t testing.TB, u *User, args ...string) string {
	t.Helper()
	r := m.Run(t, Cmd{Args: args, User: u})
	if r.Code != 0 {
		t.Fatalf("%s: %s: %s", m.Name, strings.Join(args, " "), r)
	}
	return strings.TrimSuffix(r.Stdout, "\n")
}

// Start starts a command in a process group of its own. The test's end kills it.
func (m *Machine) Start(t testing.TB, c Cmd) *Process {
	t.Helper()
	p, err := m.start(c)
	if err != nil {
		t.Fatalf("%s: start %s: %v", m.Name, strings.Join(c.Args, " "), err)
	}
	return p
}

func (m *Machine) start(c Cmd) (*Process, error) {
	env := m.net.environment(c)
	path, err := lookPath(c.Args[0], env["PATH"])
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, c.Args[1:]...)
	cmd.Args[0] = c.Args[0]
	cmd.Dir = cmp.Or(c.Dir, env["HOME"])
	cmd.Env = []string{}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		cmd.Env = append(cmd.Env, name+"="+env[name])
	}
	cmd.ExtraFiles = c.Files
	cmd.WaitDelay = pipeDelay
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if m.cgroupFD != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(m.cgroupFD.Fd())
	}
	if c.User != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.User.UID, Gid: c.User.GID, Groups: c.User.Groups}
	}
	p := &Process{
		cmd: cmd, args: c.Args, machine: m.Name, limit: cmp.Or(c.Limit, 2*time.Minute), done: make(chan struct{}),
		all: newTranscript(), out: newTranscript(), err: newTranscript(),
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }

	var readers sync.WaitGroup
	var remote *os.File
	switch {
	case c.TTY != nil:
		if p.Terminal, remote, err = openTerminal(c); err != nil {
			cancel()
			return nil, err
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = remote, remote, remote
		cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = false, true, true
	case c.conn != nil:
		cmd.Stdin, cmd.Stdout, cmd.Stderr = c.conn, c.conn, io.MultiWriter(p.err, p.all)
	default:
		cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, io.MultiWriter(p.out, p.all), io.MultiWriter(p.err, p.all)
	}
	begin := time.Now()
	err = m.onThread(cmd.Start)
	if remote != nil {
		remote.Close()
	}
	if err != nil {
		cancel()
		if p.Terminal != nil {
			p.Terminal.Close()
		}
		return nil, err
	}
	m.net.mu.Lock()
	m.net.processes = append(m.net.processes, p)
	m.net.mu.Unlock()
	if p.Terminal != nil {
		// Reading fails with EIO once the last process has let go of the other end.
		readers.Go(func() { io.Copy(io.MultiWriter(p.out, p.all), p.Terminal) })
	}
	if p.limit > 0 {
		timer := time.AfterFunc(p.limit, cancel)
		context.AfterFunc(ctx, func() { timer.Stop() })
	}
	go func() {
		defer close(p.done)
		defer cancel()
		err := cmd.Wait()
		p.result.Took = time.Since(begin)
		if p.Terminal != nil {
			// Background children may keep the terminal; a moment is enough for
			// what was already said.
			p.Terminal.SetReadDeadline(time.Now().Add(pipeDelay))
			readers.Wait()
			p.Terminal.Close()
		}
		status := cmd.ProcessState.Sys().(syscall.WaitStatus)
		p.result.Code = status.ExitStatus()
		if status.Signaled() {
			p.result.Signal = status.Signal()
		}
		p.result.PipesHeld = errors.Is(err, exec.ErrWaitDelay)
		p.result.Stdout, p.result.Stderr = p.out.String(), p.err.String()
		for _, t := range []*transcript{p.all, p.out, p.err} {
			t.end()
		}
	}()
	return p, nil
}

func openTerminal(c Cmd) (terminal, remote *os.File, err error) {
	if terminal, remote, err = pty.Open(); err != nil {
		return nil, nil, err
	}
	err = pty.Setsize(terminal, c.TTY)
	if err == nil && c.User != nil {
		err = os.Chown(remote.Name(), int(c.User.UID), int(c.User.GID))
	}
	if err != nil {
		terminal.Close()
		remote.Close()
		return nil, nil, err
	}
	return terminal, remote, nil
}

// environment returns what the command sees, and nothing of the test's own.
func (n *Net) environment(c Cmd) map[string]string {
	env := map[string]string{
		"HOME": n.Dir, "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash", "LANG": "C.UTF-8", "TERM": "dumb",
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		mark:   n.id,
	}
	if dir := os.Getenv("GOCOVERDIR"); dir != "" { // see sut
		env["GOCOVERDIR"] = dir
	}
	if c.User != nil {
		env["HOME"], env["USER"], env["LOGNAME"] = c.User.Home, c.User.Name, c.User.Name
	}
	if c.TTY != nil {
		env["TERM"] = "xterm"
	}
	for _, entry := range c.Env {
		if name, value, ok := strings.Cut(entry, "="); ok {
			env[name] = value
		} else {
			delete(env, entry)
		}
	}
	return env
}

func lookPath(name, path string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range strings.Split(path, ":") {
		if found, err := exec.LookPath(dir + "/" + name); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

func (p *Process) String() string {
	return fmt.Sprintf("%s: process %d (%s)", p.machine, p.Pid(), strings.Join(p.args, " "))
}

// Pid is the process id on the host, and the id of its group.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Output is what the process has said so far, standard output and error together.
func (p *Process) Output() string { return p.all.String() }

// Stdout and Stderr are what it has said so far on each. A TTY is all Stdout.
func (p *Process) Stdout() string { return p.out.String() }
func (p *Process) Stderr() string { return p.err.String() }

// Done is closed when the process has ended and its output is complete.
func (p *Process) Done() <-chan struct{} { return p.done }

// WaitFor waits until the process has said text, on either stream, and returns
// all that it has said.
func (p *Process) WaitFor(t testing.TB, text string) string {
	t.Helper()
	said, err := p.all.waitFor(text, patience)
	if err != nil {
		t.Fatalf("%s: waiting for %q: %v; it said:\n%s", p, text, err, tail(said, 8<<10))
	}
	return said
}

// Type writes to the terminal.
func (p *Process) Type(t testing.TB, text string) {
	t.Helper()
	if _, err := io.WriteString(p.Terminal, text); err != nil {
		t.Fatalf("%s: type %q: %v", p, text, err)
	}
}

// Signal sends a signal to the process alone.
func (p *Process) Signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("%s: signal %v: %v", p, sig, err)
	}
}

// Kill kills the process group and waits for the process.
func (p *Process) Kill(t testing.TB) Result {
	t.Helper()
	p.kill()
	return p.Wait(t)
}

// kill kills the process group; it does not wait.
func (p *Process) kill() {
	select {
	case <-p.done:
		// The group may have members left, but its number may be somebody's
		// already; killStrays finds them.
	default:
		syscall.Kill(-p.Pid(), syscall.SIGKILL)
	}
}

// Wait waits for the process to end. Cmd.Limit says how long that may take; one
// without a limit is expected to be about to end.
func (p *Process) Wait(t testing.TB) Result {
	t.Helper()
	var timeout <-chan time.Time
	if p.limit < 0 {
		timeout = time.After(patience)
	}
	select {
	case <-p.done:
	case <-timeout:
		t.Fatalf("%s does not end; it said:\n%s", p, tail(p.Output(), 8<<10))
	}
	return p.result
}

// transcript is what a process said, for readers that wait for it.
type transcript struct {
	mu    sync.Mutex
	text  bytes.Buffer
	ended bool
	more  chan struct{} // closed and replaced when something changes
}

func newTranscript() *transcript { return &transcript{more: make(chan struct{})} }

func (t *transcript) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text.Write(b)
	close(t.more)
	t.more = make(chan struct{})
	return len(b), nil
}

func (t *transcript) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	close(t.more)
	t.more = make(chan struct{})
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

func (t *transcript) waitFor(text string, limit time.Duration) (string, error) {
	timeout := time.After(limit)
	for {
		t.mu.Lock()
		said, ended, more := t.text.String(), t.ended, t.more
		t.mu.Unlock()
		if strings.Contains(said, text) {
			return said, nil
		}
		if ended {
			return said, io.ErrUnexpectedEOF
		}
		select {
		case <-more:
		case <-timeout:
			return said, context.DeadlineExceeded
		}
	}
}
