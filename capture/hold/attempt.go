package hold

import (
	"context"
	"errors"
	"net"
	"time"

	"sshbroker/capture"
	"sshbroker/capture/origin"
	"sshbroker/capture/queue"
)

var (
	_ capture.Attempt = (*Attempt)(nil)
	_ capture.Waiter  = (*Attempt)(nil)
)

// Attempt implements capture.Attempt.
type Attempt struct {
	source *Source
	key    Key
	flow   capture.Flow
	at     queue.Packet // the newest copy; guarded by source.mu
}

// Key is how the SYN is known.
func (a *Attempt) Key() Key { return a.key }

// Queue is the number of the queue that it came by.
func (a *Attempt) Queue() uint16 {
	a.source.mu.Lock()
	defer a.source.mu.Unlock()
	return a.at.Queue
}

// Flow implements capture.Attempt.
func (a *Attempt) Flow() capture.Flow { return a.flow }

// Waits implements capture.Waiter.
func (a *Attempt) Waits() bool {
	sock, err := a.source.Diag.Lookup(a.flow.Src, a.flow.Dst)
	if errors.Is(err, origin.ErrNoSocket) {
		return false
	}
	return err != nil || sock.State == origin.StateSynSent // in doubt it waits
}

// Admit implements capture.Attempt.
func (a *Attempt) Admit(ctx context.Context) (*capture.Conn, error) {
	// Awaited before the verdict: the connection may be there at once.
	return a.source.take(ctx, a.key, func() { a.decide(verdict(capture.MarkTunnel)) })
}

// Claim returns a connection that was admitted by a process which is dead. Its errors
// are those of Admit.
func (s *Source) Claim(ctx context.Context, k Key) (*capture.Conn, error) {
	return s.take(ctx, k, func() {})
}

// take does what makes the connection come, and waits for it.
func (s *Source) take(ctx context.Context, key Key, admit func()) (*capture.Conn, error) {
	k, taken := accepted{key.Dst, key.Seq}, make(chan *net.TCPConn, 1)
	if err := s.await(k, taken); err != nil {
		return nil, err
	}
	defer s.unawait()
	admit()

	limit := time.NewTimer(admitTimeout)
	defer limit.Stop()
	var err error
	select {
	case c := <-taken:
		return &capture.Conn{TCPConn: c}, nil
	case <-limit.C:
		err = capture.ErrAbandoned
	case <-ctx.Done():
		err = ctx.Err()
	case <-s.life.Done():
		err = capture.ErrClosed
	}
	s.mu.Lock()
	delete(s.awaiting, k)
	// Where it waits still, its SYN was lost after the verdict, and a copy that was let in
	// would find nobody: that is decided anew.
	for _, m := range s.decided {
		delete(m, key)
	}
	s.mu.Unlock()
	select {
	case c := <-taken: // it came in the same instant
		reset(c)
	default:
	}
	return nil, err
}

// Refuse implements capture.Attempt.
func (a *Attempt) Refuse(r capture.Refusal) {
	switch r {
	case capture.Refused:
		a.decide(verdict(capture.MarkReset))
	case capture.Silent:
		a.decide(drop)
	default:
		v := verdict(capture.MarkUnreachable)
		if wait := settle - time.Since(a.flow.Arrived); wait > 0 {
			time.AfterFunc(wait, func() { a.decide(v) })
			return
		}
		a.decide(v)
	}
}

// Pass implements capture.Attempt.
func (a *Attempt) Pass() error {
	if !a.source.WayOut(a.flow) {
		return capture.ErrNoWayOut
	}
	a.decide(verdict(capture.MarkPass))
	return nil
}

// decide gives the verdict and keeps it for copies of the SYN.
func (a *Attempt) decide(v verdict) {
	s, uid := a.source, a.flow.UID
	s.mu.Lock()
	s.decided[0][a.key] = v
	if s.pending[a.key] == a {
		delete(s.pending, a.key)
		if s.perUID[uid]--; s.perUID[uid] == 0 {
			delete(s.perUID, uid)
		}
	}
	at := a.at
	s.mu.Unlock()
	s.verdict(at, v)
}

// origin finds the process while the socket still exists.
func (a *Attempt) origin() capture.Origin {
	sock, err := a.source.Diag.Lookup(a.flow.Src, a.flow.Dst)
	if err != nil {
		return capture.Origin{}
	}
	return a.source.Find(sock)
}
