package udprelay

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// What a Config's zero values stand for.
const (
	DefaultIdleTimeout = 120 * time.Second // RFC 4787, REQ-5: two minutes at least
	DefaultMaxFlows    = 4096
)

const (
	// quiet is how long the answer of connection tracking is trusted with nothing
	// carried. It is half of the shortest time for which the kernel keeps a silent
	// conversation; after that, the peer's port may stand for another destination.
	quiet = 15 * time.Second
	// refusedFor is how long a destination stays refused before it is judged again.
	refusedFor = 5 * time.Second

	complaintEvery = 10 * time.Second

	maxDatagram = 65535   // more than any UDP payload
	readBuffer  = 4 << 20 // wanted for a socket that all programs of a capture share
)

// Tracker tells where a redirected datagram was meant to go. *Conntrack is one.
type Tracker interface {
	// Original returns where peer, whose UDP arrives at relay, sent it; ErrNoEntry
	// where that is not known. It is called from several goroutines.
	Original(relay, peer netip.AddrPort) (netip.AddrPort, error)
}

// Config says what is relayed, and how much of it.
type Config struct {
	// Allow decides about a destination, once for each peer; nil refuses all. It is
	// called from several goroutines and must not block. Loopback, multicast and the
	// unspecified address are refused without being asked about.
	Allow func(dst netip.AddrPort) bool

	// Dial makes a connected socket; nil makes one in the network of this process. It
	// must not wait for the far side.
	Dial func(ctx context.Context, dst netip.AddrPort) (*net.UDPConn, error)

	// Ended, if any, is told of every peer that had a socket, after its end.
	Ended func(Record)

	IdleTimeout time.Duration // without a datagram either way; 0: DefaultIdleTimeout
	MaxFlows    int           // peers at once, the refused ones included; 0: DefaultMaxFlows

	Log *slog.Logger // required
}

// Record is what was carried for one peer. Counts are of UDP payload, in bytes.
type Record struct {
	Peer, Dst      netip.AddrPort
	Sent, Received uint64 // to and from Dst
}

// Serve relays the UDP that arrives at conns, until ctx ends or all of conns are
// closed, and then returns nil with every socket and goroutine of its own gone. The
// caller closes conns and tracker; after the end of ctx they are of no further use.
func Serve(ctx context.Context, conns []*net.UDPConn, tracker Tracker, c Config) error {
	if tracker == nil || c.Log == nil {
		return errors.New("UDP relay: needs a tracker and a log")
	}
	newRelay(tracker, c).serve(ctx, conns)
	return nil
}

type relay struct {
	Config
	tracker Tracker
	now     func() time.Time
	buffers sync.Pool // of *[maxDatagram]byte; held only while a datagram passes
	flows   sync.WaitGroup

	mu     sync.Mutex
	byPeer map[key]*flow
	recent *list.List // of *flow, the last used first

	complained time.Time
}

func newRelay(tracker Tracker, c Config) *relay {
	if c.Dial == nil {
		c.Dial = dialHost
	}
	if c.IdleTimeout <= 0 {
		c.IdleTimeout = DefaultIdleTimeout
	}
	if c.MaxFlows <= 0 {
		c.MaxFlows = DefaultMaxFlows
	}
	return &relay{
		Config: c, tracker: tracker, now: time.Now,
		buffers: sync.Pool{New: func() any { return new([maxDatagram]byte) }},
		byPeer:  map[key]*flow{}, recent: list.New(),
	}
}

func dialHost(ctx context.Context, dst netip.AddrPort) (*net.UDPConn, error) {
	return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(dst))
}

func (r *relay) serve(ctx context.Context, conns []*net.UDPConn) {
	stop := context.AfterFunc(ctx, func() {
		for _, c := range conns {
			_ = c.SetReadDeadline(time.Unix(1, 0))
		}
	})
	defer stop()
	var readers sync.WaitGroup
	for _, c := range conns {
		readers.Go(func() { r.read(ctx, c) })
	}
	readers.Wait() // from here on no flow begins
	r.endAll()
	r.flows.Wait()
}

// read takes datagrams of programs from one socket. Nothing in it waits for a far
// side: what cannot be sent at once is lost, as on any full link.
func (r *relay) read(ctx context.Context, c *net.UDPConn) {
	_ = c.SetReadBuffer(readBuffer) // the kernel gives what it allows
	local := addrPort(c.LocalAddr())
	b := make([]byte, maxDatagram)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		switch {
		case err == nil:
			peer := netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			r.forward(ctx, key{c, local, peer}, b[:n])
		case errors.Is(err, net.ErrClosed):
			return
		case ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded):
			return
		default:
			r.Log.Warn("UDP relay", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond): // an error that repeats must not spin
			}
		}
	}
}

// forward sends one datagram on. A flow that turns out to have ended, say by an ICMP
// error that an earlier datagram met, is begun anew once.
func (r *relay) forward(ctx context.Context, k key, datagram []byte) {
	for range 2 {
		f := r.flowOf(ctx, k)
		if f == nil || f.conn == nil {
			return
		}
		err := f.send(datagram)
		if err == nil || lostOne(err) {
			return
		}
		r.end(f)
	}
}

