package profiles

import (
	"math/rand/v2"
	"time"
)

// Carrying is a transport that counts what it carries.
type Carrying interface {
	// Carried is how many bytes went over the wire so far, both ways.
	Carried() uint64
}

// renewLocked has a transport replaced that has carried as much as the profile lets one
// set of keys carry (RekeyBytes). Until another one is there, and where none can be had
// without asking a person, it goes on: new keys are worth a login, and no flow. What is
// open on it stays to its end.
func (pl *Pool) renewLocked(l *link) {
	w := l.way
	t, ok := l.Transport.(Carrying)
	if !ok || w.renewing || isClosed(l.replaced) || w.profile.Exclusive || w.profile.ControlPath != "" || w.profile.RekeyBytes == 0 || t.Carried() < w.profile.RekeyBytes ||
		w.renewal.rest(time.Now()) > 0 {
		return
	}
	w.renewing = true
	pl.tasks.Go(func() { pl.renew(w, l) })
}

func (pl *Pool) renew(w *way, old *link) {
	t, server, err := pl.reach(w, nil)
	pl.mu.Lock()
	defer pl.mu.Unlock()
	w.renewing = false
	if err != nil {
		w.renewal.failed(time.Now(), err, rand.Float64())
		pl.log.Warn("the connection has carried what one set of keys may, and no other can be made; it goes on",
			"profile", w.profile.Label(), "error", err)
		return
	}
	w.renewal = backoff{}
	if w.link != old || pl.draining { // it was lost or let go meanwhile
		pl.tasks.Go(func() { t.Close() })
		return
	}
	pl.setAsideLocked(old)
	at := w
	if w.key.number != 0 { // of a bundle: the old one stays where it is
		at = pl.addLocked(wayKey{w.key.Key, pl.lastID + 1}, w.profile, w.memory)
	}
	l := pl.tookLocked(at, t, server)
	l.ahead = old.ahead
	pl.restLocked(l)
	pl.restLocked(old)
}

// setAsideLocked has a transport serve the streams that it has and no more: its way out is
// free for another one. The caller sees to its end (restLocked).
func (pl *Pool) setAsideLocked(l *link) {
	w := l.way
	if w.key.number == 0 {
		l.way = pl.addLocked(wayKey{w.key.Key, pl.lastID + 1}, w.profile, w.memory)
		l.way.link, l.way.server = l, l.server
		w.link = nil
	}
	if w.bundle != nil {
		w.bundle.leave(l)
	}
	close(l.replaced)
}
