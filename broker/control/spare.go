package control

import (
	"errors"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// spare is a descriptor that is given up when there is no other, so that the broker can
// still be asked what has taken them all. One client at a time has it.
type spare struct {
	mu     sync.Mutex
	file   *os.File // nil: given up, or there is none
	closed bool
}

// take has it at hand again, if there is one.
func (s *spare) take() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil && !s.closed {
		s.file, _ = os.Open(os.DevNull)
	}
}

// giveUp reports whether there is one descriptor more now.
func (s *spare) giveUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	file := s.file
	s.file = nil
	return file != nil && file.Close() == nil
}

// close lets go of it for good.
func (s *spare) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.giveUp()
}

// AcceptUnix waits for the next client, for whom the spare descriptor is given up where
// there is no other.
func (l *Listener) AcceptUnix() (*net.UnixConn, error) {
	l.spare.take()
	c, err := l.UnixListener.AcceptUnix()
	if errors.Is(err, unix.EMFILE) && l.spare.giveUp() {
		return l.UnixListener.AcceptUnix()
	}
	return c, err
}
