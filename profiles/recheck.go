package profiles

import (
	"errors"
	"time"
)

// Recheck is told that the network may be another one, or that the host has slept:
// each transport has to give a sign of life within limit, else it is lost and new
// streams connect anew; and a way out that rests because its server could not be
// reached may try again at once. Ways that were refused rest on. It does not wait.
func (pl *Pool) Recheck(limit time.Duration) {
	pl.mu.Lock()
	var live []Prober
	for _, w := range pl.ways {
		if w.link != nil {
			if t, ok := w.link.Transport.(Prober); ok {
				live = append(live, t)
			}
		}
		w.backoff.forgive(time.Now())
		if w.bundle != nil {
			w.bundle.refusal.forgive(time.Now())
		}
	}
	pl.mu.Unlock()
	for _, t := range live {
		t.Probe(limit)
	}
}

// forgive ends a rest that the network was the reason for. The count stays, so that one
// more failure rests as long as it would have.
func (b *backoff) forgive(now time.Time) {
	if b.until.After(now) && !errors.Is(b.last, ErrAuth) && !errors.Is(b.last, ErrHostKey) {
		b.until = now
	}
}
