package profiles

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// forgetAfter is how long the last failure of a way out is shown once its rest is
// over. readyFor is how long a transport made by Ready waits for its first stream
// where the profile closes it with the last one.
const (
	forgetAfter = 5 * time.Minute
	readyFor    = time.Minute
)

// Pool keeps one transport for each way out, or several (see bundle): opened on first
// need by one attempt that everybody who waits shares, and closed as the profile says.
// Safe for concurrent use.
type Pool struct {
	// Observe is told of transports as they come and go; it is set before the first Open.
	Observe Observer

	connector Connector
	log       *slog.Logger
	life      context.Context
	end       context.CancelCauseFunc
	tasks     sync.WaitGroup // attempts and watchers of transports

	mu        sync.Mutex
	ways      map[wayKey]*way
	streams   map[*pooled]struct{}
	lastID    uint64
	draining  bool
	closed    bool
	changes   chan struct{} // has room for one
	quiet     chan struct{} // closed when draining and nothing is live
	quietOnce sync.Once
}

// way is one way out: a transport, an attempt to get one, or the memory of why
// there is none.
type way struct {
	key     wayKey
	id      uint64
	profile *Profile
	link    *link
	attempt *attempt
	server  Server // that was tried last
	*memory

	renewing bool // another transport is on its way
	renewal  backoff
}

// wayKey tells ways out apart. Those of an exclusive profile have a number each; the
// one with 0 then has no transport, and keeps their memory. The further transports of a
// bundle get a number too, and one that another has replaced.
type wayKey struct {
	Key
	number uint64
}

// memory is what is known of the servers of one Key, by the pool's lock.
type memory struct {
	backoff backoff
	down    map[Server]time.Time // when it could not be reached; nil: none is known
	begins  chan struct{}        // has room for the attempts of an exclusive profile
	bundle  *bundle              // nil: one transport at a time
}

// link is one live transport. Its fields are guarded by the pool's lock.
type link struct {
	Transport
	way     *way
	server  Server // of the profile's; not changed
	since   time.Time
	streams int  // open or being opened, and kept
	kept    int  // held open by Keep
	used    bool // had a stream
	retired bool
	closing bool // closed by us, which is no failure
	idle    *time.Timer
	idling  bool // idle is running

	// Of one in a bundle.
	number   int  // among those that are there
	ahead    bool // nobody had asked for it
	attended bool // a person had a part in its login
	marked   uint64
	recent   uint64 // carried within the last tick, which ended at marked

	replaced chan struct{} // closed once it has carried enough and another one takes new streams
}

// event is what there is to tell of a transport.
func (l *link) event(kind EventKind) Event {
	e := Event{Kind: kind, Profile: l.way.profile, Lived: time.Since(l.since)}
	if d, ok := l.Transport.(Describer); ok && kind == Connected {
		about := d.Describe()
		e.Cipher, e.KeyHash = about.Cipher, about.HostKey
	}
	return e
}

// attempt is one connect under way. err is set before done is closed.
type attempt struct {
	done    chan struct{}
	err     error
	waiters int
	asked   atomic.Bool        // a person was asked
	alone   context.CancelFunc // ends the questions to the person when nobody waits
}

// NewPool returns an empty pool. The caller closes it.
func NewPool(c Connector, log *slog.Logger) *Pool {
	life, end := context.WithCancelCause(context.Background())
	return &Pool{
		connector: c,
		log:       log,
		life:      life,
		end:       end,
		ways:      make(map[wayKey]*way),
		streams:   make(map[*pooled]struct{}),
		changes:   make(chan struct{}, 1),
		quiet:     make(chan struct{}),
	}
}

// Open opens a stream to dst through p's transport and connects first where there
// is none. Errors are of the classes of this package; ErrClosed when the pool is
// closing; ctx's error when it ended. While a way out rests after a failure Open
// fails at once with that failure. A connect goes on when ctx ends, as others may
// need it; its questions to the person end when nobody waits any more. The caller
// closes the stream.
func (pl *Pool) Open(ctx context.Context, p *Profile, dst Destination, ask Prompter) (Stream, error) {
	return pl.open(ctx, p, dst, ask, expectByHabit)
}

