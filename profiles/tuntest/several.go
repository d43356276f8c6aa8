package tuntest

import (
	"context"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"sshbroker/profiles"
)

// ofTheLine are the cases that do something to the one connection under a transport.
var ofTheLine = []string{"Cut", "DeadPath", "Probe", "CloseTransport"}

// RunSeveral is Run for the streams of a pool that has several transports for the
// profile, all of them in use. What is asked of a single transport is not repeated.
func RunSeveral(t *testing.T, c profiles.Connector, p *profiles.Profile, transports int, quirks ...Quirk) {
	q := *p
	q.Transports = transports
	pool := profiles.NewPool(c, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { pool.Close() })
	r := &rig{connector: c, profile: &q, quirks: quirks, pooled: poolTransport{pool, &q}}
	// What is open has the pool make one more, until there are no more to be made.
	for n := 1; n <= transports; n++ {
		open(t, r.pooled, listen(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) }))
		AwaitTransports(t, pool, min(n+1, transports))
	}
	used := map[uint64]bool{}
	for _, s := range pool.Streams() {
		used[s.Way] = true
	}
	if len(used) != transports {
		t.Fatalf("the first streams are on %d transports, want %d", len(used), transports)
	}
	r.run(t)
	if list := pool.List(); len(list) != transports {
		t.Errorf("in the end: %+v", list)
	}
}

// AwaitTransports waits until a pool has so many live transports.
func AwaitTransports(t testing.TB, pool *profiles.Pool, n int) {
	t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		live := 0
		for _, in := range pool.List() {
			if in.Connected {
				live++
			}
		}
		if live == n {
			return
		}
		select {
		case <-pool.Changes():
		case <-late.C:
			t.Fatalf("%d transports, want %d: %+v", live, n, pool.List())
		}
	}
}

// poolTransport is a profile's way out as one transport.
type poolTransport struct {
	*profiles.Pool
	profile *profiles.Profile
}

func (p poolTransport) Open(ctx context.Context, dst profiles.Destination) (profiles.Stream, error) {
	return p.Pool.Open(ctx, p.profile, dst, nil)
}

func (p poolTransport) Done() <-chan struct{} { return nil }
func (p poolTransport) Err() error            { return nil }
