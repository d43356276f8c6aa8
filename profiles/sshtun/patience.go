package sshtun

import (
	"context"
	"fmt"
	"sync"
	"time"

	"sshbroker/profiles"
)

// patience limits the time of a connect but for the time that a person takes to
// answer.
type patience struct {
	limit  time.Duration
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	timer   *time.Timer // nil: no limit
	left    time.Duration
	resumed time.Time
	asking  int
}

// newPatience returns a context that ends after limit of machine time; no limit
// where it is zero. The caller calls end.
func newPatience(ctx context.Context, limit time.Duration) (context.Context, *patience) {
	ctx, cancel := context.WithCancelCause(ctx)
	p := &patience{limit: limit, left: limit, resumed: time.Now(), cancel: cancel}
	if limit > 0 {
		p.timer = time.AfterFunc(limit, func() {
			cancel(fmt.Errorf("no connection within %s: %w", limit, context.DeadlineExceeded))
		})
	}
	return ctx, p
}

func (p *patience) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
	}
	p.cancel(nil)
}

func (p *patience) pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asking++; p.asking == 1 && p.timer != nil && p.timer.Stop() {
		p.left -= time.Since(p.resumed)
	}
}

func (p *patience) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asking--; p.asking == 0 && p.timer != nil {
		p.resumed = time.Now()
		p.timer.Reset(max(p.left, time.Millisecond))
	}
}

// patientPrompter stops the clock while it asks.
type patientPrompter struct {
	profiles.Prompter
	patience *patience
}

// Pause stops the clock for as long as somebody else is asked what is needed here too.
func (p patientPrompter) Pause() (resume func()) {
	p.patience.pause()
	return p.patience.resume
}

func (p patientPrompter) Ask(ctx context.Context, q profiles.Prompt) (string, error) {
	p.patience.pause()
	defer p.patience.resume()
	return p.Prompter.Ask(ctx, q)
}
