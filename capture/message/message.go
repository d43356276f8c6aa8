package message

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"sshbroker/capture/descriptor"
)

// Limits of one message. What is beyond is an error at the side that sends.
const (
	MaxBytes = 1 << 20
	MaxFiles = 32
)

// ErrTooBig means that a message does not fit.
var ErrTooBig = errors.New("message too big")

// Conn is one end of a connection. Send and Receive are safe for concurrent use with
// each other, and Send with itself; Receive is for one goroutine.
type Conn struct {
	file *os.File
	raw  syscall.RawConn

	send sync.Mutex
	in   []byte // grows to the largest message that came
	oob  []byte
}

// New makes a Conn of a connected SOCK_SEQPACKET socket, which it owns from now on.
func New(f *os.File) (*Conn, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Conn{file: f, raw: raw, in: make([]byte, 4<<10), oob: make([]byte, unix.CmsgSpace(MaxFiles*4))}, nil
}

// File is the socket. The Conn keeps owning it.
func (c *Conn) File() *os.File { return c.file }

// Close ends the connection, and a Receive that waits, with os.ErrClosed.
func (c *Conn) Close() error { return c.file.Close() }

// Send sends v as JSON, and duplicates of files, which the caller keeps. It waits
// while the other side does not read.
func (c *Conn) Send(v any, files ...*os.File) error {
	if len(files) > MaxFiles {
		return fmt.Errorf("%w: %d descriptors", ErrTooBig, len(files))
	}
	fds := make([]int, len(files))
	for i, f := range files {
		var err error
		if fds[i], err = number(f); err != nil {
			return err
		}
	}
	return c.write(v, fds)
}

// SendSocket sends v with a duplicate of one socket, which the caller keeps.
func (c *Conn) SendSocket(v any, socket syscall.Conn) error {
	fd, err := number(socket)
	if err != nil {
		return err
	}
	return c.write(v, []int{fd})
}

func (c *Conn) write(v any, fds []int) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > MaxBytes {
		return fmt.Errorf("%w: %d bytes", ErrTooBig, len(b))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	c.send.Lock()
	defer c.send.Unlock()
	var serr error
	err = c.raw.Write(func(fd uintptr) bool {
		serr = unix.Sendmsg(int(fd), b, oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		return serr != unix.EAGAIN && serr != unix.EINTR
	})
	if err != nil {
		return os.ErrClosed
	}
	return os.NewSyscallError("sendmsg", serr)
}

func number(f syscall.Conn) (n int, err error) {
	err = descriptor.Control(f, func(fd int) error { n = fd; return nil })
	return n, err
}

// Receive waits for one message and reads it into v. The caller owns files, also
// where there is an error. io.EOF means that the other side is gone.
func (c *Conn) Receive(v any) (files []*os.File, err error) {
	var n, oobn int
	var rerr error
	err = c.raw.Read(func(fd uintptr) bool {
		for {
			// Its length first: a message that does not fit would be cut.
			if n, _, _, _, rerr = unix.Recvmsg(int(fd), nil, nil, unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT); rerr == nil {
				if n > len(c.in) {
					c.in = make([]byte, min(n, MaxBytes))
				}
				n, oobn, _, _, rerr = unix.Recvmsg(int(fd), c.in, c.oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
			}
			if rerr != unix.EINTR {
				return rerr != unix.EAGAIN
			}
		}
	})
	if err != nil {
		return nil, os.ErrClosed
	}
	if rerr != nil {
		return nil, os.NewSyscallError("recvmsg", rerr)
	}
	files, err = parseFiles(c.oob[:oobn])
	switch {
	case err != nil:
		return files, err
	case n == 0:
		return files, io.EOF
	}
	return files, json.Unmarshal(c.in[:n], v)
}

func parseFiles(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // credentials, say
		}
		for _, fd := range fds {
			_ = unix.SetNonblock(fd, true) // sockets and pidfds go through the poller
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// CloseAll closes every one of files.
func CloseAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
