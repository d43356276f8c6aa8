package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sshbroker/profiles"
)

// tally is what clients have seen of their flows.
type tally struct {
	mu     sync.Mutex
	opened map[string]bool // ids of flows that were let in
	refuse atomic.Int64    // requests that were answered no, or not at all
	reset  atomic.Int64    // flows that ended with a reset or a lost transport
	ended  atomic.Int64    // flows that ended in order
	odd    atomic.Pointer[string]
}

func (y *tally) strange(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	y.odd.Store(&text)
}

// The gateway is killed under load, and started again: every flow that a client was let
// into has a record of its opening, each has either a record of its close too or none
// because the instance was killed, which the next instance's start tells; no client takes
// a cut flow for one that has ended; and new flows go through the next one.
func TestKilledUnderLoad(t *testing.T) {
	clients := 200
	if os.Getenv("SSHBROKER_LONG") == "1" {
		clients = 1000
	}
	addr := serve(t, func(c *net.TCPConn) { // echoes, and ends behind its client
		io.Copy(c, c)
		c.CloseWrite()
	})
	w := newWorld(t, quiet+", drain_timeout: 1s", collection)
	c := connector(t)
	p := w.profile()
	var y tally
	y.opened = map[string]bool{}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var numbers atomic.Int64
	// Each keeps a connection as the pool would, and opens flow after flow: short ones,
	// and ones that stay.
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil {
				transport, err := c.Connect(ctx, p, nil, nil)
				if err != nil {
					select {
					case <-time.After(10 * time.Millisecond):
					case <-ctx.Done():
					}
					continue
				}
				var flows sync.WaitGroup
				for range clients / 4 {
					flows.Go(func() {
						for ctx.Err() == nil && transport.Err() == nil {
							oneFlow(ctx, transport, addr, fmt.Sprintf("load-%d", numbers.Add(1)), &y)
						}
					})
				}
				flows.Wait()
				transport.Close()
			}
		})
	}
	for round := range 3 {
		// In the middle of it: so many flows have come and gone.
		atLeast := y.ended.Load() + int64(clients)
		for end := time.Now().Add(patience); y.ended.Load() < atLeast; <-time.After(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("round %d: %d flows have ended", round, y.ended.Load())
			}
		}
		if err := w.cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.wait()
		w.start()
	}
	atLeast := y.ended.Load() + int64(clients)
	for end := time.Now().Add(patience); y.ended.Load() < atLeast && time.Now().Before(end); <-time.After(5 * time.Millisecond) {
	}
	stop()
	load.Wait()
	w.stop()
	if y.ended.Load() < atLeast {
		t.Errorf("only %d flows have ended behind the last start", y.ended.Load())
	}
	if odd := y.odd.Load(); odd != nil {
		t.Error(*odd)
	}

	records := w.records()
	opens, closes := map[string]record{}, map[string]record{}
	var instances []string
	for _, r := range records {
		switch r.Event {
		case "start":
			instances = append(instances, r.Instance)
		case "open":
			opens[r.FlowID] = r
		case "close":
			if _, twice := closes[r.FlowID]; twice {
				t.Errorf("flow %s is closed twice", r.FlowID)
			}
			closes[r.FlowID] = r
			if o := opens[r.FlowID]; o.Instance != r.Instance {
				t.Errorf("flow %s is closed by another instance than opened it", r.FlowID)
			}
		}
	}
	if len(instances) != 4 {
		t.Errorf("%d instances have started", len(instances))
	}
	for id := range y.opened {
		if _, there := opens[id]; !there {
			t.Errorf("a client was let into flow %s, of which there is no record", id)
		}
	}
	lost := 0
	for id, o := range opens {
		if _, there := closes[id]; there {
			continue
		}
		lost++
		if o.Instance == instances[len(instances)-1] {
			t.Errorf("flow %s was opened by the last instance, which was not killed, and has no close", id)
		}
	}
	t.Logf("%d flows opened, %d ended in order, %d cut, %d not let in; %d have an open and no close", len(opens), y.ended.Load(), y.reset.Load(), y.refuse.Load(), lost)
	if y.reset.Load() == 0 || lost == 0 {
		t.Error("nothing was cut: the gateway was not killed under load")
	}
}

// oneFlow sends something of its own, wants it back and the end behind it.
func oneFlow(ctx context.Context, transport profiles.Transport, addr net.Addr, id string, y *tally) {
	s, err := transport.Open(ctx, profiles.Destination{Host: "127.0.0.1", Port: uint16(addr.(*net.TCPAddr).Port), Flow: id})
	if err != nil {
		y.refuse.Add(1)
		return
	}
	y.mu.Lock()
	y.opened[id] = true
	y.mu.Unlock()
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	want := make([]byte, 32<<10)
	copy(want, id)
	_, err = s.Write(want)
	if err == nil {
		err = s.CloseWrite()
	}
	var got []byte
	if err == nil {
		got, err = io.ReadAll(s)
	}
	switch {
	case err == nil && len(got) == len(want) && string(got[:len(id)]) == id:
		y.ended.Add(1)
	case err == nil:
		y.strange("flow %s: %d of %d bytes, and an end in order", id, len(got), len(want))
	case ctx.Err() != nil:
	case errors.Is(err, profiles.ErrLost), errors.Is(err, profiles.ErrReset):
		y.reset.Add(1)
	default:
		y.strange("flow %s ended with %v", id, err)
	}
}