func (pl *Pool) open(ctx context.Context, p *Profile, dst Destination, ask Prompter, e expectation) (Stream, error) {
	for lost := 0; ; lost++ {
		l, err := pl.acquire(ctx, p, &dst, ask, false, e)
		if err != nil {
			return nil, err
		}
		s, err := l.Open(ctx, dst)
		if err == nil {
			return pl.hold(l, s, dst, e), nil
		}
		pl.release(l)
		// A transport can go between being chosen and being asked. Nothing was sent
		// to the destination then, so another one may be asked, once; where there are
		// several, all of them may have gone.
		if lost >= max(p.Transports, 1) || !errors.Is(err, ErrLost) || ctx.Err() != nil {
			return nil, fmt.Errorf("profile %q: %w", p.Label(), err)
		}
		select {
		case <-l.Done():
			pl.forget(l)
		case <-l.replaced:
		case <-ctx.Done():
		}
	}
}

// Changes says, some time after it has happened, that a transport has come or gone.
// Whoever reads it looks at List; there may be one reader.
func (pl *Pool) Changes() <-chan struct{} { return pl.changes }

func (pl *Pool) changedLocked() {
	select {
	case pl.changes <- struct{}{}:
	default: // it will be read yet
	}
}

// Ready connects without opening a stream. Where a person can be asked it does not
// mind the rest after a failure: somebody is there who wants it now.
func (pl *Pool) Ready(ctx context.Context, p *Profile, ask Prompter) error {
	l, err := pl.acquire(ctx, p, nil, ask, ask != nil, expectQuiet)
	if err != nil {
		return err
	}
	pl.mu.Lock()
	defer pl.mu.Unlock()
	l.streams--
	pl.restLocked(l)
	return nil
}

// With has use ask something of p's transport, and connects where there is none. Its
// errors are those of Open, and use's.
func (pl *Pool) With(ctx context.Context, p *Profile, ask Prompter, use func(Transport) error) error {
	l, err := pl.acquire(ctx, p, nil, ask, false, expectQuiet)
	if err != nil {
		return err
	}
	defer pl.release(l)
	return use(l.Transport)
}

// acquire returns a live transport of p with one stream counted on it, which is to go to
// dst where it goes anywhere.
func (pl *Pool) acquire(ctx context.Context, p *Profile, dst *Destination, ask Prompter, urgent bool, e expectation) (*link, error) {
	if _, err := p.Chain(); err != nil {
		return nil, fmt.Errorf("profile %q: %w", p.Label(), err)
	}
	key := p.Key()
	for {
		pl.mu.Lock()
		if pl.draining {
			pl.mu.Unlock()
			return nil, fmt.Errorf("profile %q: %w", p.Label(), ErrClosed)
		}
		w := pl.wayLocked(key, p)
		if l := pl.liveLocked(w, dst, e); l != nil {
			l.streams++
			l.wakeLocked()
			pl.renewLocked(l)
			if w.bundle != nil {
				pl.lookLocked(w)
			}
			pl.mu.Unlock()
			return l, nil
		}
		if w.attempt == nil {
			if rest := w.backoff.rest(time.Now()); rest > 0 && !urgent {
				err := w.backoff.last
				pl.partLocked(w)
				pl.mu.Unlock()
				return nil, fmt.Errorf("profile %q: %w (next attempt in %s)", p.Label(), err, rest.Round(time.Millisecond))
			}
			pl.startLocked(w, ask)
			urgent = false
		}
		a := w.attempt
		a.waiters++
		pl.mu.Unlock()

		select {
		case <-a.done:
		case <-ctx.Done():
		}
		pl.mu.Lock()
		if a.waiters--; a.waiters == 0 {
			a.alone()
		}
		pl.mu.Unlock()
		select {
		case <-a.done:
			if a.err != nil {
				return nil, fmt.Errorf("profile %q: %w", p.Label(), a.err)
			}
		default:
			return nil, fmt.Errorf("profile %q: waiting for the server: %w", p.Label(), context.Cause(ctx))
		}
	}
}

