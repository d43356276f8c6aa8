package tlstun

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"sshbroker/profiles"
)

const (
	// pieceSize is what is encrypted at once, in bytes.
	pieceSize = 64 << 10
	// closeTime is how long a proxy may take for what is left and its own end.
	closeTime = 2 * time.Minute
	// hearTime is how long it may go on sending once it has that.
	hearTime = 400 * time.Millisecond
)

// proxyStream is one flow by CONNECT. Writes go into the socket's queue, as a write that
// TLS was interrupted in would be the last one; what has to wait waits before.
type proxyStream struct {
	t             *proxied
	conn          *connection
	local, remote net.Addr
	halfClose     bool // close_notify is the end of one direction there

	sent, received atomic.Uint64
	heard          atomic.Int64 // when data came last, by the clock on the wall, in nanoseconds

	readMu, writeMu sync.Mutex
	readErr         error // for every Read from now on; guarded by readMu
	broken          bool  // Close has interrupted a Write; guarded by writeMu

	mu         sync.Mutex
	shut       bool
	lost       error // the transport was closed
	ourEnd     bool
	farEnd     bool
	farGone    error // why the far end takes no more
	readUntil  time.Time
	writeUntil time.Time
	end        *time.Timer // passes our end on when the proxy is silent

	over     chan struct{}
	overOnce sync.Once
	woken    chan struct{} // has room for one
}

var (
	_ profiles.Stream    = (*proxyStream)(nil)
	_ profiles.FarCloser = (*proxyStream)(nil)
	_ profiles.Counter   = (*proxyStream)(nil)
	_ io.ReaderFrom      = (*proxyStream)(nil)
	_ io.WriterTo        = (*proxyStream)(nil)
)

func newProxyStream(t *proxied, conn *connection, dst profiles.Destination) *proxyStream {
	s := &proxyStream{t: t, conn: conn, local: conn.LocalAddr(), remote: dst.Addr(),
		over: make(chan struct{}), woken: make(chan struct{}, 1)}
	if dst.Origin.IsValid() {
		s.local = net.TCPAddrFromAddrPort(dst.Origin)
	}
	return s
}

// LocalAddr is net.Conn's.
func (s *proxyStream) LocalAddr() net.Addr { return s.local }

// RemoteAddr is net.Conn's.
func (s *proxyStream) RemoteAddr() net.Addr { return s.remote }

// Counts is profiles.Counter's.
func (s *proxyStream) Counts() (sent, received uint64) { return s.sent.Load(), s.received.Load() }

// Closed is profiles.FarCloser's.
func (s *proxyStream) Closed() <-chan struct{} { return s.over }

// SetReadDeadline is net.Conn's.
func (s *proxyStream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return s.fault("set", net.ErrClosed)
	}
	s.readUntil = t
	return s.conn.SetReadDeadline(t)
}

// SetWriteDeadline is net.Conn's.
func (s *proxyStream) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return s.fault("set", net.ErrClosed)
	}
	s.writeUntil = t
	s.wakeWriter()
	return nil
}

// SetDeadline is net.Conn's.
func (s *proxyStream) SetDeadline(t time.Time) error {
	if err := s.SetReadDeadline(t); err != nil {
		return err
	}
	return s.SetWriteDeadline(t)
}

func (s *proxyStream) wakeWriter() {
	select {
	case s.woken <- struct{}{}:
	default:
	}
}

func (s *proxyStream) fault(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "tls", Source: s.local, Addr: s.remote, Err: err}
}

// barred is why a call may not go on.
func (s *proxyStream) barred(until *time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.shut:
		return net.ErrClosed
	case !until.IsZero() && !until.After(time.Now()):
		return os.ErrDeadlineExceeded
	}
	return nil
}

// Read is net.Conn's; see profiles.Stream for its errors.
func (s *proxyStream) Read(p []byte) (int, error) {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	for {
		if err := s.barred(&s.readUntil); err != nil {
			return 0, s.fault("read", err)
		}
		if s.readErr != nil {
			return 0, s.fault("read", s.readErr)
		}
		if len(p) == 0 {
			return 0, nil
		}
		n, err := s.conn.Read(p)
		if n > 0 {
			s.received.Add(uint64(n))
			s.heard.Store(time.Now().UnixNano())
			return n, nil
		}
		s.readEnded(err)
	}
}

// readEnded notes the end of what comes, where err is one. The caller holds readMu.
func (s *proxyStream) readEnded(err error) {
	s.mu.Lock()
	lost := s.lost
	s.mu.Unlock()
	switch {
	case lost != nil:
		s.readErr = lost
	case err == nil, errors.Is(err, os.ErrDeadlineExceeded):
		return // a deadline that may have been moved
	case err == io.EOF:
		s.readErr = io.EOF
		s.mu.Lock()
		s.farEnd = true
		both := s.ourEnd
		s.mu.Unlock()
		if s.halfClose && !both {
			return
		}
	default:
		s.readErr = fmt.Errorf("%w: %w", profiles.ErrReset, err)
	}
	s.gone(s.readErr)
}

// gone notes that the far end takes no more.
func (s *proxyStream) gone(why error) {
	if why == io.EOF {
		why = profiles.ErrReset // as writers have it
	}
	s.mu.Lock()
	if s.farGone == nil {
		s.farGone = why
	}
	s.mu.Unlock()
	s.wakeWriter()
	s.overOnce.Do(func() { close(s.over) })
}

