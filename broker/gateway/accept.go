package gateway

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/broker/gateway/generation"
)

// Pauses of an accept loop that cannot accept.
const (
	firstPause = 5 * time.Millisecond
	lastPause  = time.Second
)

// listener is one place where clients are let in.
type listener struct {
	*net.TCPListener
	addr      netip.AddrPort
	accepting bool
}

func listen(addr netip.AddrPort) (*listener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(context.Background(), "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	return &listener{TCPListener: l.(*net.TCPListener), addr: addr}, nil
}

// accept lets clients in until the listener is closed. Nothing else ends it: where
// there are no descriptors, clients wait in the kernel's queue.
func (g *Gateway) accept(l *listener) {
	pause := firstPause
	for {
		conn, err := l.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			g.say.Say(slog.LevelError, "accept", "cannot accept connections", "at", l.addr, "error", err)
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
				g.metrics.Limit("descriptors")
			}
			time.Sleep(pause)
			pause = min(2*pause, lastPause)
			continue
		}
		pause = firstPause
		g.admit(l, conn)
	}
}

// admit has a connection served if there is room for it.
func (g *Gateway) admit(l *listener, conn *net.TCPConn) {
	from, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	release, err := g.limiter.Connection()
	if err == nil {
		var ready func()
		if ready, err = g.limiter.Handshake(from.Addr()); err == nil {
			g.serving.Go(func() {
				defer release()
				g.serve(l, conn, from, ready)
			})
			return
		}
		release()
	}
	// It costs us nothing, and tells at once.
	conn.SetLinger(0)
	conn.Close()
	g.limited(err)
	g.metrics.Handshake(generation.Limit)
	g.say.Say(slog.LevelWarn, "limit", "connection refused", "client", from, "error", err)
}

// lastWords is how long a client that was refused may take to read why, and how much
// it may send meanwhile.
const (
	lastWords     = time.Second
	lastWordsSize = 64 << 10
)

// farewell closes a connection behind an alert. Closed at once, with something of the
// client's unread, the kernel would send a reset that overtakes the alert.
func farewell(conn *net.TCPConn) {
	conn.CloseWrite()
	conn.SetDeadline(time.Now().Add(lastWords))
	io.CopyN(io.Discard, conn, lastWordsSize)
	conn.Close()
}
