package command

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"sshbroker/capture/message"
)

// Options say what to start.
type Options struct {
	Self string   // the executable; it must call Inside when its first argument is Arg
	Arg  string   //
	Path string   // of the command's executable
	Argv []string // the command's arguments, the first being its own name
	Sys  *syscall.SysProcAttr
}

// Child is the process, seen by the half that has started it. The other half's messages
// come by Conn.
type Child struct {
	*message.Conn
	Process *os.Process // a child of the caller, which waits for it once it is released

	path string
}

// ExecError says why the command could not be run. It unwraps to an errno.
type ExecError struct {
	Path  string
	Errno syscall.Errno
}

func (e *ExecError) Error() string { return e.Path + ": " + e.Errno.Error() }
func (e *ExecError) Unwrap() error { return e.Errno }

// KilledError says that a signal ended the child before it was the command, as
// Ctrl-C does, which reaches it as well as the caller.
type KilledError syscall.Signal

func (e KilledError) Error() string { return "ended by signal: " + syscall.Signal(e).String() }

// failure is what the other half says when the command cannot be run.
type failure struct {
	Errno syscall.Errno `json:"errno"`
}

// Pair returns two connected sockets for messages, closed by an exec.
func Pair(name string) (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}

// Start starts the process, with this one's standard descriptors and environment. The
// caller releases or aborts it.
func Start(o Options) (*Child, error) {
	ours, theirs, err := Pair("command")
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	conn, err := message.New(ours)
	if err != nil {
		return nil, err
	}
	c := &Child{Conn: conn, path: o.Path}
	raw, err := theirs.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) { c.Process, err = o.start(fd) })
		err = errors.Join(cerr, err)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// start hands on the descriptor fd by its number here: a low one may be something that
// the command inherits.
func (o Options) start(fd uintptr) (*os.Process, error) {
	if _, err := unix.FcntlInt(fd, unix.F_SETFD, 0); err != nil {
		return nil, err
	}
	argv := append([]string{o.Self, o.Arg, strconv.Itoa(int(fd)), o.Path}, o.Argv...)
	return os.StartProcess(o.Self, argv, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Env: os.Environ(), Sys: o.Sys})
}

// Release says v, on which the other half becomes the command. It returns nil once that
// has happened, or why the process has ended instead: an *ExecError or a KilledError.
func (c *Child) Release(v any) error {
	defer c.Close()
	var f failure
	err := c.Send(v)
	if err == nil {
		var files []*os.File
		files, err = c.Receive(&f)
		message.CloseAll(files)
	}
	switch {
	case errors.Is(err, io.EOF):
		return nil // the descriptor was closed by the exec
	case err != nil:
		return c.Ended(fmt.Errorf("release command: %w", err))
	}
	return c.Ended(&ExecError{Path: c.path, Errno: f.Errno})
}

// Ended waits for a child that has ended, and returns why: a KilledError, else err.
func (c *Child) Ended(err error) error {
	state, werr := c.Process.Wait()
	if werr != nil {
		return err
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return KilledError(status.Signal())
	}
	return err
}

// Abort ends a child that was not released.
func (c *Child) Abort() {
	c.Close()
	_ = c.Process.Kill()
	_, _ = c.Process.Wait()
}
