package wire

import (
	"io"
	"net"
	"sync"
	"time"
)

// A stream that has been quiet for so long after it has received so much gives back the
// buffer that yamux has grown for it.
const (
	quiet      = time.Second
	worthwhile = 16 << 10
)

// reader is the direction from the far end.
type reader struct {
	mu     sync.Mutex // who holds it reads ys; released by every wake of ys
	parser parser
	err    error // for every Read from now on
	grown  int   // bytes received since the buffer was given back

	// Guarded by the stream's mu.
	armed bool // a wake after quiet is set
	mark  int  // grown then
}

// Read is net.Conn's; see profiles.Stream for its errors.
func (s *Stream) Read(p []byte) (int, error) {
	s.read.mu.Lock()
	defer s.read.mu.Unlock()
	n, err := s.readSome(p)
	return n, s.fault("read", err)
}

// readSome reads what there is of one record. The caller holds read.mu.
func (s *Stream) readSome(p []byte) (int, error) {
	if err := s.awaitData(len(p) == 0); err != nil || len(p) == 0 {
		return 0, err
	}
	for {
		n, err := s.ys.Read(p[:min(len(p), s.read.parser.left)])
		s.read.parser.left -= n
		if n > 0 {
			s.received.Add(uint64(n))
			s.read.grown += n
			return n, nil
		}
		if err := s.readFailure(fromBelow{err}); err != nil {
			return 0, err
		}
	}
}

// awaitData waits until the next byte is one of the flow's, without a buffer. With
// atOnce it does not wait. The caller holds read.mu.
func (s *Stream) awaitData(atOnce bool) error {
	r := &s.read
	for {
		if err := s.barred(&s.readUntil); err != nil {
			return err
		}
		if r.err != nil {
			return r.err
		}
		if atOnce || r.parser.left > 0 {
			return nil
		}
		s.arm()
		if err := r.parser.next(s.ys); err != nil {
			if err := s.readFailure(err); err != nil {
				return err
			}
			s.relax()
		}
	}
}

// arm has a wait for data end when it was quiet for a while.
func (s *Stream) arm() {
	r := &s.read
	if r.grown < worthwhile {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := time.Now().Add(quiet)
	if !r.armed && !s.shut && (s.readUntil.IsZero() || at.Before(s.readUntil)) {
		r.armed, r.mark = true, r.grown
		s.wakeReadAt(at)
	}
}

// relax gives the buffer back where nothing has come since arm.
func (s *Stream) relax() {
	r := &s.read
	s.mu.Lock()
	defer s.mu.Unlock()
	if !r.armed {
		return
	}
	r.armed = false
	if !s.shut {
		s.wakeReadAt(s.readUntil)
	}
	if r.grown == r.mark {
		s.ys.Shrink()
		r.grown = 0
	}
}

// readFailure is what a failure to read means, nil where it is to be tried again. What
// the far end has said counts before our own deadline, as it is said but once.
func (s *Stream) readFailure(err error) error {
	if err == io.EOF {
		s.read.err = io.EOF
		s.farHasEnded()
		return io.EOF
	}
	if _, below := err.(fromBelow); below {
		if err := s.barred(&s.readUntil); err != nil {
			return err
		}
	}
	if err = s.meaning(err); err != nil {
		s.read.err = err
		s.note()
		s.gone(err)
	}
	return err
}

// note keeps the far end's words.
func (s *Stream) note() {
	if words, whole := s.read.parser.said(); whole {
		s.mu.Lock()
		s.words = words
		s.mu.Unlock()
	}
}

// farHasEnded notes the far end's orderly end. Until our end somebody has to read on, for
// a reset or the sign that it takes no more: Read has nothing to do there any more.
func (s *Stream) farHasEnded() {
	s.mu.Lock()
	s.farEnd = true
	both := s.ourEnd
	s.mu.Unlock()
	if both {
		s.closeOver()
	} else if s.listen() {
		go s.watch()
	}
}

// listen takes the deadline from a read half that no Read uses any more. False: the
// stream is shut, and there is nothing that would have to be read.
func (s *Stream) listen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.shut {
		s.wakeReadAt(time.Time{})
	}
	return !s.shut
}

// watch waits for the end of everything from a far end that has ended its direction.
func (s *Stream) watch() {
	for {
		if err := s.meaning(s.read.parser.next(s.ys)); err != nil {
			s.note()
			s.gone(err)
			return
		}
		if !s.listen() { // else it was somebody's deadline that woke us
			return
		}
	}
}

// leave has readers leave a stream that was shut, and tells whether the far end may still
// send.
func (r *reader) leave() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return false
	}
	r.err = net.ErrClosed
	return true
}

// drain throws away what the far end still sends, so that its writers get on and see
// that we have gone. Nobody else reads by now.
func (s *Stream) drain() {
	s.wakeReadAt(time.Time{})
	var waste [4 << 10]byte
	for {
		if _, err := s.ys.Read(waste[:]); err != nil {
			return
		}
	}
}

// WriteTo delivers to dst until the stream's end. It has a buffer only while there is
// data. A write to dst that blocks is waited for.
func (s *Stream) WriteTo(dst io.Writer) (n int64, err error) {
	for {
		m, err := s.pass(dst)
		n += int64(m)
		switch {
		case err == io.EOF:
			return n, nil
		case err != nil:
			return n, err
		}
	}
}

// pass waits for data and writes it to dst.
func (s *Stream) pass(dst io.Writer) (int, error) {
	s.read.mu.Lock()
	if err := s.awaitData(false); err != nil {
		s.read.mu.Unlock()
		return 0, s.fault("read", err)
	}
	buf := buffers.get()
	defer buffers.put(buf)
	n, err := s.readSome(buf[:])
	s.read.mu.Unlock()
	if err != nil {
		return 0, s.fault("read", err)
	}
	m, err := dst.Write(buf[:n])
	if err == nil && m < n {
		err = io.ErrShortWrite
	}
	return m, err
}
