package wire

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"sshbroker/profiles"
)

// farewell is how long the last record of a flow that is not ended in order may wait for
// room in the window.
const farewell = 2 * time.Second

// buffer holds one record with its header.
type buffer [headerSize + maxRecord]byte

// bufferPool lends buffers while data moves.
type bufferPool struct{ pool sync.Pool }

var buffers bufferPool

func (b *bufferPool) get() *buffer {
	if p, ok := b.pool.Get().(*buffer); ok {
		return p
	}
	return new(buffer)
}

func (b *bufferPool) put(p *buffer) { b.pool.Put(p) }

// writer is the direction to the far end.
type writer struct {
	mu     sync.Mutex // who holds it writes to ys; released by every wake of ys
	rest   []byte     // of a record that a deadline has interrupted: goes out first
	broken bool       // Close has interrupted a Write, so that there is no orderly end
	copies int        // calls of ReadFrom under way: the same
}

// Write returns when p was handed on. After a deadline it counts the record under way as
// written: it will be, before anything written later, unless the stream ends.
func (s *Stream) Write(p []byte) (n int, err error) {
	s.write.mu.Lock()
	defer s.write.mu.Unlock()
	if err := s.mayWrite(); err != nil {
		return 0, s.fault("write", err)
	}
	if len(p) == 0 {
		return 0, nil
	}
	buf := buffers.get()
	defer buffers.put(buf)
	for len(p) > 0 && err == nil {
		m := copy(buf[headerSize:], p)
		var taken bool
		if taken, err = s.writeRecord(buf, m); taken {
			n += m
			p = p[m:]
		}
	}
	return n, s.fault("write", err)
}

// ReadFrom carries src into the stream until src ends. It returns early when the stream
// ends or its deadline passes, but not out of a read from src: the caller ends that.
func (s *Stream) ReadFrom(src io.Reader) (n int64, err error) {
	s.write.copying(1)
	defer s.write.copying(-1)
	buf := buffers.get()
	defer buffers.put(buf)
	for {
		m, rerr := src.Read(buf[headerSize:])
		if m > 0 {
			s.write.mu.Lock()
			taken, err := false, s.mayWrite()
			if err == nil {
				taken, err = s.writeRecord(buf, m)
			}
			s.write.mu.Unlock()
			if taken {
				n += int64(m)
			}
			if err != nil {
				return n, s.fault("write", err)
			}
		}
		switch {
		case rerr == io.EOF:
			return n, nil
		case rerr != nil:
			return n, rerr
		}
	}
}

func (w *writer) copying(n int) {
	w.mu.Lock()
	w.copies += n
	w.mu.Unlock()
}

// mayWrite waits until what a deadline has left behind is sent. The caller holds write.mu.
func (s *Stream) mayWrite() error {
	if err := s.barred(&s.writeUntil); err != nil {
		return err
	}
	if err := s.goneError(); err != nil {
		return err
	}
	s.mu.Lock()
	ended := s.ourEnd
	s.mu.Unlock()
	if ended {
		return errPipe
	}
	return s.sendRest()
}

// goneError is why the far end takes no more, nil while it does.
func (s *Stream) goneError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.farGone
}

// writeRecord sends n bytes of data, which stand in buf behind the room for a header, and
// tells whether the stream has taken them. The caller holds write.mu.
func (s *Stream) writeRecord(buf *buffer, n int) (taken bool, err error) {
	header(buf[:], recordData, n)
	taken, err = s.put(buf[:headerSize+n])
	if taken {
		s.sent.Add(uint64(n))
	}
	if err == net.ErrClosed {
		s.write.broken = true
	}
	return taken, err
}

// put sends a record. Once a part of it is sent it counts as taken, and the rest waits for
// the next call. The caller holds write.mu.
func (s *Stream) put(record []byte) (taken bool, err error) {
	n, err := s.push(record)
	if n > 0 && n < len(record) {
		s.write.rest = append([]byte(nil), record[n:]...)
	}
	return n > 0, err
}

func (s *Stream) sendRest() error {
	n, err := s.push(s.write.rest)
	if s.write.rest = s.write.rest[n:]; len(s.write.rest) == 0 {
		s.write.rest = nil
	}
	return err
}

// push writes b to ys until it may not go on.
func (s *Stream) push(b []byte) (n int, err error) {
	for n < len(b) {
		if err := s.session.awaitRoom(s, len(b)); err != nil {
			return n, err
		}
		m, err := s.ys.Write(b[n:])
		if n += m; err == nil {
			continue
		}
		if err := s.barred(&s.writeUntil); err != nil {
			return n, err
		}
		if err := s.goneError(); err != nil {
			return n, err
		}
		if err := s.meaning(err); err != nil {
			s.gone(err)
			return n, err
		}
	}
	return n, nil
}

// CloseWrite ends our direction. Where the far end takes no more it does nothing.
func (s *Stream) CloseWrite() error {
	s.write.mu.Lock()
	defer s.write.mu.Unlock()
	switch err := s.mayWrite(); {
	case err == errPipe:
		return nil
	case err != nil:
		return s.fault("close", s.unlessReset(err))
	}
	taken, err := s.put(control(recordEnd, ""))
	if taken {
		s.endOurs()
	}
	return s.fault("close", s.unlessReset(err))
}

// endOurs notes that our direction has ended.
func (s *Stream) endOurs() {
	s.mu.Lock()
	s.ourEnd = true
	both := s.farEnd
	s.mu.Unlock()
	if both {
		s.closeOver()
	}
}

// unlessReset takes ErrReset away: there is nobody left to tell of our end.
func (s *Stream) unlessReset(err error) error {
	if errors.Is(err, profiles.ErrReset) {
		return nil
	}
	return err
}

// sayEnd sends what is left and our end, as long as that takes. The stream is shut and
// the caller holds write.mu; its FIN follows.
func (s *Stream) sayEnd() {
	if s.write.broken || s.write.copies > 0 {
		return // the FIN alone is a reset
	}
	s.say(time.Time{}, func(ourEnd bool) []byte {
		if ourEnd {
			return nil
		}
		return control(recordEnd, "")
	})
}

// sayReset says what a FIN would not say: that the end before it was not all, or why. It
// waits for room for a short time. The caller is as that of sayEnd.
func (s *Stream) sayReset(why string) {
	s.say(time.Now().Add(farewell), func(ourEnd bool) []byte {
		switch {
		case why != "":
			return control(recordEnded, printable(why, maxWords))
		case ourEnd:
			return control(recordReset, "")
		}
		return nil
	})
}

func (s *Stream) say(until time.Time, last func(ourEnd bool) []byte) {
	s.mu.Lock()
	gone := s.farGone != nil
	record := last(s.ourEnd)
	s.mu.Unlock()
	if gone || len(record)+len(s.write.rest) == 0 {
		return
	}
	s.wakeWriteAt(until)
	s.ys.Write(append(s.write.rest, record...)) // who is not there to hear it is gone
}
