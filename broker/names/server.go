package names

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	maxInFlight    = 4096 // queries being answered
	maxConnections = 128  // over TCP
	maxQuery       = 4096 // bytes over UDP; a query is far smaller
	tcpIdle        = 10 * time.Second
	acceptPause    = 50 * time.Millisecond
)

// serve is Serve of Names and Users; marks says that the UDP sockets tell marks.
func (r *responder) serve(ctx context.Context, udp []net.PacketConn, tcp []net.Listener, marks bool) error {
	if len(udp) == 0 && len(tcp) == 0 {
		return errors.New("names: no sockets to serve")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		for _, c := range udp {
			c.Close()
		}
		for _, l := range tcp {
			l.Close()
		}
	})
	defer stop()
	var wg sync.WaitGroup
	for _, c := range udp {
		wg.Go(func() { r.servePackets(ctx, c, marks, &wg) })
	}
	for _, l := range tcp {
		wg.Go(func() { r.serveListener(ctx, l, &wg) })
	}
	wg.Wait()
	return nil
}

// servePackets answers at once what it knows, and forwards in a goroutine each.
func (r *responder) servePackets(ctx context.Context, c net.PacketConn, marks bool, wg *sync.WaitGroup) {
	buf := make([]byte, maxQuery)
	receive := receiver(c, marks)
	for {
		size, from, err := receive(buf)
		if err != nil {
			if !r.pause(ctx, err) {
				return
			}
			continue
		}
		q, answer := r.parse(buf[:size], false)
		if q != nil {
			q.asker = r.senderOf(from)
			answer = r.answerLocally(q)
		}
		if q == nil || answer != nil {
			if answer != nil {
				c.WriteTo(answer, from.addr) // lost, as a datagram may be; the program asks again
			}
			continue
		}
		if !tryEnter(q.asker.waiting) {
			r.warn("too many queries of one user at once", r.dropped.Add(1), "user", q.asker.label)
			continue
		}
		if !tryEnter(r.inFlight) {
			leave(q.asker.waiting)
			r.warn("too many queries at once", r.dropped.Add(1))
			continue
		}
		q.msg = bytes.Clone(q.msg)
		wg.Go(func() {
			defer leave(q.asker.waiting)
			defer leave(r.inFlight)
			if answer := r.forward(ctx, q); answer != nil && ctx.Err() == nil {
				c.WriteTo(answer, from.addr)
			}
		})
	}
}

func (r *responder) serveListener(ctx context.Context, l net.Listener, wg *sync.WaitGroup) {
	for {
		c, err := l.Accept()
		if err != nil {
			if !r.pause(ctx, err) {
				return
			}
			continue
		}
		a := r.peerOf(c)
		if !tryEnter(a.conns) {
			r.warn("too many connections of one user to the resolver at once", r.dropped.Add(1), "user", a.label)
			c.Close()
			continue
		}
		if !tryEnter(r.connections) {
			leave(a.conns)
			r.warn("too many connections to the resolver at once", r.dropped.Add(1))
			c.Close()
			continue
		}
		wg.Go(func() {
			defer leave(a.conns)
			defer leave(r.connections)
			r.serveConnection(ctx, a, c)
		})
	}
}

// serveConnection answers one query of a's after the other.
func (r *responder) serveConnection(ctx context.Context, a *asker, c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	for {
		c.SetDeadline(time.Now().Add(tcpIdle))
		msg, err := readFramed(c)
		if err != nil {
			return
		}
		answer := r.handle(ctx, a, msg, true)
		if answer == nil {
			return
		}
		c.SetDeadline(time.Now().Add(tcpIdle))
		if err := writeFramed(c, answer); err != nil {
			return
		}
	}
}

// addrPort is the address of a peer; the zero value where that is of no other kind.
func addrPort(a net.Addr) netip.AddrPort {
	var p netip.AddrPort
	if a, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		p = a.AddrPort()
	}
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// pause reports whether to go on after a socket error: running out of descriptors or
// memory passes.
func (r *responder) pause(ctx context.Context, err error) bool {
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return false
	}
	r.warn("resolver socket failed", r.failed.Add(1), "error", err)
	select {
	case <-ctx.Done():
		return false
	case <-time.After(acceptPause):
		return true
	}
}
