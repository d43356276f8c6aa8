package say

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// What one kind of line may do that outsiders can repeat as they like.
const (
	Burst       = 50
	Every       = time.Second / 5
	ReportEvery = 10 * time.Second // how often what was left out is told
)

// Sayer logs such lines up to a rate, counts the others and tells how many they were.
// Safe for concurrent use.
type Sayer struct {
	log   *slog.Logger
	count func(uint64)

	mu       sync.Mutex
	kinds    map[string]*spoken
	reported time.Time
}

// spoken is one kind of line.
type spoken struct {
	room time.Time // as far as lines were said; a burst behind now at most
	left uint64    // left out since the last report
}

// New makes a Sayer. count is told of each line that is left out.
func New(log *slog.Logger, count func(uint64)) *Sayer {
	return &Sayer{log: log, count: count, kinds: map[string]*spoken{}, reported: time.Now()}
}

// Say logs one line. kind is the program's own word.
func (s *Sayer) Say(level slog.Level, kind, msg string, args ...any) {
	if !s.log.Enabled(context.Background(), level) {
		return
	}
	if s.Take(kind) {
		s.log.Log(context.Background(), level, msg, args...)
		return
	}
	s.count(1)
}

// Take reports whether one more of a kind may be said now, for what is no line of a log.
func (s *Sayer) Take(kind string) bool {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kinds[kind]
	if k == nil {
		k = &spoken{}
		s.kinds[kind] = k
	}
	if oldest := now.Add(-Burst * Every); k.room.Before(oldest) {
		k.room = oldest
	}
	if k.room.Add(Every).After(now) {
		k.left++
		return false
	}
	k.room = k.room.Add(Every)
	return true
}

// Report tells what was left out, where it is time to.
func (s *Sayer) Report(now time.Time) {
	s.mu.Lock()
	due := now.Sub(s.reported) >= ReportEvery
	s.mu.Unlock()
	if due {
		s.Flush()
	}
}

// Flush tells what was left out so far.
func (s *Sayer) Flush() {
	left := map[string]uint64{}
	s.mu.Lock()
	s.reported = time.Now()
	for kind, k := range s.kinds {
		if k.left > 0 {
			left[kind], k.left = k.left, 0
		}
	}
	s.mu.Unlock()
	for kind, n := range left {
		s.log.Warn("log lines were left out", "of", kind, "lines", n)
	}
}
