package main

import (
	"context"
	"sync"
	"time"
)

// mostAtOnce is how many connections of a rush may be in the making: a target that does
// not keep up makes it slower, not endless.
const mostAtOnce = 4096

// rush begins so many connections a second, at the addresses in turn, has a byte echoed
// on each, and closes it. It counts by what became of them.
func (l *loader) rush(ctx context.Context, rate int, limit time.Duration, addresses []string) loadResult {
	var wg sync.WaitGroup
	var mu sync.Mutex
	outcomes, took := map[string]int64{}, []time.Duration{}
	slots := make(chan struct{}, mostAtOnce)
	begin := time.Now()
	for i := 0; time.Since(begin) < limit; i++ {
		time.Sleep(time.Until(begin.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			start := time.Now()
			c, err := echoed(ctx, addresses[i%len(addresses)])
			spent := time.Since(start)
			if err == nil {
				c.Close()
			}
			mu.Lock()
			defer mu.Unlock()
			outcomes[outcomeOf(err)]++
			if err == nil {
				took = append(took, spent)
			}
		})
	}
	wg.Wait()
	r := summary(took)
	r.Seconds, r.Outcomes = time.Since(begin).Seconds(), outcomes
	return r
}

// touch has one more byte echoed on everything that hold has opened.
func (l *loader) touch() (loadResult, error) {
	for _, c := range l.held {
		if err := roundTrip(c); err != nil {
			return loadResult{}, err
		}
	}
	return loadResult{Count: int64(len(l.held))}, nil
}