// Write returns when TLS and the socket's queue have taken p.
func (s *proxyStream) Write(p []byte) (n int, err error) {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	for {
		if err := s.mayWrite(); err != nil {
			s.broken = s.broken || err == net.ErrClosed && n > 0
			return n, s.fault("write", err)
		}
		if len(p) == 0 {
			return n, nil
		}
		s.mu.Lock()
		until := s.writeUntil
		s.mu.Unlock()
		if !s.conn.socket.AwaitRoomUntil(until, s.woken) {
			if s.barred(&time.Time{}) != nil {
				s.broken = true
			}
			continue
		}
		m, err := s.conn.Write(p[:min(len(p), pieceSize)])
		s.conn.socket.Flush()
		s.sent.Add(uint64(m))
		n += m
		if err != nil {
			s.gone(s.writeFailure())
			return n, s.fault("write", s.writeFailure())
		}
		p = p[m:]
	}
}

// writeFailure is what a failure of the connection means to a writer.
func (s *proxyStream) writeFailure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost != nil {
		return s.lost
	}
	return profiles.ErrReset
}

func (s *proxyStream) mayWrite() error {
	if err := s.barred(&s.writeUntil); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.farGone != nil:
		return s.farGone
	case s.ourEnd:
		return syscall.EPIPE
	}
	return nil
}

// ReadFrom carries src into the stream until src ends.
func (s *proxyStream) ReadFrom(src io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{s}, struct{ io.Reader }{src}, make([]byte, pieceSize))
}

// WriteTo delivers to dst until the stream's end.
func (s *proxyStream) WriteTo(dst io.Writer) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{s}, make([]byte, pieceSize))
}

// CloseWrite ends our direction: at once where the far end tells it from the end of both,
// else when it has been silent.
func (s *proxyStream) CloseWrite() error {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	switch err := s.mayWrite(); {
	case errors.Is(err, syscall.EPIPE), errors.Is(err, profiles.ErrReset):
		return nil
	case err != nil:
		return s.fault("close", err)
	}
	s.mu.Lock()
	s.ourEnd = true
	both := s.farEnd
	if !s.halfClose {
		s.heard.Store(time.Now().UnixNano())
		s.end = time.AfterFunc(s.lingerTime(), s.endWhenSilent)
	}
	s.mu.Unlock()
	if s.halfClose {
		s.sayEnd()
	}
	if both {
		s.overOnce.Do(func() { close(s.over) })
	}
	return nil
}

func (s *proxyStream) lingerTime() time.Duration {
	if l := s.t.connector.Linger; l > 0 {
		return l
	}
	return linger
}

// endWhenSilent passes our end on once nothing has come for a while.
func (s *proxyStream) endWhenSilent() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut || s.farGone != nil {
		return
	}
	if left := s.lingerTime() - time.Since(time.Unix(0, s.heard.Load())); left > 0 {
		s.end.Reset(left)
		return
	}
	go s.sayEnd()
}

// sayEnd sends close_notify.
func (s *proxyStream) sayEnd() {
	s.conn.CloseWrite()
	s.conn.socket.Flush()
}

// Close ends the stream in order; it does not wait. Where it interrupts a Write the
// stream is reset.
func (s *proxyStream) Close() error {
	if !s.shutDown() {
		return nil
	}
	go func() {
		defer s.t.gone(s)
		s.writeMu.Lock()
		defer s.writeMu.Unlock()
		if s.broken {
			s.abort()
			return
		}
		s.sayEnd()
		s.readMu.Lock()
		more := s.readErr == nil
		s.readMu.Unlock() // who comes now finds the stream shut
		if more {
			s.drain()
		}
		s.conn.socket.CloseWithin(closeTime)
		<-s.conn.socket.Ended()
	}()
	return nil
}

// drain throws away what comes, until the far end closes, or has our last words and goes
// on sending: it cannot be told that nobody listens but by closing, which would take back
// what it does not have yet.
func (s *proxyStream) drain() {
	begin := time.Now()
	var waste [4 << 10]byte
	for since := time.Duration(0); since < closeTime; since = time.Since(begin) {
		if since > hearTime && s.conn.socket.Delivered() {
			return
		}
		end := time.Now().Add(hearTime / 4)
		s.conn.SetReadDeadline(end)
		for time.Now().Before(end) {
			if _, err := s.conn.Read(waste[:]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
		}
	}
}

// Reset ends the stream by a reset of its connection.
func (s *proxyStream) Reset() error {
	if s.shutDown() {
		s.abort()
		s.t.gone(s)
	}
	return nil
}

// lose ends the stream with its transport.
func (s *proxyStream) lose(why error) {
	s.mu.Lock()
	s.lost = why
	s.mu.Unlock()
	s.abort()
	s.gone(why)
}

// shutDown releases readers and writers; false: it is shut already.
func (s *proxyStream) shutDown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return false
	}
	s.shut = true
	if s.end != nil {
		s.end.Stop()
	}
	s.conn.SetReadDeadline(time.Unix(1, 0))
	s.wakeWriter()
	s.overOnce.Do(func() { close(s.over) })
	return true
}

// abort closes the connection with a reset where it is one of TCP, or a stream.
func (s *proxyStream) abort() {
	switch under := s.conn.socket.Conn.(type) {
	case interface{ SetLinger(int) error }:
		under.SetLinger(0)
	case interface{ Reset() error }:
		under.Reset()
	}
	s.conn.socket.Abort(net.ErrClosed)
}
