package sshtun

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
)

// stream is one direct-tcpip channel.
//
// The library's channel can block in Read and Write for as long as the server
// pleases, and its Close does not end that. So every call that may block runs in a
// goroutine that can be left behind: it ends at the latest with the transport.
type stream struct {
	t             *Transport
	ch            ssh.Channel
	local, remote net.Addr

	read, write half
	sent        atomic.Uint64
	received    atomic.Uint64

	gone   chan struct{} // the library has ended the channel: CLOSE, or transport lost
	over   chan struct{} // farEnd is decided; Closed
	sawEOF chan struct{} // the far end ended its direction in order
	farEnd error         // what a reader gets at the end; written before over is closed

	endMu     sync.Mutex
	ended     bool
	closed    chan struct{} // we closed or reset it
	eofSent   bool          // guarded by endMu
	eofByGone bool          // eofSent when the channel went; guarded by endMu

	leaveDelivery func() // of a DeliverTo under way; guarded by endMu
}

var (
	_ profiles.Stream    = (*stream)(nil)
	_ profiles.FarCloser = (*stream)(nil)
	_ profiles.Counter   = (*stream)(nil)
	_ io.ReaderFrom      = (*stream)(nil)
	_ io.WriterTo        = (*stream)(nil)
	_ profiles.Carrier   = (*stream)(nil)
)

// half is one direction: a turn that its callers take, and at most one call of the
// library that was left behind or is being waited for.
type half struct {
	turn     chan struct{}
	deadline *deadline

	// Guarded by the turn.
	busy    bool        // a call is out
	results chan result // what it gives; one, as only one is out
	buf     []byte      // read only: data that nobody has taken yet
	whole   []byte      // read only: the buffer that buf lies in
	err     error       // read only: what comes after buf
	small   []byte      // read only: for a stream that says little
	rich    bool        // read only: the last read filled its buffer
}

type result struct {
	buf []byte
	err error
}

func newHalf() half {
	return half{turn: make(chan struct{}, 1), deadline: newDeadline(), results: make(chan result, 1)}
}

// newStream takes a confirmed channel over. Requests on it are answered, its
// extended data is thrown away, both until it ends.
func newStream(t *Transport, ch ssh.Channel, reqs <-chan *ssh.Request, dst profiles.Destination) *stream {
	s := &stream{
		t:      t,
		ch:     ch,
		local:  t.wire.LocalAddr(),
		remote: dst.Addr(),
		read:   newHalf(),
		write:  newHalf(),
		gone:   make(chan struct{}),
		over:   make(chan struct{}),
		sawEOF: make(chan struct{}),
		closed: make(chan struct{}),
	}
	if dst.Origin.IsValid() {
		s.local = net.TCPAddrFromAddrPort(dst.Origin)
	}
	go s.watchClose(reqs)
	go s.watchEOF()
	return s
}

// watchClose answers the channel's requests until there are no more, which is the
// end of the channel, and then finds out which end it was.
func (s *stream) watchClose(reqs <-chan *ssh.Request) {
	for r := range reqs {
		r.Reply(false, nil)
	}
	s.endMu.Lock()
	s.eofByGone = s.eofSent
	s.endMu.Unlock()
	close(s.gone)
	// The library ends its channels in the same way for a CLOSE and for a lost
	// transport. After the latter its reader never comes back for more.
	switch {
	case !s.t.wire.AwaitReader(s.t.done):
		s.farEnd = s.t.Err()
	case s.eofByGone:
		s.farEnd = io.EOF
	default:
		s.farEnd = profiles.ErrReset
	}
	close(s.over)
}

// watchEOF throws extended data away (a server may send it, and it takes room in the
// window) until it ends, which it does together with the data.
func (s *stream) watchEOF() {
	extended := s.ch.Stderr()
	var waste [64]byte
	for {
		if _, err := extended.Read(waste[:]); err != nil {
			break
		}
	}
	// EOF or CLOSE? For a CLOSE the library first answers, and from then on it turns
	// down whatever else is sent on the channel. So send something that the server
	// ignores, RFC 4254 section 5.4. That a transport is lost the library may not yet
	// know here, but its reader has gone for good.
	if isDone(s.gone) {
		return
	}
	if _, err := s.ch.SendRequest("keepalive@openssh.com", false, nil); err == nil && s.t.wire.AwaitReader(s.t.done) {
		close(s.sawEOF)
	}
}

// endOfData is the error for a reader that has got everything.
func (s *stream) endOfData() error {
	select {
	case <-s.sawEOF:
		return io.EOF
	case <-s.over:
	}
	select {
	case <-s.sawEOF:
		return io.EOF
	default:
		return s.farEnd
	}
}

