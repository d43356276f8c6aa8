package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture/message"
	"sshbroker/capture/service"
)

var (
	// ErrNotRunning means that nobody listens: ssh-captured is not installed, or not started.
	ErrNotRunning = errors.New("ssh-captured is not running")
	// ErrLost means that the connection ended before the answer came.
	ErrLost = errors.New("connection to ssh-captured lost")
	// ErrNoCarrier is what Hand returns where the owner has no broker that carries.
	ErrNoCarrier = errors.New("no broker of the owner carries")
)

// fullPause is how long to wait for ssh-captured to accept others before us.
const fullPause = 5 * time.Millisecond

// helloWithin is how long ssh-captured may take to answer: where the service manager has
// made its socket, one can connect while it cannot be started.
const helloWithin = 10 * time.Second

// Dialer says where ssh-captured is.
type Dialer struct {
	Path    string // "": service.EnvSocket, else service.DefaultSocket
	Program string // the caller's name and version, for people
	// AnyOwner takes an answer from somebody else than root, too: for tests.
	AnyOwner bool

	patience time.Duration // 0: helloWithin
}

// wire carries messages, as message.Conn does.
type wire interface {
	Send(v any, files ...*os.File) error
	Receive(v any) ([]*os.File, error)
	Close() error
}

// dial connects and exchanges hellos. room may be nil.
func (d Dialer) dial(ctx context.Context, room *spares) (wire, error) {
	path := d.Path
	if path == "" {
		path = os.Getenv(service.EnvSocket)
	}
	if path == "" {
		path = service.DefaultSocket
	}
	patience := cmp.Or(d.patience, helloWithin)
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("%w: it does not answer within %v", ErrLost, patience))
	defer cancel()
	s, err := d.connect(ctx, path, room)
	if err == nil {
		if err = d.hello(ctx, s); err == nil {
			return s, nil
		}
		s.Close()
	}
	return nil, fmt.Errorf("ssh-captured at %s: %w", path, err)
}

func (d Dialer) connect(ctx context.Context, path string, room *spares) (*socket, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// A Spec is one packet and may be long. More than the host's limit is not to be had.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, message.MaxBytes)
	for {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		if err != unix.EAGAIN && err != unix.EINTR {
			break
		}
		select { // its backlog is full, and there is nothing to poll for
		case <-time.After(fullPause):
		case <-ctx.Done():
			unix.Close(fd)
			return nil, context.Cause(ctx)
		}
	}
	if err == nil && !d.AnyOwner {
		var peer *unix.Ucred
		peer, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil && peer.Uid != 0 {
			err = fmt.Errorf("the socket is served by uid %d, not by root: it is not used", peer.Uid)
		}
	}
	if err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
			err = fmt.Errorf("%w: %w", ErrNotRunning, err)
		}
		return nil, err
	}
	return newSocket(os.NewFile(uintptr(fd), path), room)
}

func (d Dialer) hello(ctx context.Context, w wire) error {
	stop := context.AfterFunc(ctx, func() { w.Close() })
	var theirs service.Message
	err := w.Send(service.Message{Op: service.OpHello, Hello: &service.Hello{Version: service.Version, Program: d.Program, PID: os.Getpid()}})
	if err == nil {
		var files []*os.File
		files, err = w.Receive(&theirs)
		message.CloseAll(files)
	}
	switch {
	case !stop(): // and w is closed
		return context.Cause(ctx)
	case err == io.EOF, errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		return fmt.Errorf("%w: it said no hello", ErrLost)
	case err != nil:
		return fmt.Errorf("hello: %w", err)
	case theirs.Error != nil:
		return theirs.Error
	case theirs.Op != service.OpHello || theirs.Hello == nil:
		return fmt.Errorf("hello: it says %q first", theirs.Op)
	case theirs.Hello.Version != service.Version:
		return &service.Error{
			Code: service.CodeVersion,
			Message: fmt.Sprintf("%s speaks version %d of the protocol, and this program version %d",
				theirs.Hello.Program, theirs.Hello.Version, service.Version),
			Hint: "install both from the same release, and restart ssh-captured and the brokers",
		}
	}
	return nil
}

// socket is a message.Conn that makes room for the descriptors that come.
type socket struct {
	*message.Conn
	raw  syscall.RawConn
	room *spares // nil: none is kept
}

func newSocket(f *os.File, room *spares) (*socket, error) {
	c, err := message.New(f)
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		c.Close()
		return nil, err
	}
	return &socket{c, raw, room}, nil
}

// Receive is message.Conn's. A descriptor for which there is no room would be lost
// without a word, so one is freed first where one comes.
func (s *socket) Receive(v any) ([]*os.File, error) {
	if s.room == nil {
		return s.Conn.Receive(v)
	}
	comes := false
	if err := s.raw.Read(func(fd uintptr) bool {
		// A look without room for control data is told by MSG_CTRUNC that there is some.
		_, _, flags, _, err := unix.Recvmsg(int(fd), nil, nil, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		comes = err == nil && flags&unix.MSG_CTRUNC != 0
		return err != unix.EAGAIN && err != unix.EINTR // any other error comes again, or what it hid
	}); err != nil {
		return nil, os.ErrClosed
	}
	if !comes {
		return s.Conn.Receive(v)
	}
	s.room.mu.Lock() // nobody else may reserve what is freed
	defer s.room.mu.Unlock()
	s.room.free()
	return s.Conn.Receive(v)
}
