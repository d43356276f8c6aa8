package names

import (
	"bytes"
	"context"
	"errors"
	"net"
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

// Serve answers queries on sockets made inside the capture until ctx ends. Replies
// leave from the address that a socket is bound to, so bind to 127.0.0.1 and ::1, not
// to the wildcard. It owns the sockets and closes them, and returns when no goroutine
// of it is left. Being told to stop is no error.
func (n *Names) Serve(ctx context.Context, udp []net.PacketConn, tcp []net.Listener) error {
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
		wg.Go(func() { n.servePackets(ctx, c, &wg) })
	}
	for _, l := range tcp {
		wg.Go(func() { n.serveListener(ctx, l, &wg) })
	}
	wg.Wait()
	return nil
}

// servePackets answers at once what it knows, and forwards in a goroutine each.
func (n *Names) servePackets(ctx context.Context, c net.PacketConn, wg *sync.WaitGroup) {
	buf := make([]byte, maxQuery)
	for {
		size, from, err := c.ReadFrom(buf)
		if err != nil {
			if !n.pause(ctx, err) {
				return
			}
			continue
		}
		q, answer := n.parse(buf[:size], false)
		if q != nil {
			answer = n.answerLocally(q)
		}
		if q == nil || answer != nil {
			if answer != nil {
				c.WriteTo(answer, from) // lost, as a datagram may be; the program asks again
			}
			continue
		}
		select {
		case n.inFlight <- struct{}{}:
		default:
			n.warn("too many queries at once", n.dropped.Add(1))
			continue
		}
		q.msg = bytes.Clone(q.msg)
		wg.Go(func() {
			defer func() { <-n.inFlight }()
			if answer := n.forward(ctx, q); answer != nil && ctx.Err() == nil {
				c.WriteTo(answer, from)
			}
		})
	}
}

func (n *Names) serveListener(ctx context.Context, l net.Listener, wg *sync.WaitGroup) {
	for {
		c, err := l.Accept()
		if err != nil {
			if !n.pause(ctx, err) {
				return
			}
			continue
		}
		select {
		case n.connections <- struct{}{}:
		default:
			n.warn("too many connections to the resolver at once", n.dropped.Add(1))
			c.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-n.connections }()
			n.serveConnection(ctx, c)
		})
	}
}

// serveConnection answers one query after the other.
func (n *Names) serveConnection(ctx context.Context, c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	for {
		c.SetDeadline(time.Now().Add(tcpIdle))
		msg, err := readFramed(c)
		if err != nil {
			return
		}
		answer := n.handle(ctx, msg, true)
		if answer == nil {
			return
		}
		c.SetDeadline(time.Now().Add(tcpIdle))
		if err := writeFramed(c, answer); err != nil {
			return
		}
	}
}

// pause reports whether to go on after a socket error: running out of descriptors or
// memory passes.
func (n *Names) pause(ctx context.Context, err error) bool {
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return false
	}
	n.warn("resolver socket failed", n.failed.Add(1), "error", err)
	select {
	case <-ctx.Done():
		return false
	case <-time.After(acceptPause):
		return true
	}
}
