package udprelay

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Destinations that exist only in these tests; dialling them leads to loopback.
var (
	dstA = netip.MustParseAddrPort("192.0.2.1:7")
	dstB = netip.MustParseAddrPort("[2001:db8::1]:7")
)

const patience = 10 * time.Second

// tracker is a connection tracking without a kernel.
type tracker struct {
	mu    sync.Mutex
	dst   map[netip.AddrPort]netip.AddrPort
	asked map[netip.AddrPort]int
}

func (t *tracker) set(peer, dst netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dst[peer] = dst
}

func (t *tracker) questions(peer netip.AddrPort) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.asked[peer]
}

func (t *tracker) Original(_, peer netip.AddrPort) (netip.AddrPort, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked[peer]++
	if dst, ok := t.dst[peer]; ok {
		return dst, nil
	}
	return netip.AddrPort{}, ErrNoEntry
}

// world is a relay with its programs on one side and far sides on the other.
type world struct {
	t       *testing.T
	tracker *tracker
	relay   *relay
	socket  *net.UDPConn
	ended   chan Record
	skipped atomic.Int64 // added to the clock, in nanoseconds
	dialled atomic.Int32

	mu  sync.Mutex
	far map[netip.AddrPort]netip.AddrPort // where a destination really is
}

func start(t *testing.T, c Config) *world {
	t.Helper()
	w := &world{
		t: t, ended: make(chan Record, 64), far: map[netip.AddrPort]netip.AddrPort{},
		tracker: &tracker{dst: map[netip.AddrPort]netip.AddrPort{}, asked: map[netip.AddrPort]int{}},
	}
	c.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	c.Ended = func(r Record) {
		select {
		case w.ended <- r:
		default: // nobody looks
		}
	}
	c.Dial = func(ctx context.Context, dst netip.AddrPort) (*net.UDPConn, error) {
		w.dialled.Add(1)
		w.mu.Lock()
		defer w.mu.Unlock()
		return dialHost(ctx, w.far[dst])
	}
	w.socket = listen(t)
	w.relay = newRelay(w.tracker, c)
	w.relay.now = func() time.Time { return time.Now().Add(time.Duration(w.skipped.Load())) }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.relay.serve(ctx, []*net.UDPConn{w.socket})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

func all(netip.AddrPort) bool { return true }

func listen(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetReadDeadline(time.Now().Add(patience))
	return c
}

// echo answers with the sender's port before what it got, and stands for dst.
func (w *world) echo(dst netip.AddrPort) *net.UDPConn {
	c := listen(w.t)
	_ = c.SetReadDeadline(time.Time{})
	w.mu.Lock()
	w.far[dst] = addrPort(c.LocalAddr())
	w.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, maxDatagram)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	w.t.Cleanup(func() { c.Close(); <-done })
	return c
}

// program is a socket inside, whose datagrams are meant for dst.
func (w *world) program(dst netip.AddrPort) *net.UDPConn {
	c := listen(w.t)
	w.tracker.set(addrPort(c.LocalAddr()), dst)
	return c
}

func (w *world) send(c *net.UDPConn, b []byte) {
	w.t.Helper()
	if _, err := c.WriteToUDPAddrPort(b, addrPort(w.socket.LocalAddr())); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) roundTrip(c *net.UDPConn, b []byte) {
	w.t.Helper()
	w.send(c, b)
	got := make([]byte, maxDatagram)
	n, from, err := c.ReadFromUDPAddrPort(got)
	if err != nil {
		w.t.Fatalf("no answer: %v", err)
	}
	if from != addrPort(w.socket.LocalAddr()) || !bytes.Equal(got[:n], b) {
		w.t.Fatalf("answer of %d bytes from %v, want the %d that were sent from %v", n, from, len(b), w.socket.LocalAddr())
	}
}

func (w *world) end() Record {
	w.t.Helper()
	select {
	case r := <-w.ended:
		return r
	case <-time.After(patience):
		w.t.Fatal("no flow ended")
		return Record{}
	}
}

