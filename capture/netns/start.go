package netns

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"sshbroker/capture/inherit"
	"sshbroker/capture/message"
)

// InsideArg is the first argument by which a program knows that it is to call Inside.
const InsideArg = "--inside-capture"

// Options say what the namespace is for.
type Options struct {
	Self     string        // the executable to start; it must call Inside when its first argument is InsideArg
	Path     string        // of the command's executable
	Argv     []string      // the command's arguments, the first being its own name
	ID       string        // of the capture; the command's SSH_CAPTURE
	AllNames bool          // names are resolved at the far end alone: no search list
	UDPRelay bool          // make the sockets of a UDP relay
	Unheld   bool          // do as on a kernel without a packet queue
	Inherit  inherit.State // what the command inherits
}

// order is what the inside half is told, once.
type order struct {
	ID       string `json:"id"`
	AllNames bool   `json:"all_names"`
	UDPRelay bool   `json:"udp_relay"`
	Unheld   bool   `json:"unheld"`
	UserNS   bool   `json:"user_ns"`

	Inherit inherit.State `json:"inherit"`
}

// report is what it answers, with the descriptors; and again, if the command cannot
// be run.
type report struct {
	Manifest Manifest      `json:"manifest"`
	Error    string        `json:"error,omitempty"`
	Errno    syscall.Errno `json:"errno,omitempty"`
}

// ExecError says why the command could not be run. It unwraps to an errno.
type ExecError struct {
	Path  string
	Errno syscall.Errno
}

func (e *ExecError) Error() string { return e.Path + ": " + e.Errno.Error() }
func (e *ExecError) Unwrap() error { return e.Errno }

// Child is the process that becomes the command. It waits until Release.
type Child struct {
	Process  *os.Process // a child of the caller, which waits for it
	Manifest Manifest
	Files    []*os.File // the capture's descriptors; the caller closes them

	conn *message.Conn
}

// Start makes the namespaces and everything in them. A ForbiddenError says that
// this machine does not allow it, and what would.
func Start(o Options) (*Child, error) {
	ours, theirs, err := message.Pair("capture")
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	defer theirs.Close()
	conn, err := message.New(ours)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}

	userNS := !mayDoWithoutUserNS()
	sys := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	if userNS {
		uid, gid := os.Getuid(), os.Getgid()
		sys.Cloneflags |= unix.CLONE_NEWUSER
		sys.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		sys.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
		// Capabilities that an exec by an ordinary uid does not take away.
		sys.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN}
	}
	var fd int
	if err := control(theirs, func(n int) { fd = n; unix.FcntlInt(uintptr(n), unix.F_SETFD, 0) }); err != nil {
		conn.Close()
		return nil, err
	}
	argv := append([]string{o.Self, InsideArg, strconv.Itoa(fd), o.Path}, o.Argv...)
	p, err := os.StartProcess(o.Self, argv, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Env: os.Environ(), Sys: sys,
	})
	if err != nil {
		conn.Close()
		return nil, forbidden(err, userNS)
	}
	theirs.Close()

	c := &Child{Process: p, conn: conn}
	if err = c.setUp(order{o.ID, o.AllNames, o.UDPRelay, o.Unheld, userNS, o.Inherit}); err != nil {
		if hungUp(err) {
			err = c.ended(err)
		}
		c.Abort()
		return nil, forbidden(err, userNS)
	}
	return c, nil
}

// KilledError says that a signal ended the child before it was the command, as
// Ctrl-C does, which reaches it as well as the caller.
type KilledError syscall.Signal

func (e KilledError) Error() string { return "ended by signal: " + syscall.Signal(e).String() }

// hungUp tells from an error of the socket that the other side is gone, with or without
// having read what it was told.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// ended waits for a child that has hung up, and returns why it did, or err.
func (c *Child) ended(err error) error {
	state, werr := c.Process.Wait()
	if werr != nil {
		return err
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return fmt.Errorf("network namespace: %w", KilledError(status.Signal()))
	}
	return err
}

func (c *Child) setUp(o order) error {
	if err := c.conn.Send(o); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	var r report
	files, err := c.conn.Receive(&r)
	if err != nil {
		return fmt.Errorf("network namespace: no word from inside: %w", err)
	}
	c.Files, c.Manifest = files, r.Manifest
	if r.Error != "" {
		return &insideError{r.Error, r.Errno}
	}
	return c.Manifest.check(files)
}

// Release lets the child become the command. It returns nil once that has happened,
// or why the child has ended instead: an *ExecError or a KilledError.
func (c *Child) Release() error {
	defer c.conn.Close()
	if err := c.conn.Send(struct{}{}); err != nil {
		return c.ended(fmt.Errorf("release command: %w", err))
	}
	var r report
	files, err := c.conn.Receive(&r)
	message.CloseAll(files)
	if errors.Is(err, io.EOF) {
		return nil // the descriptor was closed by the exec
	}
	if err != nil {
		return c.ended(fmt.Errorf("release command: %w", err))
	}
	return c.ended(&ExecError{Path: r.Error, Errno: r.Errno})
}

// Abort ends a child that was not released, and closes everything.
func (c *Child) Abort() {
	c.conn.Close()
	_ = c.Process.Kill()
	_, _ = c.Process.Wait()
	message.CloseAll(c.Files)
}

// insideError carries an error over from the inside half with its errno.
type insideError struct {
	text  string
	errno syscall.Errno
}

func (e *insideError) Error() string { return e.text }
func (e *insideError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

// mayDoWithoutUserNS reports whether this process can make the other namespaces by
// privilege of its own, as root in a container can: then uids stay as they are.
func mayDoWithoutUserNS() bool {
	if os.Geteuid() != 0 {
		return false
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil {
		return false
	}
	const need = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_SYS_ADMIN
	return data[0].Effective&need == need
}
