package relay

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// patience bounds every wait of these tests; none is expected to last.
const patience = 20 * time.Second

// tcpPair returns the two ends of a TCP connection over loopback.
func tcpPair(t testing.TB) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c, s
}

// stream is a Stream over TCP that hides what it is made of, so that the relay can
// neither splice nor poll it.
type stream struct {
	c      *net.TCPConn
	closed chan struct{}
	once   sync.Once
}

func (s *stream) Read(p []byte) (int, error)         { return s.c.Read(p) }
func (s *stream) Write(p []byte) (int, error)        { return s.c.Write(p) }
func (s *stream) Close() error                       { return s.c.Close() }
func (s *stream) CloseWrite() error                  { return s.c.CloseWrite() }
func (s *stream) Reset() error                       { return resetTCP(s.c) }
func (s *stream) LocalAddr() net.Addr                { return s.c.LocalAddr() }
func (s *stream) RemoteAddr() net.Addr               { return s.c.RemoteAddr() }
func (s *stream) SetDeadline(t time.Time) error      { return s.c.SetDeadline(t) }
func (s *stream) SetReadDeadline(t time.Time) error  { return s.c.SetReadDeadline(t) }
func (s *stream) SetWriteDeadline(t time.Time) error { return s.c.SetWriteDeadline(t) }
func (s *stream) Closed() <-chan struct{}            { return s.closed }
func (s *stream) takeNoMore()                        { s.once.Do(func() { close(s.closed) }) }

// pusher is a stream that writes its data itself, in uneven pieces.
type pusher struct{ *stream }

func (p pusher) WriteTo(w io.Writer) (total int64, err error) {
	buf := make([]byte, 10_007)
	for {
		n, err := p.c.Read(buf)
		m, werr := w.Write(buf[:n])
		total += int64(m)
		switch {
		case werr != nil:
			return total, werr
		case err == io.EOF:
			return total, nil
		case err != nil:
			return total, err
		}
	}
}

// porter is a stream that moves data in goroutines of its own, as those of tunnels do.
type porter struct{ pusher }

func (p porter) TakeFrom(next func(patient bool) ([]byte, error)) error {
	for patient := true; ; {
		piece, err := next(patient)
		if err == io.EOF {
			return nil
		}
		if err == nil {
			_, err = p.c.Write(piece)
		}
		if err != nil {
			return err
		}
		patient = len(piece) == 0
	}
}

func (p porter) DeliverTo(w io.Writer, done func(error)) {
	go func() {
		_, err := p.WriteTo(w)
		done(err)
	}()
}

// farKinds are the kinds of far end that every behaviour is tested with.
var farKinds = []string{"tcp", "stream", "writer-to", "carrier"}

func newFar(kind string, c *net.TCPConn) Stream {
	s := &stream{c: c, closed: make(chan struct{})}
	switch kind {
	case "tcp":
		return TCP{c}
	case "writer-to":
		return pusher{s}
	case "carrier":
		return porter{pusher{s}}
	}
	return s
}

// joined is a running Pipe with both outer ends in the test's hands.
type joined struct {
	t      *testing.T
	app    *net.TCPConn // the program's socket
	server *net.TCPConn // what the far stream leads to
	far    Stream
	count  Counters
	cancel context.CancelCauseFunc
	done   chan Result
}

func join(t *testing.T, r *Relay, kind string) *joined {
	t.Helper()
	j := &joined{t: t, done: make(chan Result, 1)}
	var prog, inner *net.TCPConn
	j.app, prog = tcpPair(t)
	inner, j.server = tcpPair(t)
	j.far = newFar(kind, inner)
	deadline := time.Now().Add(patience)
	j.app.SetDeadline(deadline)
	j.server.SetDeadline(deadline)
	var ctx context.Context
	ctx, j.cancel = context.WithCancelCause(context.Background())
	t.Cleanup(func() { j.cancel(nil) })
	go func() { j.done <- r.Pipe(ctx, prog, j.far, &j.count) }()
	return j
}

func (j *joined) result() Result {
	j.t.Helper()
	select {
	case r := <-j.done:
		return r
	case <-time.After(patience):
		j.t.Fatal("Pipe has not returned")
		return Result{}
	}
}

func (j *joined) want(up, down End) Result {
	j.t.Helper()
	r := j.result()
	if r.Up.End != up || r.Down.End != down {
		j.t.Errorf("ended up %v (%v), down %v (%v); want %v, %v", r.Up.End, r.Up.Err, r.Down.End, r.Down.Err, up, down)
	}
	if got := j.count.Up.Load(); got != r.Up.Bytes {
		j.t.Errorf("counter up %d, result %d", got, r.Up.Bytes)
	}
	if got := j.count.Down.Load(); got != r.Down.Bytes {
		j.t.Errorf("counter down %d, result %d", got, r.Down.Bytes)
	}
	return r
}

func send(t *testing.T, c *net.TCPConn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatalf("write %q: %v", s, err)
	}
}

func receive(t *testing.T, c *net.TCPConn, want string) {
	t.Helper()
	buf := make([]byte, len(want))
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != want {
		t.Fatalf("read %q, %v; want %q", buf, err, want)
	}
}

func receiveEOF(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d bytes, %v; want EOF", n, err)
	}
}

func shut(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
}
