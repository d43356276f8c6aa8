package daemon

import (
	"context"
	"net"
	"sync"

	"sshbroker/capture/service"
)

// resolver has the name queries of a capture answered on whichever sockets it has:
// ssh-captured makes new ones when the old ones are lost.
type resolver struct {
	serve func(ctx context.Context, served service.Served, udp []net.PacketConn, tcp []net.Listener) error // owns the sockets

	mu     sync.Mutex
	end    context.CancelFunc // of the sockets in use; nil before the first
	closed bool
	wg     sync.WaitGroup
}

// take serves other sockets from now on. It owns them.
func (r *resolver) take(served service.Served, udp []net.PacketConn, tcp []net.Listener) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	if r.end != nil {
		r.end()
	}
	r.end = cancel
	if r.closed {
		cancel() // serve closes them at once
	}
	r.wg.Go(func() { _ = r.serve(ctx, served, udp, tcp) })
}

// close returns when nothing is answered any more.
func (r *resolver) close() {
	r.mu.Lock()
	r.closed = true
	if r.end != nil {
		r.end()
	}
	r.mu.Unlock()
	r.wg.Wait()
}
