package inquiry

import (
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const maxAnswer = 4096

// Socket answers for the network namespace in which it was made, from whichever
// process holds it. Safe for concurrent use.
type Socket struct {
	mu   sync.Mutex // one question at a time
	file *os.File
	raw  syscall.RawConn
	seq  uint32
	buf  [maxAnswer]byte
}

// Open makes a socket of a netlink family in the current network namespace.
func Open(family int, name string) (*Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, family)
	if err != nil {
		return nil, err
	}
	return Adopt(os.NewFile(uintptr(fd), name))
}

// Adopt takes over a socket made elsewhere, and owns it.
func Adopt(f *os.File) (*Socket, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Socket{file: f, raw: raw}, nil
}

// File is the socket, to be duplicated into another process.
func (s *Socket) File() *os.File { return s.file }

// Close closes the socket and ends a question that is under way.
func (s *Socket) Close() error { return s.file.Close() }

// Ask sends one netlink message, whose length and sequence number it fills in, and
// hands the answer to read, which must not keep it.
func (s *Socket) Ask(question []byte, read func(answer []byte) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	binary.NativeEndian.PutUint32(question, uint32(len(question)))
	binary.NativeEndian.PutUint32(question[8:], s.seq)
	var n int
	var serr error
	err := s.raw.Write(func(fd uintptr) bool {
		serr = unix.Sendto(int(fd), question, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return serr != unix.EAGAIN && serr != unix.EINTR
	})
	for err == nil && serr == nil {
		err = s.raw.Read(func(fd uintptr) bool {
			n, _, serr = unix.Recvfrom(int(fd), s.buf[:], 0)
			return serr != unix.EAGAIN && serr != unix.EINTR
		})
		if err != nil || serr != nil {
			break
		}
		// Another number is the answer to a question that was given up.
		if b := s.buf[:n]; n >= unix.SizeofNlMsghdr && binary.NativeEndian.Uint32(b[8:]) == s.seq {
			return read(b)
		}
	}
	return errors.Join(err, serr)
}
