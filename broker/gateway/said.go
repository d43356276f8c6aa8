package gateway

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// What one kind of line may do that outsiders can repeat as they like.
const (
	sayBurst  = 50
	sayEvery  = time.Second / 5
	sayReport = 10 * time.Second // how often what was left out is told
)

// sayer logs such lines up to a rate, counts the others and tells how many they were.
// Safe for concurrent use.
type sayer struct {
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

func newSayer(log *slog.Logger, count func(uint64)) *sayer {
	return &sayer{log: log, count: count, kinds: map[string]*spoken{}, reported: time.Now()}
}

// say logs one line. kind is the program's own word.
func (s *sayer) say(level slog.Level, kind, msg string, args ...any) {
	if !s.log.Enabled(context.Background(), level) {
		return
	}
	if s.take(kind) {
		s.log.Log(context.Background(), level, msg, args...)
		return
	}
	s.count(1)
}

func (s *sayer) take(kind string) bool {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kinds[kind]
	if k == nil {
		k = &spoken{}
		s.kinds[kind] = k
	}
	if oldest := now.Add(-sayBurst * sayEvery); k.room.Before(oldest) {
		k.room = oldest
	}
	if k.room.Add(sayEvery).After(now) {
		k.left++
		return false
	}
	k.room = k.room.Add(sayEvery)
	return true
}

// report tells what was left out, where it is time to.
func (s *sayer) report(now time.Time) {
	s.mu.Lock()
	due := now.Sub(s.reported) >= sayReport
	s.mu.Unlock()
	if due {
		s.flush()
	}
}

func (s *sayer) flush() {
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
