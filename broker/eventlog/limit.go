package eventlog

import (
	"sync"
	"time"
)

// What one kind of event may do: programs and servers can repeat most of them as they
// like.
const (
	burst     = 2000 // at once
	perSecond = 200
)

// suppressedEvery is how often what was suppressed is reported while that goes on.
const suppressedEvery = 10 * time.Second

// limiter lets a burst of events of one kind through, and then so many a second.
type limiter struct {
	mu         sync.Mutex
	last       time.Time
	tokens     float64
	suppressed uint64 // since the last report
	timer      *time.Timer
}

// take reports whether one more event may be logged at that time. What may not is
// counted, and report is called with the count later.
func (l *limiter) take(now time.Time, report func(n uint64)) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last.IsZero() {
		l.tokens = burst
	} else if since := now.Sub(l.last).Seconds(); since > 0 {
		l.tokens = min(burst, l.tokens+since*perSecond)
	}
	l.last = now
	if l.tokens >= 1 {
		l.tokens--
		return true
	}
	l.suppressed++
	if l.timer == nil {
		l.timer = time.AfterFunc(suppressedEvery, func() {
			if n := l.collect(); n > 0 {
				report(n)
			}
		})
	}
	return false
}

// collect returns what was suppressed since it was asked last, and ends the wait for a
// report.
func (l *limiter) collect() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	n := l.suppressed
	l.suppressed = 0
	return n
}
