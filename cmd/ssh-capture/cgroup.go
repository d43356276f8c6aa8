package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"sshbroker/capture/inherit"
	"sshbroker/capture/message"
	"sshbroker/capture/netns"
	"sshbroker/capture/service/client"
)

// insideCgroupArg is the first argument of the process that waits in a capture's
// cgroup until it may become the command.
const insideCgroupArg = "--inside-cgroup"

// inCgroup has ssh-captured make a cgroup and puts the process into it that becomes
// the command.
func (s *session) inCgroup(ctx context.Context, captured *client.Client, o options, path string, started inherit.State) error {
	made, err := captured.Make(ctx, s.args.ID)
	if err != nil {
		return err
	}
	w, err := startWaiting(path, o.command, release{s.args.ID, started})
	if err != nil {
		return err
	}
	if err := enter(ctx, captured, s.args.ID, w.process); err != nil {
		w.Abort()
		return err
	}
	warnSetID(path, s.stderr)
	s.process, s.child, s.inside = w.process, w, inside{Cgroup: made.Cgroup}
	s.args.Backend = backendCgroup
	return nil
}

// enter moves a child of ours, which nobody has waited for: its number is its own.
func enter(ctx context.Context, captured *client.Client, id string, p *os.Process) error {
	pidfd, err := openProcess(p.Pid)
	if err != nil {
		return err
	}
	defer pidfd.Close()
	return captured.Enter(ctx, id, pidfd)
}

func openProcess(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// release is what the waiting process is told, once; failure its answer if the
// command cannot be run.
type (
	release struct {
		ID      string        `json:"id"`
		Inherit inherit.State `json:"inherit"`
	}
	failure struct {
		Errno syscall.Errno `json:"errno"`
	}
)

// waiting is a process of ours that becomes the command.
type waiting struct {
	process *os.Process
	path    string
	conn    *message.Conn
	release release
}

func startWaiting(path string, command []string, r release) (*waiting, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ours, theirs, err := message.Pair("command")
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	conn, err := message.New(ours)
	if err != nil {
		return nil, err
	}
	w := &waiting{path: path, conn: conn, release: r}
	raw, err := theirs.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) { w.process, err = startWith(fd, self, insideCgroupArg, path, command) })
		err = errors.Join(cerr, err)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return w, nil
}

// startWith starts a process that has the descriptor fd as well, by its number here:
// a low one may be something that the command inherits.
func startWith(fd uintptr, self, arg, path string, command []string) (*os.Process, error) {
	if _, err := unix.FcntlInt(fd, unix.F_SETFD, 0); err != nil {
		return nil, err
	}
	argv := append([]string{self, arg, strconv.Itoa(int(fd)), path}, command...)
	return os.StartProcess(self, argv, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Env: os.Environ()})
}

// Release lets the process become the command. It returns nil once that has happened,
// or why it has ended instead: a *netns.ExecError or a netns.KilledError.
func (w *waiting) Release() error {
	defer w.conn.Close()
	var f failure
	err := w.conn.Send(w.release)
	if err == nil {
		var files []*os.File
		files, err = w.conn.Receive(&f)
		message.CloseAll(files)
	}
	if errors.Is(err, io.EOF) {
		return nil // its side was closed by the exec
	}
	state, werr := w.process.Wait()
	if werr != nil {
		return fmt.Errorf("release command: %w", errors.Join(err, werr))
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return netns.KilledError(status.Signal())
	}
	if err != nil {
		return fmt.Errorf("release command: %w", err)
	}
	return &netns.ExecError{Path: w.path, Errno: f.Errno}
}

// Abort ends the process before it is the command.
func (w *waiting) Abort() {
	w.conn.Close()
	_ = w.process.Kill()
	_, _ = w.process.Wait()
}

// becomeCommand is the life of the waiting process; args are those behind
// insideCgroupArg. It does not return.
func becomeCommand(args []string) {
	if len(args) < 3 {
		fmt.Fprintf(os.Stderr, "%s is for ssh-capture's own use\n", insideCgroupArg)
		os.Exit(exitFailed)
	}
	fd, err := strconv.Atoi(args[0])
	if err != nil {
		os.Exit(exitFailed)
	}
	unix.CloseOnExec(fd)
	conn, err := message.New(os.NewFile(uintptr(fd), "command"))
	if err != nil {
		os.Exit(exitFailed)
	}
	var r release
	if _, err := conn.Receive(&r); err != nil {
		os.Exit(exitFailed) // the capture is not to be
	}
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "SSH_CAPTURE=") })
	var errno syscall.Errno
	errors.As(r.Inherit.Exec(args[1], args[2:], append(env, "SSH_CAPTURE="+r.ID)), &errno)
	_ = conn.Send(failure{errno})
	os.Exit(exitCannotRun)
}
