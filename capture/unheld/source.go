package unheld

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"sshbroker/capture"
	"sshbroker/capture/listen"
	"sshbroker/capture/origin"
)

// Config is what a Source is made of. It owns listeners and Diag.
type Config struct {
	Listeners []*net.TCPListener                 // required
	Diag      *origin.Diag                       // required
	UID       uint32                             // whose connections these are
	Find      func(origin.Socket) capture.Origin // the process behind a socket; required
	Log       *slog.Logger                       // required
}

// Source implements capture.Source over listeners alone.
type Source struct {
	Config
	ready chan *attempt
	done  chan struct{}
	once  sync.Once
	wg    sync.WaitGroup
}

// New starts accepting.
func New(c Config) *Source {
	s := &Source{Config: c, ready: make(chan *attempt), done: make(chan struct{})}
	for _, l := range c.Listeners {
		s.wg.Go(func() { s.accept(l) })
	}
	return s
}

// Next implements capture.Source.
func (s *Source) Next(ctx context.Context) (capture.Attempt, error) {
	select {
	case a := <-s.ready:
		return a, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.done:
		return nil, capture.ErrClosed
	}
}

// Close stops accepting and closes what the source owns.
func (s *Source) Close() error {
	s.once.Do(func() {
		close(s.done)
		for _, l := range s.Listeners {
			l.Close()
		}
	})
	s.wg.Wait()
	return s.Diag.Close()
}

func (s *Source) accept(l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrClosed):
			return
		case err != nil: // no descriptors left, say: wait and go on
			s.Log.Warn("accept", "error", err)
			select {
			case <-s.done:
				return
			case <-time.After(20 * time.Millisecond):
			}
			continue
		}
		a, ok := s.attempt(c, l.Addr().(*net.TCPAddr).AddrPort())
		if !ok {
			reset(c)
			continue
		}
		select {
		case s.ready <- a:
		case <-s.done:
			reset(c)
			return
		}
	}
}

// attempt recognises a redirected connection. One that was made straight to the
// listener is nobody's.
func (s *Source) attempt(c *net.TCPConn, own netip.AddrPort) (*attempt, bool) {
	_, dst, err := listen.Identify(c)
	if err != nil || dst == own {
		return nil, false
	}
	a := &attempt{conn: c}
	src := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	a.flow = capture.Flow{Src: src, Dst: dst, UID: s.UID, Arrived: time.Now(), Origin: sync.OnceValue(func() capture.Origin {
		sock, err := s.Diag.Lookup(src, dst)
		if err != nil {
			return capture.Origin{}
		}
		return s.Find(sock)
	})}
	return a, true
}

type attempt struct {
	flow capture.Flow
	conn *net.TCPConn
}

// Flow implements capture.Attempt.
func (a *attempt) Flow() capture.Flow { return a.flow }

// Admit implements capture.Attempt.
func (a *attempt) Admit(context.Context) (*capture.Conn, error) {
	return &capture.Conn{TCPConn: a.conn}, nil
}

// Refuse implements capture.Attempt. Silence is not to be had any more.
func (a *attempt) Refuse(capture.Refusal) { reset(a.conn) }

// Pass implements capture.Attempt.
func (a *attempt) Pass() error { return capture.ErrNoWayOut }

func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	c.Close()
}
