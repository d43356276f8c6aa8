package profiles

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pickyConnector has servers that are down, or fail otherwise.
type pickyConnector struct {
	fakeConnector
	mu2   sync.Mutex
	fails map[string]error
	tried []string
}

func (c *pickyConnector) Connect(ctx context.Context, p *Profile, via DialFunc, ask Prompter) (Transport, error) {
	c.mu2.Lock()
	c.tried = append(c.tried, Server{p.Host, p.Port}.String())
	err := c.fails[p.Host]
	c.mu2.Unlock()
	if err != nil {
		return nil, err
	}
	return c.fakeConnector.Connect(ctx, p, via, ask)
}

// took returns what was tried since it was called last.
func (c *pickyConnector) took() string {
	c.mu2.Lock()
	defer c.mu2.Unlock()
	defer func() { c.tried = nil }()
	return strings.Join(c.tried, " ")
}

func (c *pickyConnector) fail(host string, err error) {
	c.mu2.Lock()
	defer c.mu2.Unlock()
	c.fails[host] = err
}

func TestFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := fmt.Errorf("dial: %w: no route", ErrConnect)
		c := &pickyConnector{fails: map[string]error{"a": down}}
		pl := newTestPool(t, nil)
		pl.connector = c
		defer pl.Close()
		p := &Profile{ID: "p", Host: "a", Port: 22, User: "me", More: []Server{{"b", 2222}, {"c", 22}}}
		open := func() (string, error) {
			s, err := pl.Open(t.Context(), p, anywhere, nil)
			if err != nil {
				return "", err
			}
			defer s.Close()
			return s.(interface{ Server() Server }).Server().String(), nil
		}
		if at, err := open(); at != "b:2222" || err != nil || c.took() != "a:22 b:2222" {
			t.Errorf("opened at %q, %v", at, err)
		}
		if in := pl.List()[0]; in.Server != "b:2222" || in.LastError != "" || in.Failures != 0 {
			t.Errorf("%+v", in)
		}
		// For a while the one that is down comes last, then it is the first again.
		if at, err := open(); at != "b:2222" || err != nil || c.took() != "b:2222" {
			t.Errorf("opened at %q, %v", at, err)
		}
		time.Sleep(downFor)
		c.fail("a", nil)
		if at, err := open(); at != "a:22" || err != nil || c.took() != "a:22" {
			t.Errorf("opened at %q, %v", at, err)
		}
		// All down: one error that names each, and one rest for all.
		for _, host := range []string{"a", "b", "c"} {
			c.fail(host, fmt.Errorf("dial %s: %w", host, ErrConnect))
		}
		if _, err := open(); !errors.Is(err, ErrConnect) || c.took() != "a:22 b:2222 c:22" || !strings.Contains(err.Error(), "dial a: ") || !strings.Contains(err.Error(), "dial c: ") {
			t.Errorf("all down: %v", err)
		}
		if _, err := open(); !errors.Is(err, ErrConnect) || c.took() != "" {
			t.Errorf("at rest: %v", err)
		}
	})
}

// A server that is there and refuses us, or is not itself, is no reason to go elsewhere.
func TestNoFailoverFromRefusal(t *testing.T) {
	for _, class := range []error{ErrHostKey, ErrAuth, ErrSetup} {
		synctest.Test(t, func(t *testing.T) {
			c := &pickyConnector{fails: map[string]error{"a": class}}
			pl := newTestPool(t, nil)
			pl.connector = c
			defer pl.Close()
			_, err := pl.Open(t.Context(), &Profile{Host: "a", Port: 22, User: "me", More: []Server{{"b", 22}}}, anywhere, nil)
			if !errors.Is(err, class) || c.took() != "a:22" {
				t.Errorf("%v", err)
			}
		})
	}
}

// The host that a program asked for is one server.
func TestForHasNoSpares(t *testing.T) {
	p := &Profile{Host: "*", More: []Server{{"b", 22}}}
	if q := p.For("h", "", false); len(q.More) != 0 {
		t.Errorf("%+v", q)
	}
	p = &Profile{Host: "a", More: []Server{{"b", 22}}}
	if q := p.For("h", "you", false); len(q.More) != 1 {
		t.Errorf("%+v", q)
	}
}

func exclusiveProfile() *Profile {
	p := testProfile()
	p.Exclusive = true
	return p
}

