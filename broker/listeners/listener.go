package listeners

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"sshbroker/capture"
)

const (
	// maxUndecided is how many connections of one listener may be on their way to a
	// decision. Those beyond are reset.
	maxUndecided = 512
	// requestTime is how long a program may take to say what it wants.
	requestTime = 10 * time.Second
	// A port that is taken is tried again after so long, then after twice that.
	firstRetry, lastRetry = time.Second, 30 * time.Second
	// acceptPause is waited after a failure to accept, as for want of descriptors.
	acceptPause = 100 * time.Millisecond
)

// Listener is one open port; it implements capture.Source.
type Listener struct {
	Spec
	set      *Set
	id       uint64
	byHand   bool
	attempts chan capture.Attempt
	life     context.Context // ends with the listener
	end      context.CancelFunc
	places   chan struct{}

	accepted, refused atomic.Uint64

	mu    sync.Mutex
	l     *net.TCPListener // nil while there is none
	at    netip.AddrPort
	since time.Time
	err   error
}

var _ capture.Source = (*Listener)(nil)

// ID is the number of the listener in its Set.
func (l *Listener) ID() uint64 { return l.id }

// Info tells how the listener is.
func (l *Listener) Info() Info {
	l.mu.Lock()
	defer l.mu.Unlock()
	in := Info{ID: l.id, Spec: l.Spec, At: l.at, ByHand: l.byHand, Open: l.l != nil, Err: l.err, Since: l.since,
		Accepted: l.accepted.Load(), Refused: l.refused.Load()}
	if !in.Open {
		in.At = l.Listen
	}
	return in
}

// Next implements capture.Source.
func (l *Listener) Next(ctx context.Context) (capture.Attempt, error) {
	select {
	case a := <-l.attempts:
		return a, nil
	case <-l.life.Done():
		return nil, capture.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// open binds the port.
func (l *Listener) open() error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	address := l.Listen.String()
	if l.Listen.Addr() == netip.IPv6Unspecified() { // and all of IPv4, or that alone where there is no IPv6
		address = fmt.Sprintf(":%d", l.Listen.Port())
	}
	bound, err := lc.Listen(context.Background(), "tcp", address)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.err = err
		return fmt.Errorf("%s listener: %w", l.Type(), err)
	}
	l.l, l.err, l.since = bound.(*net.TCPListener), nil, time.Now()
	l.at = bound.Addr().(*net.TCPAddr).AddrPort()
	select {
	case <-l.life.Done(): // meanwhile
		bound.Close()
		l.l = nil
		return ErrClosed
	default:
		return nil
	}
}

func (l *Listener) close() {
	l.end()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.l != nil {
		l.l.Close()
		l.l = nil
	}
}

// keepOpen takes connections. Where the port could not be opened, for err, it tries again
// and again until it can or the listener is closed.
func (l *Listener) keepOpen(err error) {
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		if err == nil {
			l.set.Log.Info("listening", "type", l.Type(), "at", l.Info().At, "for", l.Source)
			l.accept()
			return
		}
		if errors.Is(err, ErrClosed) {
			return
		}
		l.set.Log.Warn("cannot listen", "for", l.Source, "error", err, "again in", pause)
		select {
		case <-l.life.Done():
			return
		case <-time.After(pause):
		}
		err = l.open()
	}
}

// accept takes connections until the listener is closed.
func (l *Listener) accept() {
	l.mu.Lock()
	bound := l.l
	l.mu.Unlock()
	if bound == nil {
		return
	}
	served := make(chan struct{})
	go func() { defer close(served); l.set.Serve(l) }()
	var tasks sync.WaitGroup
	for {
		c, err := bound.AcceptTCP()
		if err != nil {
			select {
			case <-l.life.Done():
				tasks.Wait()
				<-served
				return
			case <-time.After(acceptPause):
			}
			l.mu.Lock()
			l.err = err
			l.mu.Unlock()
			continue
		}
		l.accepted.Add(1)
		select {
		case l.places <- struct{}{}:
			tasks.Go(func() { defer func() { <-l.places }(); l.admit(c) })
		default:
			l.refuse(c, errors.New("too many connections wait for a decision"))
		}
	}
}

// refuse resets a connection that no rule will see.
func (l *Listener) refuse(c *net.TCPConn, err error) {
	l.refused.Add(1)
	l.set.Log.Info("connection to a listener refused", "listener", l.id, "from", c.RemoteAddr(), "error", err)
	_ = c.SetLinger(0)
	c.Close()
}

// admit finds out who is there and what is wanted, and hands the attempt over.
func (l *Listener) admit(c *net.TCPConn) {
	peer, err := l.set.Peer(c)
	if err == nil {
		err = l.allowed(peer)
	}
	if err != nil {
		l.refuse(c, err)
		return
	}
	// As with all programs' connections, see capture.Conn: should we die, it is a reset.
	_ = c.SetLinger(0)
	c.SetDeadline(time.Now().Add(requestTime))
	// The end of the listener is the end of what it waits for, and of nothing else.
	stop := context.AfterFunc(l.life, func() { c.SetDeadline(time.Unix(1, 0)) })
	a, err := l.attempt(c, peer)
	if !stop() {
		err = ErrClosed
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		l.refuse(c, err)
		return
	}
	select {
	case l.attempts <- a:
	case <-l.life.Done():
		c.Close()
	}
}

// stranger tells whether this host's loopback is not for a peer. What listens there would
// take it for the broker's user, whose other listeners are among that; for a broker of
// all users that is an account of nobody's, unless it runs as root.
func (l *Listener) stranger(p Peer) bool {
	switch {
	case !p.Here:
		return true
	case p.UID == l.set.UID, p.UID == 0:
		return false
	}
	return !l.set.AnyUser || l.set.UID == 0
}

// allowed tells why a peer may not use the listener.
func (l *Listener) allowed(p Peer) error {
	switch {
	case l.Relay:
		return nil
	case !p.Here:
		return errors.New("it comes from another host, and allow-relay is off")
	case l.set.AnyUser, p.UID == l.set.UID, p.UID == 0:
		return nil
	}
	return fmt.Errorf("it is uid %d's, and allow-relay is off", p.UID)
}
