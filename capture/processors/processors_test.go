package processors

import (
	"context"
	"runtime"
	"testing"
	"time"
)

func TestLook(t *testing.T) {
	k := keeper{current: 1, most: 3}
	for i, step := range []struct {
		busy    float64
		current int
		next    time.Duration
	}{
		{0, 1, rest},
		{0.5, 1, look},
		{0.95, 2, look},
		{1.7, 2, look}, // busy, but not full
		{1.9, 3, look},
		{3, 3, look}, // no more to be had
		{1.3, 3, look},
		{1.1, 2, look},
		{0.1, 1, look},
		{0.1, 1, look},
		{0.01, 1, rest},
	} {
		if next := k.look(step.busy); k.current != step.current || next != step.next {
			t.Errorf("step %d: %d processors, next in %v; want %d, %v", i, k.current, next, step.current, step.next)
		}
	}
}

// What was there before is there again afterwards.
func TestKeepRestores(t *testing.T) {
	t.Setenv("GOMAXPROCS", "")
	before := runtime.GOMAXPROCS(0)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { Keep(ctx); close(done) }()
	for runtime.GOMAXPROCS(0) != 1 {
		runtime.Gosched()
	}
	cancel()
	<-done
	if got := runtime.GOMAXPROCS(0); got != before {
		t.Errorf("%d processors afterwards, %d before", got, before)
	}
}

func TestEnvironmentCounts(t *testing.T) {
	t.Setenv("GOMAXPROCS", "7")
	before := runtime.GOMAXPROCS(0)
	Keep(t.Context()) // returns at once
	if got := runtime.GOMAXPROCS(0); got != before {
		t.Errorf("%d processors, %d before", got, before)
	}
}

func TestProcessorTime(t *testing.T) {
	before := processorTime()
	for processorTime() == before { // work is counted
	}
}
