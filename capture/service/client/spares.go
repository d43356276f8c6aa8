package client

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// spares are descriptors kept free for connections that are to come: a program must not
// be told that it is connected when nobody can serve it.
type spares struct {
	mu   sync.Mutex
	fds  []int
	want int
}

// add reserves one more, or says why it cannot.
func (s *spares) add() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.want++
	err := s.fill()
	if err != nil {
		s.want--
	}
	return err
}

// done takes one add back, and sees to it that as many are kept as are wanted still.
func (s *spares) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.want--
	for len(s.fds) > s.want {
		s.free()
	}
	_ = s.fill() // else the next add says so
}

// fill opens what is missing. The caller holds mu.
func (s *spares) fill() error {
	for len(s.fds) < s.want {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC) // any will do
		if err != nil {
			return os.NewSyscallError("eventfd", err)
		}
		s.fds = append(s.fds, fd)
	}
	return nil
}

// free makes room for one descriptor, which the next done makes good. The caller holds mu.
func (s *spares) free() {
	if last := len(s.fds) - 1; last >= 0 {
		unix.Close(s.fds[last])
		s.fds = s.fds[:last]
	}
}
