package control

import (
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
	"time"

	"golang.org/x/sys/unix"
)

// BrokerProgram is the broker's executable, looked for beside the caller's.
const BrokerProgram = "ssh-broker"

// ReadyOption is the option by which Start tells the broker the descriptor for
// NotifyReady: --ready-fd=N.
const ReadyOption = "--ready-fd"

// StartOptions says which broker to start.
type StartOptions struct {
	Program    string   // "": ssh-broker beside our executable, else on PATH
	Address    string   // what -a said; "" where it was not given
	ConfigFile string   // what -f said; "" where it was not given
	Daemon     bool     // it stays until told to stop; else it ends after its last client
	Extra      []string // further options, passed as they are
}

// Start starts a broker in a session of its own and returns its process id when it
// is ready. When it cannot start, the error is what it said. ErrRunning means that
// another one has the address. The broker is not tied to the caller; if ctx ends
// before it is ready, it is told to end.
func Start(ctx context.Context, o StartOptions) (pid int, err error) {
	program := o.Program
	if program == "" {
		if program, err = FindProgram(BrokerProgram); err != nil {
			return 0, err
		}
	}
	args, err := o.args()
	if err != nil {
		return 0, err
	}
	b, err := launch(program, args)
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", program, err)
	}
	defer b.pipe.Close()
	defer b.stderr.Close()
	stop := context.AfterFunc(ctx, func() { _ = b.pipe.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	said, rerr := io.ReadAll(io.LimitReader(b.pipe, 16<<10))
	switch text := strings.TrimSpace(string(said)); {
	case text == readyWord:
		return b.process.Pid, nil
	case text == runningWord:
		return 0, ErrRunning
	case ctx.Err() != nil:
		_ = b.process.Signal(unix.SIGTERM)
		return 0, fmt.Errorf("start %s: %w", program, context.Cause(ctx))
	case strings.HasPrefix(text, configWord+"\n"):
		return 0, &Error{Code: CodeConfig, Message: strings.TrimPrefix(text, configWord+"\n")}
	case text != "":
		return 0, fmt.Errorf("start %s: %s", program, text)
	case rerr != nil:
		return 0, fmt.Errorf("start %s: %w", program, rerr)
	default:
		return 0, fmt.Errorf("start %s: it ended before it was ready%s", program, b.lastWords())
	}
}

func (o StartOptions) args() ([]string, error) {
	args := []string{ReadyOption + "=3"}
	if !o.Daemon {
		args = append(args, "--run-on-demand")
	}
	for _, given := range []struct{ option, path string }{{"-a", o.Address}, {"-f", o.ConfigFile}} {
		if given.path == "" {
			continue
		}
		path, err := filepath.Abs(given.path) // the broker runs in /
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", given.option, given.path, err)
		}
		args = append(args, given.option, path)
	}
	return append(args, o.Extra...), nil
}

// FindProgram finds a program of ours: the one beside this executable, else the one on PATH.
func FindProgram(name string) (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), name)
		if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is neither beside this program nor on PATH", name)
	}
	return path, nil
}

// launched is a broker that is coming up.
type launched struct {
	process *os.Process
	pipe    *os.File      // what it passes to NotifyReady; ends when it ends
	stderr  *os.File      // memory, so that nobody has to read along and it never blocks
	ended   chan struct{} // closed once it was reaped
}

func launch(program string, args []string) (*launched, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	mem, err := unix.MemfdCreate("ssh-broker stderr", unix.MFD_CLOEXEC)
	if err != nil {
		r.Close()
		return nil, os.NewSyscallError("memfd_create", err)
	}
	stderr := os.NewFile(uintptr(mem), "ssh-broker stderr")
	cmd := exec.Command(program, args...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = stderr, stderr
	cmd.ExtraFiles = []*os.File{w} // descriptor 3
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		r.Close()
		stderr.Close()
		return nil, err
	}
	b := &launched{process: cmd.Process, pipe: r, stderr: stderr, ended: make(chan struct{})}
	go func() { // reap it, should it end before we do
		_ = cmd.Wait()
		close(b.ended)
	}()
	return b, nil
}