// writeFailure is the error for a writer whom the library turned away.
func (s *stream) writeFailure() error {
	<-s.over
	if errors.Is(s.farEnd, profiles.ErrLost) {
		return s.farEnd
	}
	return profiles.ErrReset
}

func (s *stream) Closed() <-chan struct{}  { return s.over }
func (s *stream) Counts() (uint64, uint64) { return s.sent.Load(), s.received.Load() }
func (s *stream) LocalAddr() net.Addr      { return s.local }
func (s *stream) RemoteAddr() net.Addr     { return s.remote }
func (s *stream) isClosed() bool           { return isDone(s.closed) }
func (s *stream) SetReadDeadline(t time.Time) error {
	if s.isClosed() {
		return s.fault("set", net.ErrClosed)
	}
	s.read.deadline.set(t)
	return nil
}

func (s *stream) SetWriteDeadline(t time.Time) error {
	if s.isClosed() {
		return s.fault("set", net.ErrClosed)
	}
	s.write.deadline.set(t)
	return nil
}

func (s *stream) SetDeadline(t time.Time) error {
	if err := s.SetReadDeadline(t); err != nil {
		return err
	}
	return s.SetWriteDeadline(t)
}

// fault dresses an error as the net package does. io.EOF stays as it is.
func (s *stream) fault(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "ssh", Source: s.local, Addr: s.remote, Err: err}
}

// take waits for the turn of one direction.
func (s *stream) take(h *half) error {
	if s.isClosed() {
		return net.ErrClosed
	}
	if isDone(h.deadline.passed()) {
		return errTimeout
	}
	select {
	case h.turn <- struct{}{}:
		return nil
	case <-h.deadline.passed():
		return errTimeout
	case <-s.closed:
		return net.ErrClosed
	}
}

func (h *half) give() { <-h.turn }

// await waits for the call that is out. The caller has the turn.
func (s *stream) await(h *half) (result, error) {
	select {
	case r := <-h.results:
		h.busy = false
		return r, nil
	case <-h.deadline.passed():
		return result{}, errTimeout
	case <-s.closed:
		return result{}, net.ErrClosed
	}
}

// CloseWrite sends EOF once. On a channel that has already ended it does nothing.
func (s *stream) CloseWrite() error {
	h := &s.write
	if err := s.take(h); err != nil {
		return s.fault("close", err)
	}
	defer h.give()
	if h.busy { // a write that a deadline left behind goes first
		if _, err := s.await(h); err != nil {
			return s.fault("close", err)
		}
	}
	s.endMu.Lock()
	first := !s.eofSent
	s.eofSent = true
	s.endMu.Unlock()
	if !first {
		return nil
	}
	h.busy = true
	go func() { h.results <- result{err: s.ch.CloseWrite()} }()
	r, err := s.await(h)
	if err == nil && r.err != nil && isDone(s.t.done) {
		err = s.t.Err()
	}
	return s.fault("close", err)
}

// Close ends the stream in order: what was written is sent, then EOF and CLOSE.
func (s *stream) Close() error { return s.end(true) }

// Reset ends the stream with CLOSE alone.
func (s *stream) Reset() error { return s.end(false) }

func (s *stream) end(orderly bool) error {
	s.endMu.Lock()
	first := !s.ended
	s.ended = true
	leave := s.leaveDelivery
	s.endMu.Unlock()
	if !first {
		return nil
	}
	close(s.closed)
	if leave != nil {
		go leave() // it waits for a write to the destination
	}
	s.read.deadline.set(time.Time{})
	s.write.deadline.set(time.Time{})
	go func() {
		if orderly {
			s.endOrderly()
		}
		s.ch.Close()
		s.drain()
	}()
	return nil
}

// endOrderly sends EOF where nobody is writing. Where somebody is, Close came in the
// middle of a write and there is no orderly end.
func (s *stream) endOrderly() {
	h := &s.write
	select {
	case h.turn <- struct{}{}: // for good
	default:
		return
	}
	if h.busy {
		return
	}
	s.endMu.Lock()
	first := !s.eofSent
	s.eofSent = true
	s.endMu.Unlock()
	if first {
		s.ch.CloseWrite()
	}
}

// drain throws away what the far end still sends until it has confirmed the CLOSE,
// so that the library does not keep it.
func (s *stream) drain() {
	h := &s.read
	h.turn <- struct{}{} // callers leave at once, as the stream is closed
	if h.busy {
		<-h.results
	}
	s.keep(nil)
	waste := s.t.buffers.get()
	defer s.t.buffers.put(waste)
	for {
		if _, err := s.ch.Read(waste); err != nil {
			return
		}
	}
}

func isDone(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// errPipe is what a write gets after CloseWrite.
var errPipe error = syscall.EPIPE
