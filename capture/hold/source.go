package hold

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/listen"
	"sshbroker/capture/origin"
	"sshbroker/capture/queue"
)

const (
	// maxPending bounds the attempts in flight. What comes beyond it is dropped and
	// comes again a second later.
	maxPending = 8192
	// maxDecided bounds each of two sets of verdicts that are kept for copies.
	maxDecided = 1 << 16
	// remember is how long a verdict is kept for copies of its SYN: twice this at most.
	remember = 40 * time.Second
	// admitTimeout is how long an admitted program may take to finish its handshake. Where
	// the SYN was lost after its verdict, the copy that comes within 1.03 s is in time.
	admitTimeout = 1500 * time.Millisecond
	// acceptPause is how long accept rests when it cannot, and how long nobody is
	// admitted after it has run out of descriptors.
	acceptPause = 20 * time.Millisecond
	// claimTime is how long after a takeover connections wait for somebody to claim them
	// that the dead process had admitted.
	claimTime = 3 * time.Second
	// settle is how old a SYN must be before an ICMP answer to it reaches connect():
	// earlier, the thread in connect() still owns the socket and hears of it a second late.
	settle = 2 * time.Millisecond
)

// Config is what a Source is made of. It owns all of it.
type Config struct {
	Queue     *queue.Queue       // required
	Listeners []*net.TCPListener // required
	Diag      *origin.Diag       // required

	Local  func(netip.Addr) bool   // is that an address of the capture itself? nil: nobody asks
	WayOut func(capture.Flow) bool // can the kernel carry that by itself? required
	PerUID int                     // SYNs of one uid that are held at once; 0: only all together are bounded

	// Find finds the process behind a socket.
	Find func(origin.Socket) capture.Origin // required
	Log  *slog.Logger                       // required
}

// Source implements capture.Source over one packet queue.
type Source struct {
	Config
	ready chan *Attempt
	wg    sync.WaitGroup

	life   context.Context // its cause is what Next returns in the end
	end    context.CancelCauseFunc
	admits sync.WaitGroup // attempts in Admit; added to while not closing

	mu        sync.Mutex
	pending   map[Key]*Attempt
	perUID    map[uint32]int                 // of pending
	awaiting  map[accepted]chan *net.TCPConn // admitted, not accepted yet; each has room for the one
	unclaimed map[accepted]*net.TCPConn      // come before anybody could await them; nil: such are strangers
	decided   [2]map[Key]verdict             // of this period and the last one
	turned    time.Time
	closing   bool      // nobody is admitted any more
	spares    []int     // descriptors kept free for connections in awaiting
	starved   time.Time // when accept last had none of its own

	strangers atomic.Uint64
	bounded   atomic.Uint64
}

// Key is how a SYN and its copies are known.
type Key queue.SYN

// accepted is how an accepted connection is recognised: its source port may have
// been rewritten.
type accepted struct {
	dst netip.AddrPort
	seq uint32
}

// verdict is the class of a SYN that is accepted; drop of one that is not.
type verdict uint32

const drop verdict = 0

// New starts reading. The queues in takeover were read by a process that is dead: what
// it held is queued anew first, and a connection that it admitted can be had by Claim.
func New(c Config, takeover ...uint16) *Source {
	s := &Source{
		Config:   c,
		ready:    make(chan *Attempt, maxPending),
		pending:  map[Key]*Attempt{},
		perUID:   map[uint32]int{},
		awaiting: map[accepted]chan *net.TCPConn{},
		decided:  [2]map[Key]verdict{{}, {}},
		turned:   time.Now(),
	}
	s.life, s.end = context.WithCancelCause(context.Background())
	context.AfterFunc(s.life, func() {
		c.Queue.Close()
		for _, l := range c.Listeners {
			l.Close()
		}
	})
	if len(takeover) > 0 {
		s.unclaimed = map[accepted]*net.TCPConn{}
		time.AfterFunc(claimTime, s.dropUnclaimed)
	}
	s.wg.Go(func() { s.read(takeover) })
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
	case <-s.life.Done():
		return nil, context.Cause(s.life)
	}
}

// Close lets the programs in that are being admitted, which takes a second at most,
// and closes what the source owns. SYNs that are undecided keep waiting in the queue if
// another process holds a duplicate of it, else the kernel drops them.
func (s *Source) Close() error {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.admits.Wait()
	s.end(capture.ErrClosed)
	s.wg.Wait()
	s.dropUnclaimed()
	return s.Diag.Close()
}

// Counters are for status displays.
type Counters struct {
	Pending   int    // SYNs held just now
	Overruns  uint64 // times that the queue was not read in time
	Gone      uint64 // verdicts that came after the kernel had dropped the packet
	Strangers uint64 // connections to a listener that no attempt stood for
	Bounded   uint64 // SYNs put off because too many were held
}

// Counters returns a snapshot.
func (s *Source) Counters() Counters {
	s.mu.Lock()
	pending := len(s.pending)
	s.mu.Unlock()
	return Counters{pending, s.Queue.Overruns(), s.Queue.Gone(), s.strangers.Load(), s.bounded.Load()}
}

// read does nothing but read, stamp and hand over: a slow reader costs programs a second.
func (s *Source) read(takeover []uint16) {
	for _, number := range takeover {
		if err := s.Queue.Requeue(number); err != nil {
			s.fail(err)
			return
		}
	}
	for {
		err := s.Queue.Receive(s.arrived)
		switch {
		case err == nil:
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, queue.ErrNotPermitted):
			s.fail(err)
			return
		default:
			s.Log.Warn("packet queue", "error", err)
			s.pause(10 * time.Millisecond) // an error that repeats must not spin
		}
	}
}