// lastWords is the end of what the broker wrote to its standard error.
func (b *launched) lastWords() string {
	select {
	case <-b.ended:
	case <-time.After(time.Second): // it closed the pipe and lives on
	}
	const most = 2 << 10
	st, err := b.stderr.Stat()
	if err != nil || st.Size() == 0 {
		return ""
	}
	text := make([]byte, min(st.Size(), most))
	n, _ := b.stderr.ReadAt(text, st.Size()-int64(len(text)))
	return ": " + strings.TrimSpace(cut(string(text[:n]), most))
}

const (
	readyWord   = "ready"
	runningWord = "running"
	configWord  = "configuration:" // the text of what is wrong with it follows
)

// CloseInherited closes every descriptor above 2 that this process was started
// with, but keep, which it marks close-on-exec. A broker calls it first thing: a
// pipe of the shell that it held would keep the pipe's reader waiting for ever.
func CloseInherited(keep int) error {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, name := range names {
		fd, err := strconv.Atoi(name.Name())
		if err != nil || fd <= 2 {
			continue
		}
		// Our own are close-on-exec, without exception; inherited ones cannot be.
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		switch {
		case err != nil || flags&unix.FD_CLOEXEC != 0:
		case fd == keep:
			unix.CloseOnExec(fd)
		default:
			unix.Close(fd)
		}
	}
	return nil
}

// NotifyReady tells the Start that started this process that it serves, and turns
// standard input, output and error to /dev/null. It closes fd.
func NotifyReady(fd int) error {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev/null", Err: err}
	}
	defer unix.Close(null)
	for std := range 3 {
		if err := unix.Dup3(null, std, 0); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	return notify(fd, readyWord)
}

// NotifyFailed tells the Start that started this process why it cannot serve. It
// closes fd; the process is to end. Not to be called after NotifyReady.
func NotifyFailed(fd int, err error) error {
	var answer *Error
	switch {
	case errors.Is(err, ErrRunning):
		return notify(fd, runningWord)
	case errors.As(err, &answer) && answer.Code == CodeConfig:
		return notify(fd, configWord+"\n"+answer.Message)
	}
	return notify(fd, err.Error())
}

func notify(fd int, text string) error {
	// Called a second time, the number may be some other file's by now.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return fmt.Errorf("readiness descriptor %d: not a pipe", fd)
	}
	f := os.NewFile(uintptr(fd), "readiness")
	defer f.Close()
	if _, err := f.WriteString(text + "\n"); err != nil && !errors.Is(err, unix.EPIPE) { // EPIPE: it did not wait
		return fmt.Errorf("readiness descriptor %d: %w", fd, err)
	}
	return nil
}

// EnsureOptions says which broker to connect to, and to start if there is none.
type EnsureOptions struct {
	Address  string // the socket, from the function Address
	AnyOwner bool   // see Dialer
	Start    StartOptions
}

// ensureTimeout bounds how long Ensure goes on while brokers come and go.
const ensureTimeout = 30 * time.Second

// Ensure connects to the broker, and starts one when none runs. Clients that do so
// at the same time end up with the same broker. The caller closes the client.
func Ensure(ctx context.Context, o EnsureOptions) (*Client, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, ensureTimeout, errors.New("no broker came up in time"))
	defer cancel()
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		c, err := Dialer{Address: o.Address, AnyOwner: o.AnyOwner}.Dial(ctx)
		if err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("broker %s: %w", o.Address, context.Cause(ctx))
		}
		if !errors.Is(err, ErrNoBroker) && !isStopping(err) {
			return nil, err
		}
		// None, or one that is about to end: then ours waits for its lock to go.
		if _, err = Start(ctx, o.Start); err == nil {
			continue
		}
		if !errors.Is(err, ErrRunning) {
			return nil, err
		}
		select { // another client's broker came first, or an old one is ending
		case <-ctx.Done():
			return nil, fmt.Errorf("broker %s: %w", o.Address, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}

func isStopping(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == CodeStopping
}
