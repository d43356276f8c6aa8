package tuntest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"sshbroker/profiles"
	"sshbroker/profiles/tlstun/wire"
)

// Gateway is the far end of TLS tunnels, with no policy. Fill the fields in before
// StartGateway.
type Gateway struct {
	// TLS is how it speaks; required.
	TLS *tls.Config
	// Decide is called before a destination is dialled, and refuses by any Status but OK,
	// which may be given as 0; nil allows all.
	Decide func(ctx context.Context, r wire.Request) wire.Answer
	// Services are what it lists.
	Services []wire.Service

	connections atomic.Int64
	opened      atomic.Int64

	mu     sync.Mutex
	live   map[io.Closer]struct{}
	closed bool
	flows  map[*wire.Stream]struct{}
	tasks  sync.WaitGroup
}

// StartGateway serves on loopback until the test ends, and returns the profile that
// reaches it with a certificate of authority.
func StartGateway(t testing.TB, authority *Authority, g *Gateway) *profiles.Profile {
	t.Helper()
	if g.TLS == nil {
		g.TLS = authority.Server(t, wire.ALPN)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.live, g.flows = map[io.Closer]struct{}{l: {}}, make(map[*wire.Stream]struct{})
	g.tasks.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			g.tasks.Go(func() { g.serve(conn) })
		}
	})
	t.Cleanup(func() {
		g.Cut()
		l.Close()
		g.tasks.Wait()
	})
	return TLSProfile(t, authority, l.Addr().String())
}

// TLSProfile is one for a server at address, with a certificate of authority.
func TLSProfile(t testing.TB, authority *Authority, address string) *profiles.Profile {
	t.Helper()
	p := ProfileFor(address, "", "", "")
	p.Identities, p.KnownHosts = nil, nil
	p.Protocol = profiles.TLS
	p.TLS.CAFiles = []string{authority.File}
	p.TLS.Certificate, p.TLS.Key = authority.Issue(t, "client", nil)
	return p
}

// Connections is how many clients were admitted so far.
func (g *Gateway) Connections() int { return int(g.connections.Load()) }

// Opened is how many flows were opened so far.
func (g *Gateway) Opened() int { return int(g.opened.Load()) }

// Cut closes everything at once; the listener too.
func (g *Gateway) Cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for c := range g.live {
		c.Close()
	}
}

// GoAway has clients open their next flows on another connection.
func (g *Gateway) GoAway() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.live {
		if s, ok := c.(*wire.Session); ok {
			s.GoAway()
		}
	}
}

// EndFlows ends every flow for a reason.
func (g *Gateway) EndFlows(reason string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for s := range g.flows {
		s.EndFor(reason)
	}
}

// keep has Cut close c, too; false: it is closed already.
func (g *Gateway) keep(c io.Closer) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		c.Close()
		return false
	}
	g.live[c] = struct{}{}
	return true
}

func (g *Gateway) drop(c io.Closer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.live, c)
}

func (g *Gateway) serve(raw net.Conn) {
	if !g.keep(raw) {
		return
	}
	defer g.drop(raw)
	socket := wire.NewSocket(raw)
	conn := tls.Server(socket, g.TLS)
	if err := conn.Handshake(); err != nil || conn.ConnectionState().NegotiatedProtocol != wire.ALPN {
		conn.Close()
		<-socket.Ended()
		return
	}
	session, err := wire.Server(conn)
	if err != nil || !g.keep(session) {
		conn.Close()
		return
	}
	defer g.drop(session)
	defer session.Close()
	g.connections.Add(1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for {
		s, err := session.Accept()
		if err != nil {
			return
		}
		g.tasks.Go(func() { g.answer(ctx, session, s) })
	}
}

func (g *Gateway) answer(ctx context.Context, session *wire.Session, s *yamux.Stream) {
	r, err := wire.ReadRequest(s)
	if err != nil {
		s.Close()
		return
	}
	if r.Kind == wire.KindServices {
		defer s.Close()
		if wire.WriteAnswer(s, wire.Answer{Status: wire.OK}) == nil {
			wire.WriteServices(s, g.Services)
		}
		return
	}
	var a wire.Answer
	if g.Decide != nil {
		a = g.Decide(ctx, r)
	}
	var dst net.Conn
	if a.Status == 0 || a.Status == wire.OK {
		var d net.Dialer
		dst, err = d.DialContext(ctx, "tcp", net.JoinHostPort(r.Host, strconv.Itoa(int(r.Port))))
		a = answerFor(err)
	}
	if err := wire.WriteAnswer(s, a); err != nil || a.Status != wire.OK {
		session.NewStream(s).Close()
		if dst != nil {
			dst.Close()
		}
		return
	}
	g.opened.Add(1)
	stream := session.NewStream(s)
	g.mu.Lock()
	g.flows[stream] = struct{}{}
	g.mu.Unlock()
	join(stream, dst.(*net.TCPConn))
	g.mu.Lock()
	delete(g.flows, stream)
	g.mu.Unlock()
}

// answerFor is what a gateway says of a dial.
func answerFor(err error) wire.Answer {
	var lookup *net.DNSError
	switch {
	case err == nil:
		return wire.Answer{Status: wire.OK}
	case errors.As(err, &lookup):
		return wire.Answer{Status: wire.NameNotFound, Detail: err.Error()}
	case errors.Is(err, syscall.ECONNREFUSED):
		return wire.Answer{Status: wire.Refused, Detail: err.Error()}
	}
	return wire.Answer{Status: wire.Unreachable, Detail: fmt.Sprint(err)}
}

// farStream is the far end of a flow, in order or by a reset.
type farStream interface {
	net.Conn
	CloseWrite() error
	Reset() error
	Closed() <-chan struct{}
}

// join carries a flow, its ends and its resets.
func join(s farStream, dst *net.TCPConn) {
	over := make(chan struct{})
	var tasks sync.WaitGroup
	reset := func() {
		dst.SetLinger(0)
		dst.Close()
		s.Reset()
	}
	tasks.Go(func() {
		if _, err := io.Copy(struct{ io.Writer }{dst}, s); err != nil {
			reset()
			return
		}
		dst.CloseWrite()
	})
	tasks.Go(func() {
		_, err := io.Copy(struct{ io.Writer }{s}, struct{ io.Reader }{dst})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded): // nobody is there to send it to
		case err != nil:
			reset()
		default:
			s.CloseWrite()
		}
	})
	go func() {
		select {
		case <-s.Closed():
			// Who takes no more may still have sent what the destination is to get.
			dst.SetReadDeadline(time.Unix(1, 0))
		case <-over:
		}
	}()
	tasks.Wait()
	close(over)
	dst.Close()
	s.Close()
}
