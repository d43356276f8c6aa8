package heap

import (
	"testing"
	"time"
)

func TestLook(t *testing.T) {
	var released, percent int
	k := keeper{release: func() { released++ }, percent: func(p int) { percent = p }}
	const mib = 1 << 20
	for i, step := range []struct {
		allocated, live uint64 // allocated since the step before
		released        int
		percent         int
		next            time.Duration
	}{
		{100 * mib, room / 32, 0, 1600, look}, // busy
		{100 * mib, room / 4, 0, 400, look},
		{100 * mib, 200 * mib, 0, 100, look}, // large as it is
		{1000, 200 * mib, 1, 100, look},      // busy no more: give back
		{1000, 3 * mib, 1, 100, rest},        // once
		{1000, 3 * mib, 1, 100, rest},
		{worth, room / 8, 1, 800, look},
		{0, room / 8, 2, 800, look},
		{0, 0, 2, 800, rest},
	} {
		next := k.look(k.allocated+step.allocated, step.live)
		if released != step.released || percent != step.percent || next != step.next {
			t.Errorf("step %d: released %d times, %d%%, next in %v; want %d, %d%%, %v",
				i, released, percent, next, step.released, step.percent, step.next)
		}
	}
}

// TestKeep runs it on the real runtime for a moment.
func TestKeep(t *testing.T) {
	t.Setenv("GOGC", "")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Keep(t.Context())
	}()
	t.Cleanup(func() { <-ended }) // the context is cancelled before
}
