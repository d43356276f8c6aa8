package profiles

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestRenew: a transport that has carried enough goes on until another one is there, and
// then to the end of what is open on it.
func TestRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		defer pl.Close()
		p := testProfile()
		p.RekeyBytes = 1000
		open := func() *pooled {
			t.Helper()
			s, err := pl.Open(t.Context(), p, Destination{Host: "x", Port: 1}, nil)
			if err != nil {
				t.Fatal(err)
			}
			return s.(*pooled)
		}
		first := open()
		old := c.last()
		old.carried.Store(999)
		if s := open(); s.link.Transport != old || c.connects() != 1 {
			t.Error("replaced too early")
		} else {
			s.Close()
		}
		old.carried.Store(1000)
		for range 3 { // one attempt, and nobody waits for it
			if s := open(); s.link.Transport != old {
				t.Error("a stream waited for the new transport")
			} else {
				s.Close()
			}
		}
		time.Sleep(2 * time.Second)
		second := open()
		if second.link.Transport == old || c.connects() != 2 {
			t.Errorf("the old transport is still used, after %d connects", c.connects())
		}
		if list := pl.List(); len(list) != 2 || list[0].Streams != 1 || list[1].Streams != 1 {
			t.Errorf("listed %+v", list)
		}
		if over(old) {
			t.Error("the old transport ended under its stream")
		}
		pl.Retire(func(Key) bool { return true }) // a reload that changes nothing
		first.Close()
		synctest.Wait()
		if !over(old) {
			t.Error("the old transport outlived its streams")
		}
		second.Close()
		if list := pl.List(); len(list) != 1 {
			t.Errorf("listed %+v", list)
		}
	})
}

// TestRenewFails: where no other transport can be had, the old one goes on, and the
// server is not pestered.
func TestRenewFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		defer pl.Close()
		p := testProfile()
		p.RekeyBytes, p.IdleTimeout = 1000, -1
		use := func() {
			t.Helper()
			s, err := pl.Open(t.Context(), p, Destination{Host: "x", Port: 1}, nil)
			if err != nil {
				t.Fatal(err)
			}
			s.Close()
		}
		use()
		c.last().carried.Store(5000)
		c.set(ErrAuth)
		for range 600 {
			use()
			time.Sleep(time.Second)
		}
		if n := c.connects(); n < 3 || n > 8 {
			t.Errorf("%d connects in ten minutes", n)
		}
		c.set(nil)
		for range 700 {
			use()
			time.Sleep(time.Second)
		}
		if list := pl.List(); len(list) != 1 || !list[0].Connected || c.last().carried.Load() != 0 {
			t.Errorf("not replaced in the end: %+v", list)
		}
	})
}

// TestRenewOff: 0 renews nothing, nor does what cannot count.
func TestRenewOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		defer pl.Close()
		for range 3 {
			s, err := pl.Open(t.Context(), testProfile(), Destination{Host: "x", Port: 1}, nil)
			if err != nil {
				t.Fatal(err)
			}
			c.last().carried.Store(1 << 60)
			s.Close()
			time.Sleep(5 * time.Second)
		}
		if c.connects() != 1 {
			t.Errorf("%d connects", c.connects())
		}
	})
}

// TestKeepRenewed: a transport that is kept open is replaced as any other, and the one
// that took its place is kept then.
func TestKeepRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		defer pl.Close()
		p := testProfile()
		p.RekeyBytes = 1000
		ctx, end := context.WithCancel(t.Context())
		defer end()
		ended := make(chan struct{})
		go func() { defer close(ended); pl.Keep(ctx, p) }()
		time.Sleep(2 * time.Second)
		old := c.last()
		old.carried.Store(1000)
		s, err := pl.Open(t.Context(), p, Destination{Host: "x", Port: 1}, nil)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		s.Close()
		synctest.Wait()
		if !over(old) {
			t.Error("the old transport outlived its streams")
		}
		time.Sleep(time.Hour)
		if list := pl.List(); len(list) != 1 || !list[0].Connected || list[0].Streams != 1 || c.connects() != 2 {
			t.Errorf("after %d connects: %+v", c.connects(), list)
		}
		end()
		<-ended
	})
}

