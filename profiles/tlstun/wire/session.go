package wire

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/hashicorp/yamux"

	"sshbroker/profiles"
)

// Session is one connection between the two ends. Safe for concurrent use.
type Session struct {
	mux  *yamux.Session
	conn *joined

	once sync.Once
	done chan struct{}
	err  error // written before done is closed
}

// Client begins the broker's end on a connection that has agreed on ALPN, Server the
// gateway's. The session owns conn from then on; the caller closes the session.
func Client(conn net.Conn) (*Session, error) { return newSession(conn, yamux.Client) }

// Server is Client for the gateway.
func Server(conn net.Conn) (*Session, error) { return newSession(conn, yamux.Server) }

func newSession(conn net.Conn, begin func(io.ReadWriteCloser, *yamux.Config) (*yamux.Session, error)) (*Session, error) {
	s := &Session{done: make(chan struct{})}
	s.conn = &joined{Conn: conn, lost: s.end}
	mux, err := begin(s.conn, Config())
	if err != nil {
		return nil, fmt.Errorf("yamux: %w", err)
	}
	s.mux = mux
	return s, nil
}

// Open begins a stream. It does not wait for the far end unless very many others do. The
// caller writes a Request, reads the Answer and makes a Stream of it.
func (s *Session) Open() (*yamux.Stream, error) {
	ys, err := s.mux.OpenStream()
	if err != nil {
		return nil, s.failure(err)
	}
	return ys, nil
}

// Accept waits for a stream that the far end begins. The caller reads a Request, writes
// the Answer and makes a Stream of it.
func (s *Session) Accept() (*yamux.Stream, error) {
	ys, err := s.mux.AcceptStream()
	if err != nil {
		return nil, s.failure(err)
	}
	return ys, nil
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

// NewStream is the function NewStream, for a stream of this session.
func (s *Session) NewStream(ys *yamux.Stream) *Stream {
	st := NewStream(ys)
	st.session = s
	return st
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

// Close ends all streams and the connection.
func (s *Session) Close() error {
	s.end(errClosedByUs)
	return s.mux.Close()
}

// end notes why the session ends.
func (s *Session) end(why error) {
	s.once.Do(func() {
		s.err = fmt.Errorf("%w: %w", profiles.ErrLost, why)
		close(s.done)
	})
}

// awaitRoom waits until the connection has room for a record of n bytes.
func (s *Session) awaitRoom(st *Stream, n int) error { return nil }
