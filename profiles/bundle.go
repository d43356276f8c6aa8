package profiles

import (
	"cmp"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"
)

// A profile with several transports has a bundle of them. A stream stays where it was
// opened, and nobody knows then whether it will be a transfer or a session that a person
// waits for; a transport that carries a transfer makes whatever else it carries wait. So
// streams are put by what their destinations were so far (habit), and an empty transport
// is kept for those that nothing is known of:
//
//	destination   goes to
//	quiet         the transport without bulk that has most streams, as they do each other no harm
//	bulk          any but that one: an empty one, else the one with bulk that has fewest
//	unknown       the transport without bulk that has fewest streams: the empty one
//
// An open never waits for a transport where there is one. The next is made behind it, by
// one attempt at a time that asks nobody, while none is empty and there are fewer than the
// profile allows.
const (
	// bundleTick is how often a bundle in use is looked at, and the time that rates are
	// taken over.
	bundleTick = time.Second
	// bulkBytes within a tick are bulk: a session is below, and one megabit a second is
	// what a slow line is filled by.
	bulkBytes = 128 << 10
	// spareIdle is how long transports that were made ahead stay without streams where
	// the profile's never end. One stays.
	spareIdle = time.Minute
)

// bundle is what a way out with several transports knows of them, by the pool's lock.
type bundle struct {
	links  []*link // that take new streams, oldest first
	habits habits
	timer  *time.Timer // while a stream is open; nil before the first
	on     bool
	turn   uint64 // of ticks

	making  bool // another transport is on its way
	refusal backoff
}

// bundled tells whether a profile may have several transports at a time. Those inside of
// the connection that an ssh has would all be one, and to a proxy of HTTP each flow has its
// own connection in any case.
func bundled(p *Profile) bool {
	return p.Transports > 1 && !p.Exclusive && p.ControlPath == "" && !p.TLS.Proxy
}

func newBundle(p *Profile) *bundle {
	if !bundled(p) {
		return nil
	}
	return &bundle{habits: make(habits)}
}

func (b *bundle) join(l *link) {
	l.marked = l.carried()
	for l.number = 1; slices.ContainsFunc(b.links, func(o *link) bool { return o.number == l.number }); {
		l.number++
	}
	b.links = append(b.links, l)
}

func (b *bundle) leave(l *link) {
	b.links = slices.DeleteFunc(b.links, func(o *link) bool { return o == l })
}

// inUse tells whether a program has a stream on any of them.
func (b *bundle) inUse() bool {
	return slices.ContainsFunc(b.links, func(l *link) bool { return !l.empty() })
}

// needs tells whether an empty transport is the one to be kept for what may come.
func (b *bundle) needs(l *link) bool {
	first := slices.IndexFunc(b.links, (*link).empty)
	return first >= 0 && b.links[first] == l && b.inUse()
}

// choose returns the transport for a stream to a destination of that habit. There is one.
func (b *bundle) choose(h habit) *link {
	calm := slices.MinFunc(b.links, func(x, y *link) int {
		return cmp.Or(before(y.busy(), x.busy()), cmp.Compare(y.open(), x.open()))
	})
	if h == quiet && !calm.busy() {
		return calm
	}
	return slices.MinFunc(b.links, func(x, y *link) int {
		byOpen := cmp.Compare(x.open(), y.open())
		if h != bulk {
			return cmp.Or(before(y.busy(), x.busy()), byOpen)
		}
		return cmp.Or(before(y == calm && !y.busy(), x == calm && !x.busy()), before(x.empty(), y.empty()), before(x.busy(), y.busy()), byOpen)
	})
}

// expect says what to expect of a stream to dst.
func (b *bundle) expect(e expectation, dst *Destination) habit {
	switch e {
	case expectByHabit:
		return b.habits.of(*dst, time.Now())
	case expectQuiet:
		return quiet
	}
	return unknown
}

// before orders what is so before what is not.
func before(x, y bool) int {
	switch {
	case x == y:
		return 0
	case x:
		return -1
	}
	return 1
}

// open is how many streams of programs a transport has.
func (l *link) open() int { return l.streams - l.kept }

func (l *link) empty() bool { return l.open() == 0 }

// busy tells whether a transport carries bulk: within the last tick, or since.
func (l *link) busy() bool { return l.recent >= bulkBytes || l.carried()-l.marked >= bulkBytes }

// carried is zero for ever where the transport does not tell.
func (l *link) carried() uint64 {
	if c, ok := l.Transport.(Carrying); ok {
		return c.Carried()
	}
	return 0
}