func (s *Source) pause(d time.Duration) {
	select {
	case <-s.life.Done():
	case <-time.After(d):
	}
}

// fail ends a source that cannot give verdicts; programs would only hang.
func (s *Source) fail(err error) {
	s.Log.Error("capture ends", "error", err)
	s.end(errors.Join(capture.ErrClosed, err))
}

func (s *Source) arrived(p queue.Packet) {
	syn, ok := queue.ParseSYN(p.Payload)
	p.Payload = nil // is not ours to keep
	v, decided := drop, true
	if ok {
		v, decided = s.enter(Key(syn), p)
	}
	if decided {
		s.verdict(p, v)
	}
}

// enter makes an attempt of a SYN, of which there is none yet and nothing was decided.
func (s *Source) enter(k Key, p queue.Packet) (v verdict, decided bool) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.decided {
		if v, ok := m[k]; ok { // a copy gets what the first one got
			return v, true
		}
	}
	if a := s.pending[k]; a != nil { // the kernel dropped the first one
		a.at = p
		return drop, false
	}
	if len(s.pending) >= maxPending || s.PerUID > 0 && s.perUID[p.UID] >= s.PerUID {
		s.bounded.Add(1)
		return drop, true
	}
	a := &Attempt{source: s, key: k, at: p}
	a.flow = capture.Flow{
		Src: k.Src, Dst: k.Dst, UID: p.UID, Arrived: now,
		Local:  s.Local != nil && s.Local(k.Dst.Addr()),
		Origin: sync.OnceValue(a.origin),
	}
	s.pending[k] = a
	s.perUID[p.UID]++
	s.turn(now)
	s.ready <- a // never blocks: it has room for every pending attempt
	return drop, false
}

// turn forgets old decisions. The caller holds mu.
func (s *Source) turn(now time.Time) {
	if now.Sub(s.turned) >= remember || len(s.decided[0]) >= maxDecided {
		s.decided[0], s.decided[1] = map[Key]verdict{}, s.decided[0]
		s.turned = now
	}
}

// verdict gives that of the SYN that the kernel holds as p.
func (s *Source) verdict(p queue.Packet, v verdict) {
	what := queue.Accept
	if v == drop {
		what = queue.Drop
	}
	err := s.Queue.Verdict(p.Queue, p.ID, what, capture.WithClass(p.Mark, uint32(v)))
	switch {
	case err == nil, errors.Is(err, os.ErrClosed):
	case errors.Is(err, queue.ErrNotPermitted):
		s.fail(err)
	default:
		s.Log.Warn("verdict", "error", err)
	}
}

// accept takes connections from one listener and gives each to its attempt.
func (s *Source) accept(l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case s.exhausted(err):
		case err != nil:
			s.Log.Warn("accept", "error", err) // wait and go on
			s.pause(acceptPause)
		default:
			if seq, dst, err := listen.Identify(c); err != nil || !s.deliver(accepted{dst, seq}, c) {
				s.strangers.Add(1)
				reset(c)
			}
		}
	}
}

// await has connections of that key sent to taken, and takes a descriptor that accept
// can have in place of one for the connection: a program must not be told that it is
// connected when nobody can serve it.
func (s *Source) await(k accepted, taken chan *net.TCPConn) error {
	s.mu.Lock()
	starved := time.Since(s.starved) < acceptPause
	s.mu.Unlock()
	if starved { // what was freed is for accept
		return fmt.Errorf("%w: %w", capture.ErrNoDescriptors, unix.EMFILE)
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC) // any will do
	if err != nil {
		return fmt.Errorf("%w: %w", capture.ErrNoDescriptors, os.NewSyscallError("eventfd", err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		unix.Close(fd)
		return capture.ErrClosed
	}
	s.admits.Add(1)
	s.spares = append(s.spares, fd)
	if c := s.unclaimed[k]; c != nil {
		delete(s.unclaimed, k)
		taken <- c
		return nil
	}
	s.awaiting[k] = taken
	return nil
}

// unawait gives back the descriptor of one that has left awaiting, unless accept has
// had it.
func (s *Source) unawait() {
	defer s.admits.Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.spares) > len(s.awaiting) {
		s.freeSpare()
	}
}

// freeSpare makes one descriptor free, if one was reserved. The caller holds mu.
func (s *Source) freeSpare() bool {
	last := len(s.spares) - 1
	if last < 0 {
		return false
	}
	unix.Close(s.spares[last])
	s.spares = s.spares[:last]
	return true
}

// exhausted makes room for one connection after accept has failed with err, if it
// was for want of a descriptor.
func (s *Source) exhausted(err error) bool {
	if !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starved = time.Now()
	return s.freeSpare()
}

// deliver hands c to whoever awaits it, under the lock by which one stops waiting, so
// that no connection is left between the two.
func (s *Source) deliver(k accepted, c *net.TCPConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.awaiting[k]
	own, _ := c.LocalAddr().(*net.TCPAddr)
	switch {
	case taken != nil:
		delete(s.awaiting, k)
		taken <- c // has room for it
	case s.unclaimed != nil && k.dst != own.AddrPort() && len(s.unclaimed) < maxPending:
		s.unclaimed[k] = c
	default:
		return false
	}
	return true
}

// dropUnclaimed ends the time in which connections are kept that nobody awaits.
func (s *Source) dropUnclaimed() {
	s.mu.Lock()
	left := s.unclaimed
	s.unclaimed = nil
	s.mu.Unlock()
	for _, c := range left {
		s.strangers.Add(1)
		reset(c)
	}
}

func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	c.Close()
}
