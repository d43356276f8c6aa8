package heap

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// room is the garbage that may gather between two collections. Every packet from a
	// server is a new piece of memory of its size; with the runtime's own 4 MiB for a
	// small heap a collection comes every hundred packets and takes a fifth of the
	// processor time.
	room = 16 << 20
	// maxPercent bounds what a heap of hardly anything asks for.
	maxPercent = 1600

	// look is how often it is looked at, and rest how often while nothing happens.
	look = time.Second
	rest = 2 * time.Second
	// calm is what may be allocated between two looks by a process that is idle, and
	// worth how much must have been for the memory to be given back.
	calm  = 256 << 10
	worth = 2 << 20
)

// Keep adjusts the collector until ctx ends.
func Keep(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	before := debug.SetGCPercent(maxPercent / 4)
	defer debug.SetGCPercent(before)
	k := keeper{release: debug.FreeOSMemory, percent: func(p int) { debug.SetGCPercent(p) }}
	samples := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	timer := time.NewTimer(look)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		metrics.Read(samples)
		timer.Reset(k.look(samples[0].Value.Uint64(), samples[1].Value.Uint64()))
	}
}

// keeper is the decision, apart from the clock and the runtime.
type keeper struct {
	release func()
	percent func(int)

	allocated uint64 // in all, at the last look
	released  uint64 // in all, when memory was given back last
	current   int
}

// look is told what was allocated so far and what was live after the last
// collection, in bytes, and says when to look again.
func (k *keeper) look(allocated, live uint64) time.Duration {
	quiet := allocated-k.allocated < calm
	k.allocated = allocated
	switch {
	case !quiet:
		if p := percentFor(live); p != k.current {
			k.current = p
			k.percent(p)
		}
		return look
	case allocated-k.released < worth:
		return rest
	}
	k.release()
	k.released = allocated
	return look
}

// percentFor leaves room for a heap, and never less than the runtime's default.
func percentFor(live uint64) int {
	return int(min(max(room*100/max(live, 1), 100), maxPercent))
}
