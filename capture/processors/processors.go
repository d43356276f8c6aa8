package processors

import (
	"context"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// look is how often the load is looked at, and rest how often while there is none.
	look = 250 * time.Millisecond
	rest = 2 * time.Second

	// full is the share of its processors from which a process gets one more, idle the
	// one below which there is nothing to look at soon. One is taken away when what is
	// left would be less than spare busy.
	full  = 0.9
	spare = 0.6
	idle  = 0.05
)

// Keep adjusts GOMAXPROCS to the load until ctx ends: from one processor up to half
// of those that the process may use, as the other half is for those whose connections
// it carries.
func Keep(ctx context.Context) {
	if os.Getenv("GOMAXPROCS") != "" {
		return
	}
	usable := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(usable)
	k := keeper{current: 1, most: max(usable/2, 1)}
	if k.most == 1 {
		<-ctx.Done()
		return
	}
	timer := time.NewTimer(look)
	defer timer.Stop()
	spent, at := processorTime(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		nowSpent, now := processorTime(), time.Now()
		before := k.current
		timer.Reset(k.look(float64(nowSpent-spent) / float64(now.Sub(at))))
		if k.current != before {
			runtime.GOMAXPROCS(k.current)
		}
		spent, at = nowSpent, now
	}
}

// keeper is the decision, apart from the clock and the runtime.
type keeper struct {
	current, most int
}

// look is told how many processors were busy since it was asked last, and says when
// to look again.
func (k *keeper) look(busy float64) time.Duration {
	switch {
	case busy > full*float64(k.current) && k.current < k.most:
		k.current++
	case k.current > 1 && busy < spare*float64(k.current-1):
		k.current--
	case k.current == 1 && busy < idle:
		return rest
	}
	return look
}

// processorTime is what the process has spent so far, in user and system mode.
func processorTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0 // cannot fail for oneself
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
