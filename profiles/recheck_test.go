package profiles

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestRecheck: a dead transport is found at once and the next stream has a new one; a
// live one stays.
func TestRecheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		defer pl.Close()
		p := testProfile()
		s, err := pl.Open(t.Context(), p, Destination{Host: "x", Port: 1}, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		time.Sleep(provenAfter)
		pl.Recheck(time.Second)
		time.Sleep(2 * time.Second)
		if again, err := pl.Open(t.Context(), p, Destination{Host: "x", Port: 1}, nil); err != nil || c.connects() != 1 {
			t.Errorf("a live transport after a recheck: %v, %d connects", err, c.connects())
		} else {
			again.Close()
		}
		c.last().dead.Store(true)
		pl.Recheck(time.Second)
		time.Sleep(2 * time.Second)
		if again, err := pl.Open(t.Context(), p, Destination{Host: "x", Port: 1}, nil); err != nil || c.connects() != 2 {
			t.Errorf("a dead transport after a recheck: %v, %d connects", err, c.connects())
		} else {
			again.Close()
		}
	})
}

// TestRecheckEndsRests: of servers that could not be reached, not of those that refused.
func TestRecheckEndsRests(t *testing.T) {
	for _, tc := range []struct {
		err  error
		goes bool
	}{{ErrConnect, true}, {ErrLost, true}, {ErrAuth, false}, {ErrHostKey, false}} {
		synctest.Test(t, func(t *testing.T) {
			c := &fakeConnector{fail: tc.err}
			pl := newTestPool(t, c)
			defer pl.Close()
			open := func() error {
				s, err := pl.Open(t.Context(), testProfile(), Destination{Host: "x", Port: 1}, nil)
				if err == nil {
					s.Close()
				}
				return err
			}
			for range 3 { // so that the rest is longer than a try takes
				pl.Recheck(time.Second)
				if err := open(); !errors.Is(err, tc.err) {
					t.Fatal(err)
				}
			}
			c.set(nil)
			pl.Recheck(time.Second)
			if err := open(); (err == nil) != tc.goes {
				t.Errorf("after %v and a recheck: %v", tc.err, err)
			}
		})
	}
}
