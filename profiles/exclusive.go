package profiles

import (
	"errors"
	"fmt"
	"time"
)

// exclusiveBegins is how many transports of an exclusive profile are opened at a time.
// sshd refuses at random from ten unfinished ones on (MaxStartups).
const exclusiveBegins = 4

// errResting says that an attempt was not made, as one beside it had just failed.
var errResting = errors.New("not tried")

// ownLocked is a way out for one stream of an exclusive profile: a transport that was
// opened and never used, or is being opened and nobody waits for it any more, else a new
// one.
func (pl *Pool) ownLocked(base *way) *way {
	for k, w := range pl.ways {
		if k.Key != base.key.Key {
			continue
		}
		if l := w.link; l != nil && l.streams == 0 && !l.used && !l.closing && !over(l) || w.attempt != nil && w.attempt.waiters == 0 {
			return w
		}
	}
	return pl.addLocked(wayKey{base.key.Key, pl.lastID + 1}, base.profile, base.memory)
}

// partLocked drops a way out that has a number and no transport any more.
func (pl *Pool) partLocked(w *way) {
	if w.key.number != 0 {
		delete(pl.ways, w.key)
	}
}

// begin waits for its turn among the attempts of an exclusive profile.
func (pl *Pool) begin(w *way) (done func(), err error) {
	pl.mu.Lock()
	before := w.backoff.failures
	pl.mu.Unlock()
	select {
	case w.begins <- struct{}{}:
	case <-pl.life.Done():
		return nil, ErrClosed
	}
	pl.mu.Lock()
	defer pl.mu.Unlock()
	if w.backoff.failures > before && w.backoff.rest(time.Now()) > 0 {
		<-w.begins
		return nil, fmt.Errorf("%w: %w", errResting, w.backoff.last)
	}
	return func() { <-w.begins }, nil
}