// lookLocked has the bundle looked at from now on until it has no stream any more.
func (pl *Pool) lookLocked(w *way) {
	b := w.bundle
	if b.on {
		return
	}
	b.on = true
	if b.timer == nil {
		b.timer = time.AfterFunc(bundleTick, func() { pl.look(w) })
	} else {
		b.timer.Reset(bundleTick)
	}
}

// look finds out what carries bulk, and has another transport made where that is wanted.
func (pl *Pool) look(w *way) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	b := w.bundle
	b.turn++
	busy := false
	for _, l := range b.links {
		now := l.carried()
		l.recent, l.marked = now-l.marked, now
		busy = busy || l.busy()
		if l.ahead && l.since.After(b.refusal.until) && time.Since(l.since) >= provenAfter {
			b.refusal = backoff{}
		}
	}
	if b.on = b.inUse() && !pl.closed; !b.on {
		for _, l := range b.links {
			l.recent = 0
		}
		return
	}
	b.timer.Reset(bundleTick)
	if busy {
		pl.countLocked(b)
	}
	pl.spareLocked(w)
}

// countLocked finds the streams that are bulk, on the transports that have it.
func (pl *Pool) countLocked(b *bundle) {
	for p := range pl.streams {
		if !p.learns || p.link.way.bundle != b || p.link.recent < bulkBytes {
			continue
		}
		sent, received := p.Counts()
		now := sent + received
		if p.turn == b.turn-1 && now-p.counted >= bulkBytes && !p.bulk {
			p.bulk = true
			b.habits.isBulk(p.dst, p.since)
		}
		p.turn, p.counted = b.turn, now
	}
}

// spareLocked has another transport made where that is wanted. One that goes through a
// gateway waits for the gateway's own next one, to have it to itself.
func (pl *Pool) spareLocked(w *way) {
	b := w.bundle
	if b.making || !pl.growsLocked(w) {
		return
	}
	if gw := w.profile.Gateway; gw != nil && bundled(gw) {
		if below := pl.ways[wayKey{gw.Key(), 0}]; below != nil && (below.bundle.making || pl.growsLocked(below)) {
			return
		}
	}
	b.making = true
	pl.tasks.Go(func() { pl.spare(w) })
}

// growsLocked tells whether a way out is to have another transport: none is empty and there
// may be one more, and it takes no person, and none was refused a short time ago.
func (pl *Pool) growsLocked(w *way) bool {
	b, now := w.bundle, time.Now()
	if pl.draining || w.attempt != nil || pl.ways[w.key] != w || len(b.links) >= w.profile.Transports ||
		b.refusal.rest(now) > 0 || w.backoff.rest(now) > 0 {
		return false
	}
	unattended := false
	for _, l := range b.links {
		if l.empty() || l.retired {
			return false
		}
		unattended = unattended || !l.attended
	}
	return unattended
}

func (pl *Pool) spare(w *way) {
	t, server, err := pl.reach(w, nil)
	pl.mu.Lock()
	defer pl.mu.Unlock()
	b := w.bundle
	b.making = false
	if err != nil {
		if pl.life.Err() == nil {
			pl.refusedLocked(w, err)
		}
		return
	}
	if !b.inUse() && w.attempt == nil || pl.draining || pl.ways[w.key] != w { // nobody needs it any more
		pl.tasks.Go(func() { t.Close() })
		return
	}
	at := w
	if w.link != nil || w.attempt != nil {
		at = pl.addLocked(wayKey{w.key.Key, pl.lastID + 1}, w.profile, w.memory)
	}
	l := pl.tookLocked(at, t, server)
	l.ahead = true
	pl.restLocked(l)
}

// refusedLocked notes that a server will not have one more connection of ours. It rests
// as after a refusal, whatever the reason: streams have a transport.
func (pl *Pool) refusedLocked(w *way, err error) {
	b := w.bundle
	level := slog.LevelDebug
	if b.refusal.failures == 0 {
		level = slog.LevelWarn
		pl.Observe.Tell(Event{Kind: ConnectFailed, Profile: w.profile, Err: err})
	}
	b.refusal.refused(time.Now(), err, rand.Float64())
	pl.log.Log(pl.life, level, "no further connection to the server; its flows go on over what there is",
		"profile", w.profile.Label(), "connections", len(b.links), "failures", b.refusal.failures, "error", err)
}

// lostBeside is told of a lost transport beside which others live. Where it, or one of
// them, was new, the server may want no more than there are now.
func (b *bundle) lostBeside(l *link, lived time.Duration) {
	isNew := func(o *link) bool { return time.Since(o.since) < provenAfter }
	if lived < provenAfter || slices.ContainsFunc(b.links, isNew) {
		b.refusal.refused(time.Now(), l.Err(), rand.Float64())
	}
}
