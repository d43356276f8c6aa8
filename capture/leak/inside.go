package leak

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"sshbroker/capture/leak/ways"
	"sshbroker/capture/message"
)

// Hello is what the process inside says first.
type Hello struct {
	NetNS uint64 `json:"netns"` // inode of its network namespace
}

// NetNS is the inode of this process's network namespace.
func NetNS() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: "/proc/self/ns/net", Err: err}
	}
	return st.Ino, nil
}

// ErrGone means that the half outside is gone without having said that all is well.
var ErrGone = errors.New("whoever asked for the probes is gone")

// Serve is the half inside: it makes the probes that it is asked for, until the other half
// is done with it. conn is the descriptor's number, as it stands on the command line.
func Serve(conn string) error {
	fd, err := strconv.Atoi(conn)
	if err != nil {
		return errors.New("not the number of a descriptor: " + conn)
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return os.NewSyscallError("descriptor "+conn, err)
	}
	c, err := message.New(os.NewFile(uintptr(fd), "probes"))
	if err != nil {
		return err
	}
	defer c.Close()
	ns, err := NetNS()
	if err != nil {
		return err
	}
	if err := c.Send(Hello{ns}); err != nil {
		return err
	}
	for {
		var r ways.Request
		files, err := c.Receive(&r)
		message.CloseAll(files)
		switch {
		case errors.Is(err, io.EOF):
			return ErrGone
		case err != nil:
			return err
		case r.Probe == "":
			return nil
		}
		if err := c.Send(ways.Do(r)); err != nil {
			return err
		}
	}
}

// Remote is the half outside.
type Remote struct{ conn *message.Conn }

// NewRemote speaks to Serve at the other end of a connected SOCK_SEQPACKET socket, which it
// owns from now on, and hears whether that is in another network than this process.
func NewRemote(ctx context.Context, socket *os.File) (*Remote, bool, error) {
	c, err := message.New(socket)
	if err != nil {
		return nil, false, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	var h Hello
	files, err := c.Receive(&h)
	message.CloseAll(files)
	here, nerr := NetNS()
	if err = errors.Join(err, nerr); err != nil {
		c.Close()
		return nil, false, inTime(ctx, err)
	}
	return &Remote{c}, h.NetNS != here, nil
}

// Do is the Doer. After an error the Remote is of no more use.
func (m *Remote) Do(ctx context.Context, r ways.Request) (ways.Result, error) {
	stop := context.AfterFunc(ctx, func() { m.conn.Close() })
	defer stop()
	if err := m.conn.Send(r); err != nil {
		return ways.Result{}, inTime(ctx, err)
	}
	var res ways.Result
	files, err := m.conn.Receive(&res)
	message.CloseAll(files)
	return res, inTime(ctx, err)
}

// Done lets the half inside go on: its Serve returns nil.
func (m *Remote) Done() error { return m.conn.Send(ways.Request{}) }

// Close ends the connection. Without Done, the half inside hears that nobody is there.
func (m *Remote) Close() { m.conn.Close() }

// inTime is ctx's error where that is why another happened.
func inTime(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
