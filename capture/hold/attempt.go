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
	_ capture.Attempt = (*attempt)(nil)
	_ capture.Waiter  = (*attempt)(nil)
)

type attempt struct {
	source *Source
	key    key
	flow   capture.Flow
	taken  chan *net.TCPConn // has room for the one connection

	id, mark uint32 // of the newest copy; guarded by source.mu
}

// Flow implements capture.Attempt.
func (a *attempt) Flow() capture.Flow { return a.flow }

// Waits implements capture.Waiter.
func (a *attempt) Waits() bool {
	sock, err := a.source.Diag.Lookup(a.flow.Src, a.flow.Dst)
	if errors.Is(err, origin.ErrNoSocket) {
		return false
	}
	return err != nil || sock.State == origin.StateSynSent // in doubt it waits
}

// Admit implements capture.Attempt.
func (a *attempt) Admit(ctx context.Context) (*capture.Conn, error) {
	s := a.source
	k := accepted{a.key.dst, a.key.seq}
	if err := s.reserve(k, a); err != nil { // before the verdict: the connection may be there at once
		return nil, err
	}
	defer s.unreserve()
	a.decide(verdict{queue.Accept, capture.MarkTunnel})

	limit := time.NewTimer(admitTimeout)
	defer limit.Stop()
	var err error
	select {
	case c := <-a.taken:
		return &capture.Conn{TCPConn: c}, nil
	case <-limit.C:
		err = capture.ErrAbandoned
	case <-ctx.Done():
		err = ctx.Err()
	case <-s.done:
		err = capture.ErrClosed
	}
	s.mu.Lock()
	delete(s.awaiting, k)
	s.mu.Unlock()
	select {
	case c := <-a.taken: // it came in the same instant
		_ = c.SetLinger(0)
		c.Close()
	default:
	}
	return nil, err
}

// Refuse implements capture.Attempt.
func (a *attempt) Refuse(r capture.Refusal) {
	switch r {
	case capture.Refused:
		a.decide(verdict{queue.Accept, capture.MarkReset})
	case capture.Silent:
		a.decide(verdict{queue.Drop, 0})
	default:
		v := verdict{queue.Accept, capture.MarkUnreachable}
		if wait := settle - time.Since(a.flow.Arrived); wait > 0 {
			time.AfterFunc(wait, func() { a.decide(v) })
			return
		}
		a.decide(v)
	}
}

// Pass implements capture.Attempt. The only way that the kernel has in a capture
// of its own leads to a listener inside.
func (a *attempt) Pass() error {
	if !a.flow.Local {
		return capture.ErrNoWayOut
	}
	sock, err := a.source.Diag.Lookup(a.flow.Dst, a.flow.Src)
	if err != nil || sock.State != origin.StateListen {
		return capture.ErrNoWayOut
	}
	a.decide(verdict{queue.Accept, capture.MarkPass})
	return nil
}

// decide gives the verdict and keeps it for copies of the SYN.
func (a *attempt) decide(v verdict) {
	s := a.source
	s.mu.Lock()
	s.decided[0][a.key] = v
	delete(s.pending, a.key)
	id, mark := a.id, a.mark
	s.mu.Unlock()
	s.verdict(id, mark, v)
}

// origin finds the process while the socket still exists.
func (a *attempt) origin() capture.Origin {
	sock, err := a.source.Diag.Lookup(a.flow.Src, a.flow.Dst)
	if err != nil {
		return capture.Origin{}
	}
	// A program that connects often is likely to be the last one found.
	if last := int(a.source.last.Load()); last != 0 {
		if o := origin.Holder([]int{last}, sock.Inode); o.Known {
			return o
		}
	}
	pids, err := a.source.Processes()
	if err != nil {
		return capture.Origin{Err: err}
	}
	o := origin.Holder(pids, sock.Inode)
	a.source.last.Store(int64(o.PID))
	return o
}
