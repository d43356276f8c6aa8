package netns

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"sshbroker/capture/command"
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

// report is what it answers, with the descriptors.
type report struct {
	Manifest Manifest      `json:"manifest"`
	Error    string        `json:"error,omitempty"`
	Errno    syscall.Errno `json:"errno,omitempty"`
}

// Child is the process that becomes the command. It waits until Release.
type Child struct {
	Process  *os.Process // a child of the caller, which waits for it
	Manifest Manifest
	Files    []*os.File // the capture's descriptors; the caller closes them

	waiting *command.Child
}

// Start makes the namespaces and everything in them. A ForbiddenError says that
// this machine does not allow it, and what would.
func Start(o Options) (*Child, error) {
	sys, userNS := Attributes()
	sys.Cloneflags |= unix.CLONE_NEWNS
	w, err := command.Start(command.Options{Self: o.Self, Arg: InsideArg, Path: o.Path, Argv: o.Argv, Sys: sys})
	if err != nil {
		return nil, forbidden(err, userNS)
	}
	c := &Child{Process: w.Process, waiting: w}
	if err = c.setUp(order{o.ID, o.AllNames, o.UDPRelay, o.Unheld, userNS, o.Inherit}); err != nil {
		if hungUp(err) {
			err = w.Ended(err)
		}
		c.Abort()
		return nil, forbidden(err, userNS)
	}
	return c, nil
}

// Attributes start a process in a network namespace of its own whose rules it may make: in
// a user namespace too, unless the caller has the privilege to do without. What becomes of
// the mounts is the caller's business.
func Attributes() (sys *syscall.SysProcAttr, userNS bool) {
	sys = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if mayDoWithoutUserNS() {
		return sys, false
	}
	uid, gid := os.Getuid(), os.Getgid()
	sys.Cloneflags |= unix.CLONE_NEWUSER
	sys.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
	sys.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
	// Capabilities that an exec by an ordinary uid does not take away.
	sys.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN}
	return sys, true
}

// Forbidden explains an error of starting a process with Attributes, as a *ForbiddenError
// where the reason is found.
func Forbidden(err error, userNS bool) error { return forbidden(err, userNS) }

// hungUp tells from an error of the socket that the other side is gone, with or without
// having read what it was told.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

func (c *Child) setUp(o order) error {
	if err := c.waiting.Send(o); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	var r report
	files, err := c.waiting.Receive(&r)
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
// or why the child has ended instead: a *command.ExecError or a command.KilledError.
func (c *Child) Release() error { return c.waiting.Release(struct{}{}) }

// Abort ends a child that was not released, and closes everything.
func (c *Child) Abort() {
	c.waiting.Abort()
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
