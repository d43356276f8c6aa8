package loglimit

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// What one kind of line may do.
const (
	Burst       = 50               // lines at once
	Every       = time.Second      // and one more in this time
	ReportEvery = 10 * time.Second // how often what was left out is told while that goes on
)

// maxKinds bounds what is remembered. More share one.
const maxKinds = 1024

// Handler passes on what may be said. Lines below slog.LevelInfo all may: they are asked
// for by somebody who wants every one. Safe for concurrent use.
type Handler struct {
	slog.Handler
	*state
}

// state is shared by a Handler and those derived from it.
type state struct {
	out  slog.Handler // without attributes, for reports
	left atomic.Uint64

	mu    sync.Mutex
	kinds map[string]*kind
	timer *time.Timer // runs while something was left out that is not told yet
}

// kind is one kind of line.
type kind struct {
	room time.Time // up to when lines were said, if they had come one Every; Burst behind now at most
	left uint64    // since the last report
}

// New returns a Handler around another one.
func New(next slog.Handler) *Handler {
	return &Handler{next, &state{out: next, kinds: map[string]*kind{}}}
}

// Suppressed counts the lines that were left out.
func (h *Handler) Suppressed() uint64 { return h.left.Load() }

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{h.Handler.WithAttrs(attrs), h.state}
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{h.Handler.WithGroup(name), h.state}
}

// Handle implements slog.Handler.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelInfo && !h.take(r.Message) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// take reports whether one more line of a kind may be said.
func (s *state) take(message string) bool {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kinds[message] == nil && len(s.kinds) >= maxKinds {
		message = ""
	}
	k := s.kinds[message]
	if k == nil {
		k = &kind{}
		s.kinds[message] = k
	}
	if oldest := now.Add(-Burst * Every); k.room.Before(oldest) {
		k.room = oldest
	}
	if next := k.room.Add(Every); !next.After(now) {
		k.room = next
		return true
	}
	k.left++
	s.left.Add(1)
	if s.timer == nil {
		s.timer = time.AfterFunc(ReportEvery, s.Flush)
	}
	return false
}

// Flush tells what was left out so far. It is called at the end of a program; while it runs
// that is told by itself.
func (s *state) Flush() {
	left := map[string]uint64{}
	s.mu.Lock()
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	for message, k := range s.kinds {
		if k.left > 0 {
			left[message], k.left = k.left, 0
		}
	}
	s.mu.Unlock()
	for message, n := range left {
		r := slog.NewRecord(time.Now(), slog.LevelWarn, "log lines were left out", 0)
		r.AddAttrs(slog.String("of", message), slog.Uint64("lines", n))
		if s.out.Enabled(context.Background(), r.Level) {
			_ = s.out.Handle(context.Background(), r) // as slog.Logger does: there is nowhere to say it
		}
	}
}