// TestRenewSeen: who looks at a stream does not mind that its transport is replaced.
func TestRenewSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		defer pl.Close()
		p := testProfile()
		p.RekeyBytes = 1000
		open := func() *pooled {
			t.Helper()
			s, err := pl.Open(t.Context(), p, Destination{Host: "x", Port: 1}, nil)
			if err != nil {
				t.Fatal(err)
			}
			return s.(*pooled)
		}
		first := open()
		defer first.Close()
		c.last().carried.Store(1000)
		open().Close()
		looked := make(chan struct{})
		go func() {
			defer close(looked)
			for range 3000 {
				first.Way()
				time.Sleep(time.Millisecond)
			}
		}()
		<-looked
		if list := pl.List(); len(list) != 2 || first.Way() != list[1].ID {
			t.Errorf("carried by %d of %+v", first.Way(), list)
		}
	})
}

// TestRenewElsewhere: a server that is tried in vain does not pass for the one that
// carries.
func TestRenewElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &pickyConnector{fails: map[string]error{}}
		pl := newTestPool(t, nil)
		pl.connector = c
		defer pl.Close()
		p := &Profile{ID: "p", Host: "a", Port: 22, User: "me", More: []Server{{"b", 22}}, RekeyBytes: 1000, IdleTimeout: -1}
		open := func() {
			t.Helper()
			s, err := pl.Open(t.Context(), p, anywhere, nil)
			if err != nil {
				t.Fatal(err)
			}
			s.Close()
		}
		open()
		c.last().carried.Store(1000)
		c.fail("a", ErrConnect)
		c.fail("b", ErrConnect)
		open()
		time.Sleep(time.Second / 2)
		if list := pl.List(); len(list) != 1 || !list[0].Connected || list[0].Server != "a:22" || c.took() != "a:22 a:22 b:22" {
			t.Errorf("listed %+v", list)
		}
	})
}

// retiringTransport is one that comes to take no more streams.
type retiringTransport struct {
	*fakeTransport
	retired chan struct{}
}

func (t *retiringTransport) Retired() <-chan struct{} { return t.retired }

func (t *retiringTransport) Open(ctx context.Context, dst Destination) (Stream, error) {
	if isClosed(t.retired) {
		return nil, ErrLost
	}
	return t.fakeTransport.Open(ctx, dst)
}

type retiringConnector struct{ fakeConnector }

func (c *retiringConnector) Connect(ctx context.Context, p *Profile, via DialFunc, ask Prompter) (Transport, error) {
	t, err := c.fakeConnector.Connect(ctx, p, via, ask)
	if err != nil {
		return nil, err
	}
	return &retiringTransport{t.(*fakeTransport), make(chan struct{})}, nil
}

// TestRetired: a transport that takes no more streams keeps those it has, to their end;
// new ones get another transport, also where they find out by trying.
func TestRetired(t *testing.T) {
	for _, exclusive := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := &retiringConnector{}
			pl := newTestPool(t, c)
			defer pl.Close()
			p := testProfile()
			p.IdleTimeout, p.Exclusive = -1, exclusive
			open := func() *pooled {
				t.Helper()
				s, err := pl.Open(t.Context(), p, Destination{Host: "x", Port: 1}, nil)
				if err != nil {
					t.Fatal(err)
				}
				return s.(*pooled)
			}
			first := open()
			old := first.link.Transport.(*retiringTransport)
			close(old.retired) // and nobody has looked yet
			second := open()
			if second.link.Transport == Transport(old) || c.connects() != 2 {
				t.Errorf("after %d connects the old transport is used", c.connects())
			}
			if over(old) {
				t.Error("the old transport ended under its stream")
			}
			if list := pl.List(); len(list) != 2 || list[0].Streams != 1 || list[1].Streams != 1 {
				t.Errorf("listed %+v", list)
			}
			first.Close()
			synctest.Wait()
			if !over(old) {
				t.Error("the old transport outlived its streams")
			}

			idle := second.link.Transport.(*retiringTransport)
			second.Close()
			if exclusive {
				return // its transport went with it
			}
			close(idle.retired)
			synctest.Wait()
			if !over(idle) || len(pl.List()) > 1 {
				t.Errorf("one without streams lives on: %+v", pl.List())
			}
		})
	}
}