// Each stream of an exclusive profile has a transport of its own, which ends with it.
func TestExclusive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		defer pl.Close()
		var streams []Stream
		for range 3 {
			s, err := pl.Open(t.Context(), exclusiveProfile(), anywhere, nil)
			if err != nil {
				t.Fatal(err)
			}
			streams = append(streams, s)
		}
		list := pl.List()
		if len(list) != 3 || c.connects() != 3 || slices.ContainsFunc(list, func(in Info) bool { return in.Streams != 1 || !in.Connected }) {
			t.Fatalf("%d connects, %+v", c.connects(), list)
		}
		streams[1].Close()
		synctest.Wait()
		if list := pl.List(); len(list) != 2 {
			t.Errorf("after a close: %+v", list)
		}
		streams[0].Close()
		streams[2].Close()
		synctest.Wait()
		if list := pl.List(); len(list) != 0 || len(pl.ways) != 1 {
			t.Errorf("after all: %+v, %d ways", list, len(pl.ways))
		}
	})
}

// What was opened ahead is used, once.
func TestExclusiveReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		defer pl.Close()
		if err := pl.Ready(t.Context(), exclusiveProfile(), nil); err != nil {
			t.Fatal(err)
		}
		for want := 1; want <= 2; want++ {
			s, err := pl.Open(t.Context(), exclusiveProfile(), anywhere, nil)
			if err != nil || c.connects() != want {
				t.Fatalf("%d connects, %v", c.connects(), err)
			}
			defer s.Close()
		}
	})
}

// Many streams at once neither storm a server, nor go on when it says no.
func TestExclusiveStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		defer pl.Close()
		most := func() int {
			n := 0
			for _, count := range c.running {
				n = max(n, count)
			}
			return n
		}
		run := func() (failed int) {
			var wg sync.WaitGroup
			var mu sync.Mutex
			for range 20 {
				wg.Go(func() {
					s, err := pl.Open(t.Context(), exclusiveProfile(), anywhere, nil)
					if err == nil {
						defer s.Close()
						time.Sleep(time.Hour)
						return
					}
					mu.Lock()
					failed++
					mu.Unlock()
				})
			}
			time.Sleep(500 * time.Millisecond)
			c.mu.Lock()
			if n := most(); n != exclusiveBegins {
				t.Errorf("%d attempts at a time", n)
			}
			c.mu.Unlock()
			wg.Wait()
			return failed
		}
		if failed := run(); failed != 0 || c.connects() != 20 {
			t.Errorf("%d failed, %d connects", failed, c.connects())
		}
		c.set(fmt.Errorf("x: %w", ErrAuth))
		if failed := run(); failed != 20 || c.connects() != 20+exclusiveBegins {
			t.Errorf("%d failed, %d connects", failed, c.connects()-20)
		}
		if list := pl.List(); len(list) != 1 || list[0].LastError == "" || list[0].Connected {
			t.Errorf("%+v", list)
		}
		if _, err := pl.Open(t.Context(), exclusiveProfile(), anywhere, nil); !errors.Is(err, ErrAuth) || c.connects() != 20+exclusiveBegins || len(pl.ways) != 1 {
			t.Errorf("at rest: %v, %d ways", err, len(pl.ways))
		}
	})
}

// A kept transport stays, is opened again when it is lost, and rests between failures.
func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		defer pl.Close()
		ctx, cancel := context.WithCancel(t.Context())
		kept := make(chan struct{})
		go func() { defer close(kept); pl.Keep(ctx, testProfile()) }()
		time.Sleep(time.Hour) // beyond its idle time
		if c.connects() != 1 || !pl.List()[0].Connected {
			t.Fatalf("%d connects, %+v", c.connects(), pl.List())
		}
		c.last().end(ErrLost)
		time.Sleep(2 * time.Second)
		if c.connects() != 2 || !pl.List()[0].Connected {
			t.Errorf("after a loss: %d connects, %+v", c.connects(), pl.List())
		}
		c.set(fmt.Errorf("x: %w", ErrAuth))
		c.last().end(ErrLost)
		time.Sleep(time.Hour)
		if n := c.connects() - 2; n < 5 || n > 15 {
			t.Errorf("%d attempts in an hour", n)
		}
		c.set(nil)
		time.Sleep(restRefusalMax * 2)
		if !pl.List()[0].Connected {
			t.Error("not connected again")
		}
		cancel()
		<-kept
		time.Sleep(2 * time.Minute)
		if pl.List()[0].Connected {
			t.Error("still there, though nobody keeps it")
		}
	})
}

// Who gives up leaves an attempt behind that the next one takes: a program that tries and
// tries makes no queue.
func TestExclusiveGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		defer pl.Close()
		p := testProfile()
		p.Exclusive = true
		for range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			if _, err := pl.Open(ctx, p, anywhere, nil); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v", err)
			}
			cancel()
		}
		time.Sleep(time.Minute / 2)
		if n := c.connects(); n != 1 {
			t.Errorf("%d connects", n)
		}
		s, err := pl.Open(t.Context(), p, anywhere, nil)
		if err != nil || c.connects() != 1 {
			t.Fatalf("%v, after %d connects", err, c.connects())
		}
		s.Close()
	})
}
