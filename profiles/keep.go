package profiles

import (
	"context"
	"errors"
	"time"
)

// Keep holds p's transport open until ctx ends, whatever its IdleTimeout, and opens it
// again when it is lost. Nobody is asked for anything. Between attempts that fail it
// rests as flows do, so it never adds to what a server has to bear. An exclusive
// profile has no transport to keep: Keep returns at once.
func (pl *Pool) Keep(ctx context.Context, p *Profile) {
	for !p.Exclusive && ctx.Err() == nil {
		l, err := pl.acquire(ctx, p, nil, nil, false, expectQuiet)
		if errors.Is(err, ErrClosed) {
			return
		}
		if err == nil {
			pl.mu.Lock()
			l.kept++
			pl.mu.Unlock()
			select {
			case <-l.Done():
				pl.forget(l)
			case <-l.replaced: // by one that is kept from now on
			case <-ctx.Done():
			}
			pl.mu.Lock()
			l.streams--
			l.kept--
			pl.restLocked(l)
			pl.mu.Unlock()
		}
		select {
		case <-time.After(pl.rest(p.Key())):
		case <-ctx.Done():
		}
	}
}

// rest is how long is left until a way out may be tried again.
func (pl *Pool) rest(key Key) time.Duration {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	if w := pl.ways[wayKey{key, 0}]; w != nil {
		return w.backoff.rest(time.Now())
	}
	return 0
}