// liveLocked is the live transport of a way out, the right one where there are several;
// nil for none.
func (pl *Pool) liveLocked(w *way, dst *Destination, e expectation) *link {
	if b := w.bundle; b != nil {
		for _, l := range slices.Clone(b.links) {
			if over(l) {
				pl.lostLocked(l)
			}
		}
		if len(b.links) == 0 {
			return nil
		}
		return b.choose(b.expect(e, dst))
	}
	if l := w.link; l != nil && over(l) {
		pl.lostLocked(l)
	}
	return w.link
}

// wayLocked finds or makes the way out and drops those that have nothing to tell
// any more, as profiles made for one host each come and go.
func (pl *Pool) wayLocked(key Key, p *Profile) *way {
	w := pl.ways[wayKey{key, 0}]
	if w == nil {
		now := time.Now()
		for k, w := range pl.ways {
			if w.link == nil && w.attempt == nil && (w.bundle == nil || len(w.bundle.links) == 0) && -w.backoff.rest(now) > forgetAfter {
				delete(pl.ways, k)
			}
		}
		w = pl.addLocked(wayKey{key, 0}, p, &memory{begins: make(chan struct{}, exclusiveBegins), bundle: newBundle(p)})
	}
	if p.Exclusive {
		return pl.ownLocked(w)
	}
	return w
}

func (pl *Pool) addLocked(key wayKey, p *Profile, m *memory) *way {
	pl.lastID++
	w := &way{key: key, id: pl.lastID, profile: p, memory: m, server: Server{p.Host, p.Port}}
	pl.ways[key] = w
	return w
}

// startLocked begins the one attempt of a way out.
func (pl *Pool) startLocked(w *way, ask Prompter) {
	waited, alone := context.WithCancel(pl.life)
	w.attempt = &attempt{done: make(chan struct{}), alone: alone}
	if ask != nil {
		ask = whileWaited{Prompter: ask, waited: waited, asked: &w.attempt.asked}
	}
	pl.tasks.Go(func() { pl.connect(w, w.attempt, ask) })
}

func (pl *Pool) connect(w *way, a *attempt, ask Prompter) {
	t, server, err := pl.reach(w, ask)

	pl.mu.Lock()
	defer pl.mu.Unlock()
	w.attempt = nil
	if err == nil && pl.life.Err() != nil {
		pl.tasks.Go(func() { t.Close() })
		err = ErrClosed
	}
	if err != nil {
		if !errors.Is(err, errResting) {
			w.backoff.failed(time.Now(), err, rand.Float64())
			pl.Observe.Tell(Event{Kind: ConnectFailed, Profile: w.profile, Err: err})
			pl.log.Warn("connect failed", "profile", w.profile.Label(), "failures", w.backoff.failures, "error", err)
		}
		pl.partLocked(w)
	} else {
		l := pl.tookLocked(w, t, server)
		l.attended = l.attended || a.asked.Load()
		pl.restLocked(l)
	}
	a.err = err
	close(a.done)
	pl.settleLocked()
}

// tookLocked makes a transport to one of its servers that of a way out. The caller lets it
// rest.
func (pl *Pool) tookLocked(w *way, t Transport, server Server) *link {
	l := &link{Transport: t, way: w, server: server, since: time.Now(), replaced: make(chan struct{})}
	w.link = l
	if a, ok := t.(Attended); ok {
		l.attended = a.Attended()
	}
	if w.bundle != nil {
		w.bundle.join(l)
	}
	said := []any{"profile", w.profile.Label(), "server", server, "user", w.profile.User}
	if w.bundle != nil {
		said = append(said, "number", l.number)
	}
	pl.log.Info("connected", said...)
	pl.Observe.Tell(l.event(Connected))
	pl.changedLocked()
	pl.tasks.Go(func() { pl.watch(l) })
	return l
}

