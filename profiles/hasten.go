package profiles

import "time"

// Hasten ends the rest of every way out: something was said or done by a person that
// may let the next attempt succeed. How often it has failed is not forgotten.
func (pl *Pool) Hasten() {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	now := time.Now()
	for _, w := range pl.ways {
		if w.backoff.rest(now) > 0 {
			w.backoff.until = now
		}
		if w.bundle != nil && w.bundle.refusal.rest(now) > 0 {
			w.bundle.refusal.until = now
		}
	}
}
