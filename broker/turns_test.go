package broker_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sshbroker/broker"
	"sshbroker/broker/audit"
	"sshbroker/capture/capturetest"
	"sshbroker/filter"
	"sshbroker/profiles"
)

// busy is an Opener that notes when it was asked for whom, and never opens anything.
type busy struct {
	mu    sync.Mutex
	asked map[uint16][]time.Duration // by destination port
	since time.Time
}

func (b *busy) Open(ctx context.Context, _ *profiles.Profile, dst profiles.Destination, _ profiles.Prompter) (profiles.Stream, error) {
	b.mu.Lock()
	b.asked[dst.Port] = append(b.asked[dst.Port], time.Since(b.since))
	b.mu.Unlock()
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestFloodTakesTurns: of many flows of one uid few are on their way at once, but for
// those that wait for a far end, where there is another one; and its flow is at once.
func TestFloodTakesTurns(t *testing.T) {
	const (
		many  = 100
		turns = 4 // of a uid at once
		port  = 7001
		other = 7002
	)
	tunnelAll := set(t, filter.Tunnel)
	for _, shared := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			opener := &busy{asked: map[uint16][]time.Duration{}}
			recorded := &records{ch: make(chan audit.Record, many+3)}
			b := broker.New(broker.Config{Tunnels: opener, Audit: recorded, Log: slog.New(slog.DiscardHandler)})
			b.SetPolicy(&broker.Policy{Rules: tunnelAll, Defaults: &profiles.Profile{Host: "server", Port: 22}})
			source := capturetest.NewSource()
			ctx, cancel := context.WithCancel(t.Context())
			served := make(chan error, 1)
			go func() { served <- b.Run(ctx, &broker.Capture{ID: "c", Source: source}) }()
			offer := func(uid uint32, dst string) {
				a := capturetest.NewAttempt(dst)
				a.At.UID = uid
				source.Offer(a)
			}
			if shared {
				offer(2, "10.0.0.1:7002")
				offer(1, "10.0.0.1:7001")
				synctest.Wait()
				time.Sleep(20 * time.Millisecond) // their turns are over
				synctest.Wait()
			}
			opener.since = time.Now()
			clear(opener.asked)
			for range many {
				offer(1, "10.0.0.1:7001")
			}
			synctest.Wait()
			offer(2, "10.0.0.1:7002")
			synctest.Wait()
			at := func(port uint16, d time.Duration) (n int) {
				opener.mu.Lock()
				defer opener.mu.Unlock()
				for _, when := range opener.asked[port] {
					if when == d {
						n++
					}
				}
				return n
			}
			want := many
			if shared {
				want = turns
			}
			if got := at(port, 0); got != want {
				t.Errorf("shared %v: %d of the many are on their way at once, want %d", shared, got, want)
			}
			if got := at(other, 0); got != 1 {
				t.Errorf("shared %v: the other one's flow is not on its way", shared)
			}
			time.Sleep(20 * time.Millisecond)
			synctest.Wait()
			if got := at(port, 20*time.Millisecond); shared && got != turns {
				t.Errorf("%d more are on their way once the first wait for their far ends, want %d", got, turns)
			}
			cancel()
			<-served
			done, stop := context.WithCancel(context.Background())
			stop()
			b.Drain(done)
		})
	}
}