// through dials inside a stream of the gateway's transport.
func (pl *Pool) through(gw *Profile, ask Prompter) DialFunc {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		host, service, err := net.SplitHostPort(address)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSetup, err)
		}
		port, err := strconv.ParseUint(service, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSetup, err)
		}
		s, err := pl.open(ctx, gw, Destination{Host: host, Port: uint16(port)}, ask, expectAnything)
		switch {
		case err == nil:
			return s, nil
		case errors.Is(err, ErrHostKey), errors.Is(err, ErrAuth), errors.Is(err, ErrSetup), errors.Is(err, ErrClosed):
			return nil, fmt.Errorf("gateway: %w", err)
		}
		// What the gateway says of our server must not read as if said of the
		// destination of a flow.
		return nil, fmt.Errorf("gateway: %w: %v", ErrConnect, err)
	}
}

// watch waits for the end of a transport.
func (pl *Pool) watch(l *link) {
	if t, ok := l.Transport.(Retirer); ok {
		select {
		case <-t.Retired():
			pl.mu.Lock()
			if l.way.link == l && !l.closing && !isClosed(l.replaced) {
				pl.log.Info("the connection takes no new streams", "profile", l.way.profile.Label(), "server", l.server)
				pl.setAsideLocked(l)
				pl.restLocked(l)
			}
			pl.mu.Unlock()
		case <-l.Done():
		}
	}
	<-l.Done()
	pl.mu.Lock()
	defer pl.mu.Unlock()
	pl.lostLocked(l)
	pl.settleLocked()
}

// forget takes a transport that has ended out of use.
func (pl *Pool) forget(l *link) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	pl.lostLocked(l)
}

func (pl *Pool) lostLocked(l *link) {
	if l.way.link != l {
		return
	}
	pl.unlinkLocked(l)
	lived := time.Since(l.since)
	if b := l.way.bundle; b != nil && len(b.links) > 0 {
		b.lostBeside(l, lived)
	} else {
		l.way.backoff.lost(time.Now(), lived, l.Err(), rand.Float64())
	}
	gone := l.event(ConnectionLost)
	gone.Err = l.Err()
	pl.Observe.Tell(gone)
	pl.log.Warn("transport lost", "profile", l.way.profile.Label(), "lived", lived.Round(time.Millisecond),
		"streams", l.streams, "error", l.Err())
}

// release takes one stream off a transport.
func (pl *Pool) release(l *link) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	l.streams--
	l.used = true
	pl.restLocked(l)
	if b := l.way.bundle; b != nil {
		for _, o := range slices.Clone(b.links) { // which may not be needed any more
			pl.restLocked(o)
		}
	}
}

// restLocked decides what becomes of a transport without streams.
func (pl *Pool) restLocked(l *link) {
	if l.streams > 0 || l.closing || l.way.link != l {
		return
	}
	wait, stays := l.patience()
	switch {
	case l.retired || isClosed(l.replaced) || pl.draining:
		pl.closeLocked(l)
		return
	case stays || l.idling:
		return
	case wait == 0:
		pl.closeLocked(l)
		return
	}
	l.idling = true
	if l.idle != nil {
		l.idle.Reset(wait)
		return
	}
	l.idle = time.AfterFunc(wait, func() {
		pl.mu.Lock()
		defer pl.mu.Unlock()
		l.idling = false
		if _, stays := l.patience(); l.streams == 0 && !stays && !l.closing && l.way.link == l {
			pl.closeLocked(l)
		}
	})
}

// patience is how long a transport is kept without streams, or that it stays.
func (l *link) patience() (wait time.Duration, stays bool) {
	b, wait := l.way.bundle, l.way.profile.IdleTimeout
	switch {
	case b != nil && b.needs(l):
		return 0, true
	case wait < 0 && b != nil && l.ahead && len(b.links) > 1:
		return spareIdle, false
	case wait < 0:
		return 0, !(l.used && l.way.profile.Exclusive)
	case l.way.profile.Exclusive && l.used:
		return 0, false
	case wait == 0 && !l.used && !l.ahead:
		return readyFor, false
	}
	return wait, false
}