func TestBothWays(t *testing.T) {
	w := start(t, Config{Allow: all})
	w.echo(dstA)
	w.echo(dstB)
	a, b := w.program(dstA), w.program(dstB)
	for _, size := range []int{1, 0, 1472, 65507} {
		w.roundTrip(a, bytes.Repeat([]byte("a"), size))
		w.roundTrip(b, bytes.Repeat([]byte("b"), size))
	}
	for _, c := range []*net.UDPConn{a, b} {
		if n := w.tracker.questions(addrPort(c.LocalAddr())); n != 1 {
			t.Errorf("connection tracking was asked %d times for one peer", n)
		}
	}
	if n := w.dialled.Load(); n != 2 {
		t.Errorf("%d sockets for two peers", n)
	}
}

func TestRefusals(t *testing.T) {
	allowed := netip.MustParseAddrPort("192.0.2.1:443")
	for _, c := range []struct {
		dst   string
		allow func(netip.AddrPort) bool
	}{
		{"192.0.2.1:7", func(dst netip.AddrPort) bool { return dst == allowed }},
		{"192.0.2.1:443", nil},
		{"127.0.0.1:7", all},
		{"127.1.2.3:7", all},
		{"[::1]:7", all},
		{"[::ffff:127.0.0.1]:7", all},
		{"0.0.0.0:7", all},
		{"[::]:7", all},
		{"224.0.0.251:5353", all},
		{"[ff02::fb]:5353", all},
		{"[fe80::1]:7", all},
		{"192.0.2.1:0", all},
	} {
		t.Run(fmt.Sprintf("%s allow=%t", c.dst, c.allow != nil), func(t *testing.T) {
			w := start(t, Config{Allow: c.allow})
			dst := netip.MustParseAddrPort(c.dst)
			p := w.program(dst)
			w.send(p, []byte("x"))
			w.send(p, []byte("y"))
			w.settle()
			if n := w.dialled.Load(); n != 0 {
				t.Errorf("dialled %d times", n)
			}
			if n := w.tracker.questions(addrPort(p.LocalAddr())); n != 1 {
				t.Errorf("connection tracking was asked %d times", n)
			}
			w.skipped.Add(int64(refusedFor))
			w.send(p, []byte("z"))
			w.settle()
			if n := w.tracker.questions(addrPort(p.LocalAddr())); n != 2 {
				t.Errorf("connection tracking was asked %d times after a while", n)
			}
		})
	}
}

