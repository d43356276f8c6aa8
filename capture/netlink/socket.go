package netlink

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"sshbroker/capture/descriptor"
)

// Socket belongs to the network namespace in which it was made, whichever process holds
// it. It is safe for concurrent use, as far as one reader does not miss what another got.
type Socket struct {
	file *os.File
	raw  syscall.RawConn
	port uint32
}

// Open makes a socket of a netlink family in the current network namespace, which hears
// of groups, a bit each.
func Open(family int, groups uint32) (*Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, family)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return Adopt(os.NewFile(uintptr(fd), "netlink"))
}

// Adopt takes over a socket made elsewhere. It owns f from now on, also where it fails.
func Adopt(f *os.File) (*Socket, error) {
	raw, err := f.SyscallConn()
	s := &Socket{file: f, raw: raw}
	if err == nil {
		err = s.Control(func(fd int) error {
			name, err := unix.Getsockname(fd)
			if own, ok := name.(*unix.SockaddrNetlink); ok {
				s.port = own.Pid
				return nil
			}
			return errors.Join(err, unix.EPROTOTYPE)
		})
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

// Port is the socket's address, by which the kernel knows it.
func (s *Socket) Port() uint32 { return s.port }

// File is the socket, to be duplicated into another process. The Socket keeps owning it.
func (s *Socket) File() *os.File { return s.file }

// Close closes this process's descriptor, and ends a Receive with os.ErrClosed.
func (s *Socket) Close() error { return s.file.Close() }

// Control calls f with the descriptor.
func (s *Socket) Control(f func(fd int) error) error { return descriptor.Control(s.file, f) }

// Send sends b to the kernel as one datagram.
func (s *Socket) Send(b []byte) error {
	var serr error
	err := s.raw.Write(func(fd uintptr) bool {
		serr = unix.Sendto(int(fd), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return serr != unix.EAGAIN && serr != unix.EINTR
	})
	if err != nil {
		return os.ErrClosed // no deadline is ever set, so nothing else ends the wait
	}
	return os.NewSyscallError("sendto", serr)
}

// Receive waits for a datagram and reads it into buf. unix.ENOBUFS means that some did
// not fit into the socket's buffer and are lost.
func (s *Socket) Receive(buf []byte) (b []byte, err error) {
	var n int
	cerr := s.raw.Read(func(fd uintptr) bool {
		n, _, err = unix.Recvfrom(int(fd), buf, 0)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	if cerr != nil {
		return nil, os.ErrClosed
	}
	return buf[:max(n, 0)], os.NewSyscallError("recvfrom", err)
}

// Poll is Receive without waiting: where there is nothing, unix.EAGAIN.
func (s *Socket) Poll(buf []byte) (b []byte, err error) {
	err = s.Control(func(fd int) error {
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		b = buf[:max(n, 0)]
		return os.NewSyscallError("recvfrom", err)
	})
	return b, err
}

// Asker is a socket, which has to be set, for questions with one message for an answer.
// It is safe for concurrent use, but nobody else may read from it.
type Asker struct {
	*Socket
	mu  sync.Mutex // one question at a time
	seq uint32
	buf [4096]byte
}

// Ask sends a message with those parts and returns the answer, which may be a refusal:
// see Message.Err.
func (a *Asker) Ask(typ uint16, parts ...[]byte) (Message, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seq++
	err := a.Send(Append(nil, typ, unix.NLM_F_REQUEST, a.seq, parts...))
	for err == nil {
		var b []byte
		if b, err = a.Receive(a.buf[:]); err != nil {
			break
		}
		answers, perr := Messages(b)
		// Another number is the answer to a question that was given up.
		if len(answers) > 0 && answers[0].Seq == a.seq {
			answer := answers[0]
			answer.Body = bytes.Clone(answer.Body)
			return answer, nil
		}
		err = perr
	}
	return Message{}, fmt.Errorf("ask the kernel: %w", err)
}