// wakeLocked has a transport not closed for want of streams.
func (l *link) wakeLocked() {
	if l.idle != nil {
		l.idle.Stop()
		l.idling = false
	}
}

// unlinkLocked takes a transport off its way out.
func (pl *Pool) unlinkLocked(l *link) {
	l.way.link = nil
	if l.way.bundle != nil {
		l.way.bundle.leave(l)
	}
	l.wakeLocked()
	pl.changedLocked()
	pl.partLocked(l.way)
}

// closeLocked closes a transport that nobody needs, without waiting for it.
func (pl *Pool) closeLocked(l *link) {
	if l.closing {
		return
	}
	l.closing = true
	if l.way.link == l {
		l.way.backoff = backoff{}
		pl.unlinkLocked(l)
	}
	pl.Observe.Tell(l.event(Disconnected))
	pl.log.Info("disconnecting", "profile", l.way.profile.Label())
	pl.tasks.Go(func() {
		l.Close()
		pl.mu.Lock()
		defer pl.mu.Unlock()
		pl.settleLocked()
	})
}

// settleLocked tells Drain when nothing is live any more.
func (pl *Pool) settleLocked() {
	if !pl.draining {
		return
	}
	for _, w := range pl.ways {
		if w.link != nil || w.attempt != nil {
			return
		}
	}
	pl.quietOnce.Do(func() { close(pl.quiet) })
}

// ErrUnknown says that there is no transport to be cut.
var ErrUnknown = errors.New("no such connection")

// Cut closes a transport by its ID in List, and so resets its streams. Who needs one
// again opens it again.
func (pl *Pool) Cut(id uint64) error {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	for _, w := range pl.ways {
		if w.id == id && w.link != nil {
			pl.closeLocked(w.link)
			return nil
		}
	}
	return fmt.Errorf("connection %d: %w", id, ErrUnknown)
}

// Retire closes every transport that keep does not want, each after its last
// stream. keep is called with the pool locked. Give it the keys of gateways too
// (Chain) where they shall live on without streams.
func (pl *Pool) Retire(keep func(Key) bool) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	for key, w := range pl.ways {
		switch {
		case keep(key.Key):
			if w.link != nil {
				w.link.retired = false
			}
		case w.link != nil:
			w.link.retired = true
			pl.restLocked(w.link)
		case w.attempt == nil:
			delete(pl.ways, key)
		}
	}
}

// Drain opens nothing more, waits until the last stream has ended or ctx does, and
// closes the pool. It returns ctx's error where streams had to be cut.
func (pl *Pool) Drain(ctx context.Context) error {
	pl.mu.Lock()
	pl.draining = true
	for _, w := range pl.ways {
		if w.link != nil {
			pl.restLocked(w.link)
		}
	}
	pl.settleLocked()
	pl.mu.Unlock()
	var err error
	select {
	case <-pl.quiet:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	pl.Close()
	return err
}

// Close cuts every stream, closes every transport, ends every attempt and returns
// when all of that is done. Open and Ready fail with ErrClosed from then on.
func (pl *Pool) Close() error {
	pl.mu.Lock()
	pl.draining = true
	first := !pl.closed
	pl.closed = true
	if first {
		pl.end(ErrClosed)
		for _, w := range pl.ways {
			if w.link != nil {
				pl.closeLocked(w.link)
			}
		}
	}
	pl.settleLocked()
	pl.mu.Unlock()
	pl.tasks.Wait()
	return nil
}

// over tells whether a transport has ended.
func over(t Transport) bool { return isClosed(t.Done()) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// whileWaited asks only as long as somebody waits for what the answer is for.
type whileWaited struct {
	Prompter
	waited context.Context
	asked  *atomic.Bool // set when it has
}

func (w whileWaited) Ask(ctx context.Context, p Prompt) (string, error) {
	w.asked.Store(true)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(w.waited, cancel)()
	return w.Prompter.Ask(ctx, p)
}