// settle returns when everything sent so far went through the relay: one socket is
// read in order.
func (w *world) settle() {
	w.t.Helper()
	p := listen(w.t)
	peer := addrPort(p.LocalAddr())
	w.send(p, nil)
	for end := time.Now().Add(patience); w.tracker.questions(peer) == 0; {
		if time.Now().After(end) {
			w.t.Fatal("the relay does not read")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestUnknownPeerIsDropped(t *testing.T) {
	w := start(t, Config{Allow: all})
	w.settle() // its own datagram is of an unknown peer
	if n := w.dialled.Load(); n != 0 {
		t.Errorf("dialled %d times", n)
	}
}

func TestIdlePeerIsLookedUpAgain(t *testing.T) {
	w := start(t, Config{Allow: all, IdleTimeout: 100 * time.Millisecond})
	w.echo(dstA)
	p := w.program(dstA)
	for range 2 {
		w.roundTrip(p, []byte("hello"))
		want := Record{addrPort(p.LocalAddr()), dstA, 5, 5}
		if r := w.end(); r != want {
			t.Errorf("record %+v, want %+v", r, want)
		}
	}
	if n := w.tracker.questions(addrPort(p.LocalAddr())); n != 2 {
		t.Errorf("connection tracking was asked %d times", n)
	}
}

func TestUseKeepsAPeer(t *testing.T) {
	w := start(t, Config{Allow: all, IdleTimeout: patience})
	w.echo(dstA)
	p := w.program(dstA)
	w.roundTrip(p, []byte("x"))
	f := w.only()
	w.skipped.Add(int64(patience) - int64(time.Second))
	w.roundTrip(p, []byte("x"))
	w.skipped.Add(int64(2 * time.Second))
	if left := w.relay.idle(f); left <= 0 {
		t.Errorf("a peer in use is idle by %v", -left)
	}
	w.skipped.Add(int64(patience))
	if left := w.relay.idle(f); left > 0 {
		t.Errorf("an idle peer has %v left", left)
	}
	f.close() // idle took it out, which only its own goroutine does otherwise
}

func (w *world) only() *flow {
	w.t.Helper()
	w.relay.mu.Lock()
	defer w.relay.mu.Unlock()
	if len(w.relay.byPeer) != 1 || w.relay.recent.Len() != 1 {
		w.t.Fatalf("%d flows, %d in order", len(w.relay.byPeer), w.relay.recent.Len())
	}
	return w.relay.recent.Front().Value.(*flow)
}

func TestOldestGoesFirst(t *testing.T) {
	w := start(t, Config{Allow: all, MaxFlows: 2})
	w.echo(dstA)
	a, b, c := w.program(dstA), w.program(dstA), w.program(dstA)
	w.roundTrip(a, []byte("a"))
	w.roundTrip(b, []byte("b"))
	w.roundTrip(a, []byte("a")) // b is the oldest now
	w.roundTrip(c, []byte("c"))
	if r := w.end(); r.Peer != addrPort(b.LocalAddr()) {
		t.Errorf("peer %v went, want %v", r.Peer, b.LocalAddr())
	}
	w.roundTrip(b, []byte("b"))
	if r := w.end(); r.Peer != addrPort(a.LocalAddr()) {
		t.Errorf("peer %v went, want %v", r.Peer, a.LocalAddr())
	}
	w.relay.mu.Lock()
	defer w.relay.mu.Unlock()
	if n, m := len(w.relay.byPeer), w.relay.recent.Len(); n != 2 || m != 2 {
		t.Errorf("%d flows, %d in order", n, m)
	}
}

func TestRefusedFlowsAreBoundedToo(t *testing.T) {
	w := start(t, Config{Allow: func(netip.AddrPort) bool { return false }, MaxFlows: 3})
	for range 10 {
		w.send(w.program(dstA), nil)
	}
	w.settle()
	w.relay.mu.Lock()
	defer w.relay.mu.Unlock()
	if n, m := len(w.relay.byPeer), w.relay.recent.Len(); n != 3 || m != 3 {
		t.Errorf("%d flows, %d in order", n, m)
	}
}

// TestUnreachableFarSide: an ICMP error ends the peer, and the next datagram finds a
// far side that has come up meanwhile.
func TestUnreachableFarSide(t *testing.T) {
	w := start(t, Config{Allow: all})
	closed := listen(t)
	w.mu.Lock()
	w.far[dstA] = addrPort(closed.LocalAddr())
	w.mu.Unlock()
	closed.Close()
	p := w.program(dstA)
	w.send(p, []byte("x"))
	if r := w.end(); r.Peer != addrPort(p.LocalAddr()) || r.Received != 0 {
		t.Errorf("record %+v", r)
	}
	w.echo(dstA)
	w.roundTrip(p, []byte("y"))
}

// TestPortWithANewMeaning: the kernel forgot a silent conversation and gave its port
// to another one, before the relay called it idle.
func TestPortWithANewMeaning(t *testing.T) {
	w := start(t, Config{Allow: all})
	w.echo(dstA)
	w.echo(dstB)
	p := w.program(dstA)
	peer := addrPort(p.LocalAddr())
	w.roundTrip(p, []byte("x"))
	w.skipped.Add(int64(quiet))
	w.roundTrip(p, []byte("x"))
	if w.only().dst != dstA {
		t.Error("a conversation that lives was given up")
	}

	w.tracker.set(peer, dstB)
	w.skipped.Add(int64(quiet))
	w.roundTrip(p, []byte("x"))
	if f := w.only(); f.dst != dstB {
		t.Errorf("sent to %v, want %v", f.dst, dstB)
	}
	if r := w.end(); r.Dst != dstA || r.Sent != 2 {
		t.Errorf("record %+v", r)
	}
}

// TestLateAnswer: an answer to a conversation that the kernel forgot would reach the
// program from the relay's own address; it is not delivered.
func TestLateAnswer(t *testing.T) {
	w := start(t, Config{Allow: all})
	far := listen(t)
	w.mu.Lock()
	w.far[dstA] = addrPort(far.LocalAddr())
	w.mu.Unlock()
	p := w.program(dstA)
	w.send(p, []byte("question"))
	b := make([]byte, 64)
	_, from, err := far.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	w.tracker.set(addrPort(p.LocalAddr()), dstB)
	w.skipped.Add(int64(quiet))
	if _, err := far.WriteToUDPAddrPort([]byte("answer"), from); err != nil {
		t.Fatal(err)
	}
	if r := w.end(); r.Sent != 8 || r.Received != 0 {
		t.Errorf("record %+v", r)
	}
}

// TestServe: it ends by its context and by its sockets, and leaves nothing (see
// TestMain).
func TestServe(t *testing.T) {
	if err := Serve(t.Context(), nil, nil, Config{}); err == nil {
		t.Error("a relay without tracker and log began")
	}
	for _, end := range []string{"context", "sockets"} {
		t.Run(end, func(t *testing.T) {
			log := slog.New(slog.NewTextHandler(t.Output(), nil))
			tr := &tracker{dst: map[netip.AddrPort]netip.AddrPort{}, asked: map[netip.AddrPort]int{}}
			far, p, sockets := listen(t), listen(t), []*net.UDPConn{listen(t), listen(t)}
			tr.set(addrPort(p.LocalAddr()), dstA)
			ended := make(chan Record, 1)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			for _, s := range sockets {
				_ = s.SetReadDeadline(time.Time{})
			}
			go func() {
				done <- Serve(ctx, sockets, tr, Config{Allow: all, Log: log, Ended: func(r Record) { ended <- r },
					Dial: func(ctx context.Context, _ netip.AddrPort) (*net.UDPConn, error) {
						return dialHost(ctx, addrPort(far.LocalAddr()))
					}})
			}()
			if _, err := p.WriteToUDPAddrPort([]byte("x"), addrPort(sockets[1].LocalAddr())); err != nil {
				t.Fatal(err)
			}
			if _, _, err := far.ReadFromUDPAddrPort(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if end == "context" {
				cancel()
			} else {
				for _, s := range sockets {
					s.Close()
				}
			}
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(patience):
				t.Fatal("it goes on")
			}
			if r := <-ended; r.Sent != 1 {
				t.Errorf("record %+v", r)
			}
		})
	}
}

// TestManyAtOnce has every peer's answers mixed with everybody else's evictions.
func TestManyAtOnce(t *testing.T) {
	w := start(t, Config{Allow: all, MaxFlows: 8})
	w.echo(dstA)
	var programs sync.WaitGroup
	for i := range 32 {
		p := w.program(dstA)
		programs.Go(func() {
			want := []byte(fmt.Sprintf("program %d", i))
			got := make([]byte, 64)
			for answers := 0; answers < 20; {
				if _, err := p.WriteToUDPAddrPort(want, addrPort(w.socket.LocalAddr())); err != nil {
					t.Error(err)
					return
				}
				// An eviction may take the answer with it: ask again.
				_ = p.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				if n, err := p.Read(got); err == nil {
					answers++
					if !bytes.Equal(got[:n], want) {
						t.Errorf("%q got %q", want, got[:n])
					}
				}
			}
		})
	}
	programs.Wait()
}