// flowOf returns the flow of a peer, or nil where it is not known what the peer wants.
func (r *relay) flowOf(ctx context.Context, k key) *flow {
	r.mu.Lock()
	f := r.byPeer[k]
	r.mu.Unlock()
	if f != nil {
		if r.current(f) {
			return f
		}
		r.end(f)
	}
	dst, err := r.original(k)
	if err != nil {
		r.complain(k.peer, err)
		return nil
	}
	return r.begin(ctx, k, dst)
}

// original looks the destination up, with an IPv4 one never dressed up as IPv6.
func (r *relay) original(k key) (netip.AddrPort, error) {
	dst, err := r.tracker.Original(k.local, k.peer)
	return netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port()), err
}

// current reports whether f still stands for what its peer's address stands for, and
// notes that it is in use. It must hold before anything is carried either way.
func (r *relay) current(f *flow) bool {
	now := r.now()
	r.mu.Lock()
	fresh := now.Sub(f.used) < f.trusted
	if fresh && f.conn != nil {
		r.use(f, now)
	}
	r.mu.Unlock()
	if fresh || f.conn == nil {
		return fresh
	}
	if dst, err := r.original(f.key); err != nil || dst != f.dst {
		return false
	}
	r.mu.Lock()
	r.use(f, now)
	r.mu.Unlock()
	return true
}

// use marks f as the last one used. The caller holds mu.
func (r *relay) use(f *flow, now time.Time) {
	f.used = now
	r.recent.MoveToFront(f.place)
}

// begin makes the flow of a peer. A refused one is kept too, without a socket, so
// that a program that insists costs no look-up for each datagram.
func (r *relay) begin(ctx context.Context, k key, dst netip.AddrPort) *flow {
	f := &flow{key: k, dst: dst, trusted: refusedFor}
	if err := r.open(ctx, f); err != nil {
		r.Log.Debug("UDP refused", "peer", k.peer, "dst", dst, "reason", err)
		if outOfDescriptors(err) {
			r.complain(k.peer, err)
		}
	} else {
		f.trusted = quiet
		r.Log.Debug("UDP", "peer", k.peer, "dst", dst)
	}

	var oldest *flow
	r.mu.Lock()
	if len(r.byPeer) >= r.MaxFlows {
		oldest = r.recent.Back().Value.(*flow)
		r.forget(oldest)
	}
	f.used = r.now()
	f.place = r.recent.PushFront(f)
	r.byPeer[k] = f
	r.mu.Unlock()

	if oldest != nil {
		oldest.close()
	}
	if f.conn != nil {
		r.flows.Go(func() { r.carryBack(f) })
	}
	return f
}

func (r *relay) open(ctx context.Context, f *flow) error {
	if !relayable(f.dst) || r.Allow == nil || !r.Allow(f.dst) {
		return errNotAllowed
	}
	conn, err := r.Dial(ctx, f.dst)
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		conn.Close()
		return err
	}
	f.conn, f.raw = conn, raw
	return nil
}

var errNotAllowed = errors.New("not allowed")

// relayable refuses what means something else in the host's network than where the
// program is, and a program's datagram straight to the relay, whose destination is
// the relay itself.
func relayable(dst netip.AddrPort) bool {
	a := dst.Addr()
	return dst.Port() != 0 && a.IsValid() && a.Zone() == "" &&
		!a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() && !(a.Is6() && a.IsLinkLocalUnicast())
}

// end ends a flow. Whatever its goroutine does next fails.
func (r *relay) end(f *flow) {
	r.mu.Lock()
	r.forget(f)
	r.mu.Unlock()
	f.close()
}

// forget takes f out, if it was not yet. The caller holds mu.
func (r *relay) forget(f *flow) {
	if r.byPeer[f.key] == f {
		delete(r.byPeer, f.key)
		r.recent.Remove(f.place)
	}
}

func (r *relay) endAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.byPeer {
		r.forget(f)
		f.close()
	}
}

// idle returns how long f may still stay idle; one that may not is taken out, under
// the lock by which a datagram would find it.
func (r *relay) idle(f *flow) (left time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	left = r.IdleTimeout - r.now().Sub(f.used)
	if left <= 0 {
		r.forget(f)
	}
	return left
}

// complain logs what keeps the relay from its work, which every datagram may meet
// again, at most once a period. A conversation that is merely forgotten is no fault.
func (r *relay) complain(peer netip.AddrPort, err error) {
	if errors.Is(err, ErrNoEntry) {
		r.Log.Debug("UDP dropped", "peer", peer, "error", err)
		return
	}
	now := r.now()
	r.mu.Lock()
	due := now.Sub(r.complained) >= complaintEvery
	if due {
		r.complained = now
	}
	r.mu.Unlock()
	if due {
		r.Log.Warn("UDP relay", "peer", peer, "error", err)
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	u, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := u.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
