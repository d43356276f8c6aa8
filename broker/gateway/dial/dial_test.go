package dial

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// way is what becomes of a connect to one address, and when.
type way struct {
	after time.Duration // 0 and no error: never
	err   error
}

var silent = way{}

type fake struct {
	ways  map[netip.AddrPort]way
	start time.Time

	mu    sync.Mutex
	tried []time.Duration // since start
	ended int             // by their context
}

func (f *fake) DialTCP(ctx context.Context, _ string, _, remote netip.AddrPort) (*net.TCPConn, error) {
	f.mu.Lock()
	f.tried = append(f.tried, time.Since(f.start))
	f.mu.Unlock()
	w := f.ways[remote]
	if w == silent {
		<-ctx.Done()
	} else {
		select {
		case <-ctx.Done():
		case <-time.After(w.after):
			if w.err != nil {
				return nil, &net.OpError{Op: "dial", Err: w.err}
			}
			return new(net.TCPConn), nil
		}
	}
	f.mu.Lock()
	f.ended++
	f.mu.Unlock()
	return nil, ctx.Err()
}

func TestFirst(t *testing.T) {
	const ms = time.Millisecond
	refused := way{ms, syscall.ECONNREFUSED}
	unreachable := way{ms, syscall.EHOSTUNREACH}
	good := way{10 * ms, nil}
	for _, tc := range []struct {
		name  string
		ways  []way
		class error
		took  time.Duration
		tried []time.Duration
	}{
		{"none", nil, ErrUnreachable, 0, nil},
		{"one", []way{good}, nil, 10 * ms, []time.Duration{0}},
		{"the first in good time", []way{{240 * ms, nil}, good}, nil, 240 * ms, []time.Duration{0}},
		{"the second beside a silent one", []way{silent, good}, nil, 260 * ms, []time.Duration{0, 250 * ms}},
		{"the first after all", []way{{255 * ms, nil}, {100 * ms, nil}}, nil, 255 * ms, []time.Duration{0, 250 * ms}},
		{"the second at once after a failure", []way{refused, good}, nil, 11 * ms, []time.Duration{0, ms}},
		{"refused tells more", []way{unreachable, refused, unreachable}, ErrRefused, 3 * ms, []time.Duration{0, ms, 2 * ms}},
		{"unreachable", []way{unreachable, unreachable}, ErrUnreachable, 2 * ms, []time.Duration{0, ms}},
		{"silent", []way{silent}, ErrTimeout, 5 * time.Second, []time.Duration{0}},
		{"refused and silent", []way{refused, silent}, ErrTimeout, 5 * time.Second, []time.Duration{0, ms}},
		{"no descriptors", []way{{ms, syscall.EMFILE}, refused}, ErrNoDescriptors, 2 * ms, []time.Duration{0, ms}},
		{"not all of very many", []way{refused, refused, refused, refused, refused, refused, refused, refused, good}, ErrRefused, 8 * ms,
			[]time.Duration{0, ms, 2 * ms, 3 * ms, 4 * ms, 5 * ms, 6 * ms, 7 * ms}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fake{ways: map[netip.AddrPort]way{}, start: time.Now()}
				var addrs []netip.AddrPort
				for i, w := range tc.ways {
					addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 80)
					addrs = append(addrs, addr)
					f.ways[addr] = w
				}
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				conn, err := First(ctx, f, addrs)
				if took := time.Since(f.start); took != tc.took {
					t.Errorf("took %v, want %v", took, tc.took)
				}
				if (conn != nil) != (tc.class == nil) || !errors.Is(err, tc.class) {
					t.Errorf("%v, %v, want %v", conn, err, tc.class)
				}
				synctest.Wait() // for those that were not needed
				if len(f.tried) != len(tc.tried) {
					t.Fatalf("tried %v, want %v", f.tried, tc.tried)
				}
				for i, at := range f.tried {
					if at != tc.tried[i] {
						t.Errorf("tried %v, want %v", f.tried, tc.tried)
					}
				}
			})
		})
	}
}

func TestCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f := &fake{start: time.Now()}
		time.AfterFunc(time.Second, cancel)
		_, err := First(ctx, f, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")})
		if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrUnreachable) {
			t.Error(err)
		}
		synctest.Wait()
		if f.ended != 1 {
			t.Errorf("%d attempts ended", f.ended)
		}
	})
}
