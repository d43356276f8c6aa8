package sshtun

import (
	"io"
	"net"
	"os"
	"sync"
)

// errTimeout satisfies net.Error.
var errTimeout = os.ErrDeadlineExceeded

// smallRead is the buffer of a stream that says little; see readBuffer.
const smallRead = 512

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.readSome(p)
	return n, s.fault("read", err)
}

func (s *stream) readSome(p []byte) (int, error) {
	h := &s.read
	if err := s.take(h); err != nil {
		return 0, err
	}
	defer h.give()
	if len(p) == 0 {
		return 0, nil
	}
	if err := s.refill(); err != nil {
		return 0, err
	}
	n := copy(p, h.buf)
	s.keep(h.buf[n:])
	s.received.Add(uint64(n))
	return n, nil
}

// refill waits until there is data in the buffer. The caller has the turn.
func (s *stream) refill() error {
	h := &s.read
	for len(h.buf) == 0 {
		if h.err != nil {
			return h.err
		}
		if !h.busy {
			h.busy = true
			buf := s.readBuffer()
			go func() {
				n, err := s.ch.Read(buf)
				h.rich = enough(buf, n)
				h.results <- s.gotData(buf, n, err)
			}()
		}
		r, err := s.await(h)
		if err != nil {
			return err
		}
		h.whole = r.buf
		s.keep(r.buf)
		h.err = r.err
	}
	return nil
}

// keep sets what is left of the buffer and gives an emptied one back.
func (s *stream) keep(rest []byte) {
	h := &s.read
	if h.buf = rest; len(rest) == 0 {
		s.t.buffers.put(h.whole)
		h.buf, h.whole = nil, nil
	}
}

func (s *stream) gotData(buf []byte, n int, err error) result {
	if err != nil {
		err = s.endOfData()
	}
	return result{buf: buf[:n], err: err}
}

// readBuffer returns the buffer for the next call. A stream that waits holds its
// buffer, and thousands of streams wait: so one that got little last time waits with
// a small one, and takes the large one once that was filled.
func (s *stream) readBuffer() []byte {
	h := &s.read
	if h.rich {
		return s.t.buffers.get()
	}
	if h.small == nil {
		h.small = make([]byte, smallRead)
	}
	return h.small
}

// enough tells whether a read brought so much that more is likely to come.
func enough(buf []byte, n int) bool { return n == len(buf) || n > 8*smallRead }

// delivery is a WriteTo under way. Its goroutine reads the channel and writes to
// the destination by itself, which spares a wake-up and a copy for each packet; the
// caller can still leave it behind in the channel.
type delivery struct {
	mu   sync.Mutex // held while writing to dst
	left bool       // the caller has gone
	n    int64
}

// WriteTo delivers to dst until the stream's end. A write to dst that blocks is
// waited for.
func (s *stream) WriteTo(dst io.Writer) (int64, error) {
	n, err := s.deliver(dst)
	if err == io.EOF {
		err = nil
	}
	return n, err
}

func (s *stream) deliver(dst io.Writer) (int64, error) {
	h := &s.read
	if err := s.take(h); err != nil {
		return 0, s.fault("read", err)
	}
	defer h.give()
	var n int64
	if h.busy || len(h.buf) > 0 || h.err != nil { // what an earlier Read left behind
		if err := s.refill(); err != nil {
			return 0, s.fault("read", err)
		}
		m, err := dst.Write(h.buf)
		s.received.Add(uint64(m))
		n += int64(m)
		s.keep(h.buf[m:])
		if err != nil {
			return n, err
		}
	}
	d := &delivery{}
	h.busy = true
	go func() { h.results <- s.deliverAll(d, dst) }()
	select {
	case r := <-h.results:
		h.busy = false
		if _, mine := r.err.(writerError); mine {
			return n + d.n, r.err.(writerError).error
		}
		h.err = r.err
		return n + d.n, s.fault("read", r.err)
	case <-h.deadline.passed():
		return n + d.leave(), s.fault("read", errTimeout)
	case <-s.closed:
		return n + d.leave(), s.fault("read", net.ErrClosed)
	}
}

// leave keeps the goroutine from writing to dst from now on.
func (d *delivery) leave() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left = true
	return d.n
}

// writerError marks an error as the destination's.
type writerError struct{ error }

// deliverAll runs in a goroutine of its own with the read half to itself. What it
// read when the caller has gone is kept for the next Read.
func (s *stream) deliverAll(d *delivery, dst io.Writer) result {
	h := &s.read
	for {
		buf := s.readBuffer()
		n, err := s.ch.Read(buf)
		r := s.gotData(buf, n, err)
		large := len(buf) > smallRead
		h.rich = enough(buf, n)
		if n > 0 {
			d.mu.Lock()
			if d.left {
				d.mu.Unlock()
				return r
			}
			m, werr := dst.Write(buf[:n])
			d.n += int64(m)
			d.mu.Unlock()
			s.received.Add(uint64(m))
			if werr == nil && m < n {
				werr = io.ErrShortWrite
			}
			if werr != nil {
				return result{err: writerError{werr}}
			}
		}
		if large {
			s.t.buffers.put(buf)
		}
		if r.err != nil {
			return result{err: r.err}
		}
	}
}
