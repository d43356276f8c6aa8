package wire

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/hashicorp/yamux"

	"sshbroker/profiles"
	"sshbroker/profiles/socket"
)

// Session is one connection between the two ends. Safe for concurrent use.
type Session struct {
	mux     *yamux.Session
	conn    *joined
	probing atomic.Bool

	once sync.Once
	done chan struct{}
	err  error // written before done is closed

	mu      sync.Mutex
	streams []weak.Pointer[yamux.Stream] // all that live, and some that do not
}

var _ socket.Watched = (*Session)(nil)

// NewSocket is what belongs between a TCP connection and TLS: it reads ahead and makes one
// system call of the records of a frame. The caller closes it until it is a session's.
func NewSocket(c net.Conn) *socket.Conn { return socket.New(c, func(int) bool { return true }) }

// Client begins the broker's end on a connection that has agreed on ALPN, Server the
// gateway's. conn is one of TLS on top of what NewSocket made; others do, but slower. The
// session owns conn from then on; the caller closes the session.
func Client(conn net.Conn) (*Session, error) { return newSession(conn, yamux.Client) }

// Server is Client for the gateway.
func Server(conn net.Conn) (*Session, error) { return newSession(conn, yamux.Server) }

func newSession(conn net.Conn, begin func(io.ReadWriteCloser, *yamux.Config) (*yamux.Session, error)) (*Session, error) {
	s := &Session{done: make(chan struct{})}
	s.conn = &joined{Conn: conn, below: below(conn), lost: s.end}
	if s.conn.below != nil {
		s.conn.below.Settle()
	}
	mux, err := begin(s.conn, Config())
	if err != nil {
		return nil, fmt.Errorf("yamux: %w", err)
	}
	s.mux = mux
	return s, nil
}

func below(conn net.Conn) *socket.Conn {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	switch c := conn.(type) {
	case *socket.Conn:
		return c
	case interface{ Socket() *socket.Conn }: // an end that learns from the handshake that it is to be a session
		return c.Socket()
	}
	return nil
}

// Open begins a stream, of which the far end hears with the Request. It does not wait
// unless very many others do. The caller writes a Request, reads the Answer and makes a
// Stream of it.
func (s *Session) Open() (*yamux.Stream, error) {
	ys, err := s.mux.OpenStream()
	if err != nil {
		return nil, s.failure(err)
	}
	s.remember(ys)
	return ys, nil
}

// Accept waits for a stream that the far end begins. The caller reads a Request, writes
// the Answer and makes a Stream of it.
func (s *Session) Accept() (*yamux.Stream, error) {
	ys, err := s.mux.AcceptStream()
	if err != nil {
		return nil, s.failure(err)
	}
	s.remember(ys)
	return ys, nil
}

// remember keeps a stream to be woken when the session ends, as long as somebody else
// has it.
func (s *Session) remember(ys *yamux.Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.streams) >= 2*s.mux.NumStreams()+backlog {
		s.streams = slices.DeleteFunc(s.streams, func(p weak.Pointer[yamux.Stream]) bool { return p.Value() == nil })
	}
	s.streams = append(s.streams, weak.Make(ys))
	if s.Err() != nil {
		ys.SetDeadline(longAgo)
	}
}

// ErrGoingAway says that the far end takes no more streams; those that are open go on.
var ErrGoingAway = errors.New("the gateway takes no new flows on this connection")

func (s *Session) failure(err error) error {
	if errors.Is(err, yamux.ErrRemoteGoAway) {
		return fmt.Errorf("%w: %w", profiles.ErrLost, ErrGoingAway)
	}
	select {
	case <-s.done:
		return s.err
	default:
		return fmt.Errorf("%w: %w", profiles.ErrLost, err)
	}
}

// NewStream takes a stream of this session over once its Answer was written or read.
func (s *Session) NewStream(ys *yamux.Stream) *Stream {
	return &Stream{
		ys: ys, session: s, local: ys.LocalAddr(), remote: ys.RemoteAddr(),
		over: make(chan struct{}), woken: make(chan struct{}, 1),
	}
}

// GoAway tells the far end to begin no more streams here. Those that are open go on.
func (s *Session) GoAway() error { return s.mux.GoAway() }

// Done is closed when the connection is lost or closed.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err says why Done was closed; nil before. It is profiles.ErrLost with the cause.
func (s *Session) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

var (
	errClosedByUs = errors.New("closed by this side")
	errEnded      = errors.New("closed by the other side")
	errProtocol   = errors.New("the other side broke the protocol of yamux")
)

// Close ends all streams and the connection. What is on its way has a second to leave.
func (s *Session) Close() error {
	s.end(errClosedByUs)
	err := s.mux.Close()
	if s.conn.below != nil {
		<-s.conn.below.Ended()
	}
	return err
}

// end notes why the session ends and gets everybody out of yamux's streams. It is called
// before yamux knows: from when it does (v0.1.2, stream.go, Read) until it has read what
// it has at hand, whoever waits for a stream runs in a circle. A thousand of them keep it
// from ever coming to that.
func (s *Session) end(why error) {
	s.once.Do(func() {
		s.err = fmt.Errorf("%w: %w", profiles.ErrLost, why)
		close(s.done)
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, p := range s.streams {
			if ys := p.Value(); ys != nil {
				ys.SetDeadline(longAgo)
			}
		}
	})
}

// Ask has the far end's yamux answer, and waits for that or for the end of the session.
func (s *Session) Ask() { s.mux.Ping() }

// Lose ends the session at once.
func (s *Session) Lose(err error) {
	s.end(err)
	if s.conn.below != nil {
		s.conn.below.Abort(err)
	}
	s.mux.Close()
}

// Sent is how many bytes went out over the connection, with what encryption adds.
func (s *Session) Sent() uint64 {
	if s.conn.below != nil {
		return s.conn.below.Sent()
	}
	return s.conn.sent.Load()
}

// Received is how many bytes came over the connection, as Sent counts them.
func (s *Session) Received() uint64 {
	if s.conn.below != nil {
		return s.conn.below.Received()
	}
	return s.conn.received.Load()
}

// KeepAlive is socket.KeepAlive in a goroutine.
func (s *Session) KeepAlive(interval time.Duration, misses int) {
	go socket.KeepAlive(s, interval, misses)
}

// Probe is profiles.Prober's.
func (s *Session) Probe(limit time.Duration) {
	if !s.probing.CompareAndSwap(false, true) {
		return // the one under way is as good
	}
	go func() {
		defer s.probing.Store(false)
		socket.Probe(s, limit)
	}()
}

// smallWrite is what need not wait while much waits to be sent.
const smallWrite = 1 << 10

// awaitRoom waits until the connection has room for n bytes of st, which st's deadline and
// its end interrupt: inside of yamux nothing would.
func (s *Session) awaitRoom(st *Stream, n int) error {
	if s.conn.below == nil || n <= smallWrite {
		return nil
	}
	for {
		st.mu.Lock()
		until := st.writeUntil
		st.mu.Unlock()
		if s.conn.below.AwaitRoomUntil(until, st.woken) {
			return nil
		}
		if err := st.barred(&st.writeUntil); err != nil {
			return err
		}
		if err := st.goneError(); err != nil {
			return err
		}
	}
}
