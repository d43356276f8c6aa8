package names

import (
	"sync"
	"time"
)

const warnEvery = time.Minute

// repeated remembers when each of a few fixed messages was logged. The zero value is
// ready.
type repeated struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func (r *repeated) due(message string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if last, ok := r.last[message]; ok && now.Sub(last) < warnEvery {
		return false
	}
	if r.last == nil {
		r.last = make(map[string]time.Time)
	}
	r.last[message] = now
	return true
}
