package profiles

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// several is a pool in which profiles have so many transports.
type several struct {
	*testing.T
	*Pool
	c       *fakeConnector
	p       *Profile
	streams []*pooled
}

// Close closes the streams too.
func (s *several) Close() {
	for _, p := range s.streams {
		p.Close()
	}
	s.Pool.Close()
}

func newSeveral(t *testing.T, transports int) *several {
	c := &fakeConnector{}
	p := testProfile()
	p.Transports = transports
	return &several{T: t, Pool: newTestPool(t, c), c: c, p: p}
}

// to opens a stream to a host.
func (s *several) to(host string) *pooled {
	s.Helper()
	stream, err := s.Pool.Open(s.Context(), s.p, Destination{Host: host, Port: 1}, nil)
	if err != nil {
		s.Fatal(err)
	}
	s.streams = append(s.streams, stream.(*pooled))
	return stream.(*pooled)
}

// transfer has a stream carry bulk until it is stopped.
func transfer(p *pooled) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	tick := time.NewTicker(100 * time.Millisecond)
	go func() {
		defer close(ended)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.Stream.(*fakeStream).carry(bulkBytes)
			case <-end:
				return
			}
		}
	}()
	return func() { close(end); <-ended }
}

// numbers are those of the transports that streams are on.
func numbers(streams ...*pooled) string {
	var list []string
	for _, p := range streams {
		list = append(list, fmt.Sprint(p.link.number))
	}
	return strings.Join(list, " ")
}

// live are the connected transports of the list.
func live(pl *Pool) (list []Info) {
	return slices.DeleteFunc(pl.List(), func(in Info) bool { return !in.Connected })
}

// TestBundle: an empty transport is there before it is needed, a transfer takes it, and
// what is open beside it, and what comes, is apart from the transfer.
func TestBundle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t, 3)
		defer s.Close()
		for range quietStreams {
			s.to("shell").Close()
		}
		session := s.to("shell")
		if s.c.connects() != 1 {
			t.Fatalf("%d connects for the first stream", s.c.connects())
		}
		time.Sleep(3 * time.Second)
		if n := len(live(s.Pool)); n != 2 {
			t.Fatalf("%d transports beside a stream that lives on", n)
		}
		begin := time.Now()
		big := s.to("backup")
		stop := transfer(big)
		if numbers(session, big) != "1 2" || time.Since(begin) != 0 {
			t.Fatalf("session and transfer on %s after %s", numbers(session, big), time.Since(begin))
		}
		time.Sleep(3 * time.Second)
		if list := live(s.Pool); len(list) != 3 || !list[1].Bulk || list[0].Bulk || list[2].Bulk || list[0].Number != 1 || list[2].Number != 3 {
			t.Fatalf("listed %+v", list)
		}
		// A destination that was quiet goes to its like, one that nothing is known of has
		// the empty transport to itself, and another transfer to the same place joins the first.
		known, news, again := s.to("shell"), s.to("news"), s.to("backup")
		if got := numbers(known, news, again); got != "1 3 2" {
			t.Errorf("known, news and another transfer are on %s", got)
		}
		if n := s.c.connects(); n != 3 || s.c.together {
			t.Errorf("%d connects, together %t", n, s.c.together)
		}
		stop()
		time.Sleep(3 * time.Second)
		if slices.ContainsFunc(live(s.Pool), func(in Info) bool { return in.Bulk }) {
			t.Errorf("still called bulk: %+v", live(s.Pool))
		}
		stop = transfer(session) // to the very end
		time.Sleep(3 * time.Second)
		stop()
		for _, p := range []*pooled{session, big, known, news, again} {
			p.Close()
		}
		time.Sleep(3 * time.Second)
		if list := live(s.Pool); len(list) != 3 || slices.ContainsFunc(list, func(in Info) bool { return in.Bulk }) {
			t.Errorf("without a stream: %+v", list)
		}
		time.Sleep(2 * time.Minute)
		if n := len(live(s.Pool)); n != 0 {
			t.Errorf("%d transports long after the last stream", n)
		}
	})
}

// TestBundleSpreads: transfers to one place take all transports but one.
func TestBundleSpreads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t, 4)
		defer s.Close()
		s.p.IdleTimeout = -1
		session := s.to("shell")
		var transfers []*pooled
		for range 6 {
			time.Sleep(5 * time.Second)
			p := s.to("backup")
			defer transfer(p)()
			transfers = append(transfers, p)
		}
		time.Sleep(5 * time.Second)
		if got := numbers(transfers...); got != "2 3 4 2 3 4" {
			t.Errorf("transfers on %s", got)
		}
		if got := numbers(session, s.to("news"), s.to("shell")); got != "1 1 1" || s.c.connects() != 4 {
			t.Errorf("sessions on %s, after %d connects", got, s.c.connects())
		}
	})
}

// TestBundleFull: where transfers have all transports, what comes goes where fewest are.
func TestBundleFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t, 2)
		defer s.Close()
		for range 2 {
			// Another place each, so that nothing is known of it.
			p := s.to(fmt.Sprint("backup", time.Now()))
			defer transfer(p)()
			time.Sleep(3 * time.Second)
		}
		if got := numbers(s.to("a"), s.to("b"), s.to("c")); got != "1 2 1" {
			t.Errorf("on %s", got)
		}
	})
}

// TestBundleOne: without the setting there is one, whatever it carries.
func TestBundleOne(t *testing.T) {
	for _, change := range []func(p *Profile){
		func(p *Profile) {},
		func(p *Profile) { p.Transports = 1 },
		func(p *Profile) { p.Transports, p.ControlPath = 3, "/nowhere" },
		func(p *Profile) { p.Transports, p.TLS.Proxy = 3, true },
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newSeveral(t, 0)
			defer s.Close()
			change(s.p)
			p := s.to("backup")
			defer transfer(p)()
			time.Sleep(time.Minute)
			s.to("shell")
			if list := live(s.Pool); len(list) != 1 || list[0].Number != 0 || list[0].Bulk {
				t.Errorf("listed %+v", list)
			}
		})
	}
}

// TestBundleShort: no further login for a stream that is soon over.
func TestBundleShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t, 3)
		defer s.Close()
		for range 10 {
			p := s.to("shell")
			time.Sleep(300 * time.Millisecond)
			p.Close()
			time.Sleep(time.Second)
		}
		if n := s.c.connects(); n != 1 {
			t.Errorf("%d connects", n)
		}
	})
}

// person answers everything.
type person struct{ asked int }

func (p *person) Ask(context.Context, Prompt) (string, error) { p.asked++; return "yes", nil }

// TestBundleAsksNobodyTwice: where the first login took a person, there is no other one.
func TestBundleAsksNobodyTwice(t *testing.T) {
	for name, login := range map[string]*fakeConnector{
		"asked": {ask: func(ctx context.Context, ask Prompter) error {
			if ask == nil {
				return fmt.Errorf("%w: nobody to ask", ErrAuth)
			}
			_, err := ask.Ask(ctx, Prompt{Text: "one-time password"})
			return err
		}},
		"touched": {touched: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSeveral(t, 3)
				defer s.Close()
				s.c.ask, s.c.touched = login.ask, login.touched
				who := &person{}
				p, err := s.Open(t.Context(), s.p, anywhere, who)
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				defer transfer(p.(*pooled))()
				time.Sleep(time.Hour)
				if s.c.connects() != 1 || who.asked > 1 {
					t.Errorf("%d connects, asked %d times", s.c.connects(), who.asked)
				}
			})
		})
	}
}

// TestBundleRefused: a server that has enough of us is told so once, asked seldom, and
// flows go on over what there is.
func TestBundleRefused(t *testing.T) {
	for _, allowed := range []int{1, 2} {
		t.Run(fmt.Sprint(allowed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSeveral(t, 3)
				defer s.Close()
				s.c.allowed = allowed
				failures := 0
				s.Observe = func(e Event) {
					if e.Kind == ConnectFailed {
						failures++
					}
				}
				defer transfer(s.to("backup"))()
				for begin := time.Now(); time.Since(begin) < time.Hour; time.Sleep(time.Second) {
					s.to("shell").Close()
					if allowed == 2 { // so that no transport is empty
						s.to("news")
					}
				}
				if n := s.c.connects() - allowed; n < 4 || n > 12 {
					t.Errorf("%d attempts in an hour", n)
				}
				if list := live(s.Pool); len(list) != allowed || failures != 1 || list[0].Failures != 0 {
					t.Errorf("told %d times, listed %+v", failures, list)
				}
				// When it has room again, it is used.
				s.c.mu.Lock()
				s.c.allowed = 0
				s.c.mu.Unlock()
				time.Sleep(2 * restRefusalMax)
				if n := len(live(s.Pool)); n <= allowed {
					t.Errorf("%d transports", n)
				}
			})
		})
	}
}

// TestBundleEvicts: a server that drops one connection for the next one is not asked for
// the next one again and again.
func TestBundleEvicts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t, 2)
		defer s.Close()
		lost := 0
		for begin := time.Now(); time.Since(begin) < time.Hour; time.Sleep(100 * time.Millisecond) {
			if list := live(s.Pool); len(list) == 2 {
				s.c.made[len(s.c.made)-2].end(fmt.Errorf("%w: logged in elsewhere", ErrLost))
				lost++
				synctest.Wait()
			} else if len(list) == 0 || list[0].Streams == 0 {
				s.to("shell")
			}
		}
		if lost < 4 || lost > 12 {
			t.Errorf("flows were lost %d times in an hour", lost)
		}
	})
}

// TestBundleLoses: with a transport its own streams go, and no others; the next one is
// made behind them.
func TestBundleLoses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t, 2)
		defer s.Close()
		first := s.to("a")
		time.Sleep(3 * time.Second)
		second := s.to("b")
		time.Sleep(time.Minute)
		first.link.Transport.(*fakeTransport).end(fmt.Errorf("%w: cable cut", ErrLost))
		synctest.Wait()
		if over(second.link) {
			t.Error("the other transport is gone too")
		}
		begin := time.Now()
		if third := s.to("c"); third.link != second.link || time.Since(begin) != 0 {
			t.Errorf("waited for %s", time.Since(begin))
		}
		if list := s.List(); len(list) != 1 {
			t.Errorf("listed %+v", list)
		}
		time.Sleep(3 * time.Second)
		if list := live(s.Pool); len(list) != 2 || s.c.connects() != 3 {
			t.Errorf("after %d connects: %+v", s.c.connects(), list)
		}
		// All of them: as with one.
		for _, t := range s.c.made {
			t.end(ErrLost)
		}
		synctest.Wait()
		if list := live(s.Pool); len(list) != 0 {
			t.Errorf("listed %+v", list)
		}
		time.Sleep(restConnectMax)
		s.to("d")
	})
}

// TestBundleIdle: transports that are not needed close when the profile says, those made
// ahead soon where it says never.
func TestBundleIdle(t *testing.T) {
	for _, test := range []struct {
		idle     time.Duration
		at, left int // after so many seconds so many are there
	}{
		{0, 0, 0}, {time.Minute, 59, 2}, {time.Minute, 61, 0}, {-1, 59, 2}, {-1, 61, 1}, {-1, 10000, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newSeveral(t, 4)
			defer s.Close()
			s.p.IdleTimeout = test.idle
			p := s.to("shell")
			time.Sleep(time.Hour)
			if n := len(live(s.Pool)); n != 2 || s.c.connects() != 2 {
				t.Fatalf("%d transports in use, after %d connects", n, s.c.connects())
			}
			p.Close()
			time.Sleep(time.Duration(test.at) * time.Second)
			synctest.Wait()
			if n := len(live(s.Pool)); n != test.left {
				t.Errorf("idle %s, after %d s: %d transports, want %d", test.idle, test.at, n, test.left)
			}
		})
	}
}

// TestBundleShrinks: of several empty transports one is kept while there are streams.
func TestBundleShrinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t, 4)
		defer s.Close()
		var streams []*pooled
		for i := range 4 {
			streams = append(streams, s.to(fmt.Sprint("host", i)))
			time.Sleep(3 * time.Second)
		}
		if got := numbers(streams...); got != "1 2 3 4" {
			t.Fatalf("on %s", got)
		}
		for _, p := range streams[1:] {
			p.Close()
		}
		for range 30 { // while others come and go
			s.to("host0").Close()
			time.Sleep(3 * time.Second)
		}
		if n := len(live(s.Pool)); n != 2 || s.c.connects() != 4 {
			t.Errorf("%d transports, after %d connects", n, s.c.connects())
		}
	})
}

// TestBundleKept: what is kept open is one transport, and not a use of it.
func TestBundleKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t, 3)
		defer s.Close()
		ctx, end := context.WithCancel(t.Context())
		kept := make(chan struct{})
		go func() { defer close(kept); s.Keep(ctx, s.p) }()
		time.Sleep(time.Hour)
		if s.c.connects() != 1 {
			t.Errorf("%d connects without a stream", s.c.connects())
		}
		p := s.to("shell")
		time.Sleep(3 * time.Second)
		p.Close()
		time.Sleep(time.Hour)
		if n := len(live(s.Pool)); n != 1 || s.c.connects() != 2 {
			t.Errorf("%d transports, after %d connects", n, s.c.connects())
		}
		end()
		<-kept
	})
}

// TestBundleRenewed: a transport of several is replaced by itself.
func TestBundleRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t, 2)
		defer s.Close()
		s.p.RekeyBytes = 1 << 30
		first := s.to("a")
		time.Sleep(3 * time.Second)
		second := s.to("b")
		second.Stream.(*fakeStream).carry(1 << 30)
		time.Sleep(3 * time.Second)
		s.to("b").Close() // a transfer: where the first is
		time.Sleep(3 * time.Second)
		third := s.to("b")
		if third.link == second.link || third.link == first.link || numbers(first, third) != "1 2" {
			t.Errorf("after the renewal on %s", numbers(first, second, third))
		}
		if list := live(s.Pool); len(list) != 3 || s.c.connects() != 3 {
			t.Errorf("after %d connects: %+v", s.c.connects(), list)
		}
		second.Close()
		synctest.Wait()
		if list := live(s.Pool); len(list) != 2 {
			t.Errorf("listed %+v", list)
		}
	})
}

// TestBundleEnds: cutting, retiring, draining and closing find every transport.
func TestBundleEnds(t *testing.T) {
	open := func(t *testing.T) (*several, []*pooled) {
		s := newSeveral(t, 3)
		var streams []*pooled
		for i := range 3 {
			streams = append(streams, s.to(fmt.Sprint("host", i)))
			time.Sleep(3 * time.Second)
		}
		if n := len(live(s.Pool)); n != 3 {
			t.Fatalf("%d transports", n)
		}
		return s, streams
	}
	for name, end := range map[string]func(t *testing.T, s *several, streams []*pooled){
		"cut": func(t *testing.T, s *several, _ []*pooled) {
			for _, in := range live(s.Pool) {
				if err := s.Cut(in.ID); err != nil {
					t.Error(err)
				}
			}
			synctest.Wait()
		},
		"retire": func(t *testing.T, s *several, streams []*pooled) { // as when the number is changed
			s.Retire(func(Key) bool { return false })
			time.Sleep(time.Minute)
			if n := len(live(s.Pool)); n != 3 {
				t.Errorf("%d transports with streams on them", n)
			}
			changed := *s.p
			changed.Transports = 2
			s.p = &changed
			p := s.to("host0")
			if got := p.link.number; got != 1 || p.link == streams[0].link {
				t.Errorf("the next stream is on transport %d", got)
			}
			p.Close()
			for _, p := range streams {
				p.Close()
			}
			time.Sleep(2 * time.Minute)
		},
		"drain": func(t *testing.T, s *several, streams []*pooled) {
			drained := make(chan error)
			go func() { drained <- s.Drain(t.Context()) }()
			for _, p := range streams {
				p.Close()
			}
			if err := <-drained; err != nil {
				t.Error(err)
			}
		},
		"close": func(t *testing.T, s *several, _ []*pooled) { s.Pool.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, streams := open(t)
				defer s.Close()
				end(t, s, streams)
				if slices.ContainsFunc(s.c.made, func(t *fakeTransport) bool { return !over(t) }) {
					t.Errorf("left: %+v", s.List())
				}
			})
		})
	}
}

// TestBundleClosesWhileMaking: an attempt that nobody waits for ends with the pool.
func TestBundleClosesWhileMaking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t, 2)
		s.to("shell")
		time.Sleep(1500 * time.Millisecond)
		if s.c.connects() != 2 {
			t.Fatalf("%d connects", s.c.connects())
		}
		s.Close()
		if len(s.c.made) != 1 {
			t.Errorf("%d transports", len(s.c.made))
		}
	})
}

// TestBundleRechecked: each transport is asked whether it lives, and a rest that the network
// was the reason for is over.
func TestBundleRechecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t, 2)
		defer s.Close()
		s.to("a")
		time.Sleep(3 * time.Second)
		second := s.to("b")
		time.Sleep(provenAfter)
		second.link.Transport.(*fakeTransport).dead.Store(true)
		s.c.set(fmt.Errorf("%w: no route", ErrConnect))
		s.Recheck(time.Second)
		time.Sleep(8 * time.Second)
		if n := len(live(s.Pool)); n != 1 || s.c.connects() != 3 {
			t.Fatalf("%d transports after %d connects", n, s.c.connects())
		}
		s.c.set(nil)
		s.Recheck(time.Second)
		time.Sleep(3 * time.Second)
		if n := len(live(s.Pool)); n != 2 || s.c.connects() != 4 {
			t.Errorf("%d transports after %d connects", n, s.c.connects())
		}
	})
}

// TestBundleBehindGateway: what carries a transport has one to itself as long as it can.
func TestBundleBehindGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t, 3)
		defer s.Close()
		gw := testProfile()
		gw.Transports = 3
		s.p = &Profile{ID: "inner", Host: "inner", Port: 22, User: "me", Gateway: gw, Transports: 2, IdleTimeout: time.Minute}
		session := s.to("shell")
		time.Sleep(5 * time.Second)
		big := s.to("backup")
		defer transfer(big)()
		under := func(p *pooled) *link { return p.link.Transport.(*fakeTransport).under.(*pooled).link }
		if session.link == big.link || under(session) == under(big) {
			t.Errorf("session and transfer share a connection")
		}
	})
}

// TestBundleChoice: where streams go, by what the transports carry. Each is its streams,
// and "b" where it has bulk.
func TestBundleChoice(t *testing.T) {
	for _, test := range []struct {
		links                string
		unknown, quiet, bulk int
	}{
		{"0", 1, 1, 1},
		{"3b", 1, 1, 1},
		{"0 0", 1, 1, 2},
		{"2 0", 2, 1, 2},
		{"1 3 0", 3, 2, 3},
		{"3 1 1b", 2, 1, 3},
		{"3 1b 0", 3, 1, 3},
		{"3 2b 1b", 1, 1, 3},
		{"1b 0", 2, 2, 1},
		{"4b 2b", 2, 2, 2},
		{"2 3", 1, 2, 1},
	} {
		b := &bundle{}
		for text := range strings.FieldsSeq(test.links) {
			l := &link{Transport: &plainTransport{}}
			if _, err := fmt.Sscan(strings.TrimSuffix(text, "b"), &l.streams); err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(text, "b") {
				l.recent = bulkBytes
			}
			b.join(l)
		}
		for h, want := range map[habit]int{unknown: test.unknown, quiet: test.quiet, bulk: test.bulk} {
			if got := b.choose(h).number; got != want {
				t.Errorf("of %q for habit %d: %d, want %d", test.links, h, got, want)
			}
		}
	}
}

// TestBundleLate: a transport that nobody needs any more when it comes is not kept.
func TestBundleLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t, 2)
		defer s.Close()
		p := s.to("shell")
		time.Sleep(1500 * time.Millisecond)
		p.Close()
		time.Sleep(time.Second)
		if n := len(live(s.Pool)); n != 1 || s.c.connects() != 2 || !over(s.c.last()) {
			t.Errorf("%d transports after %d connects", n, s.c.connects())
		}
	})
}

// TestBundleRetiredDoesNotGrow: nothing is made for what no configuration has any more.
func TestBundleRetiredDoesNotGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t, 2)
		defer s.Close()
		s.to("shell")
		s.Retire(func(Key) bool { return false })
		time.Sleep(time.Minute)
		if s.c.connects() != 1 {
			t.Errorf("%d connects", s.c.connects())
		}
	})
}

// TestBundleBystander: a stream that has carried much in a long time is no transfer because
// there is one beside it.
func TestBundleBystander(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t, 2)
		defer s.Close()
		s.c.touched = true // one transport for all
		slow, big := s.to("slow"), s.to("big")
		for range 20 {
			slow.Stream.(*fakeStream).carry(bulkBytes / 4)
			time.Sleep(time.Second)
		}
		defer transfer(big)()
		time.Sleep(5 * time.Second)
		if slow.bulk || !big.bulk {
			t.Errorf("taken for bulk: slow %t, big %t", slow.bulk, big.bulk)
		}
	})
}

// TestBundleRetires: of a bundle too a transport that takes no more streams keeps those it
// has, and others take its place.
func TestBundleRetires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &retiringConnector{}
		s := newSeveral(t, 2)
		s.Pool = newTestPool(t, c)
		defer s.Close()
		s.p.IdleTimeout = -1
		first := s.to("a")
		time.Sleep(3500 * time.Millisecond) // between two looks
		second := s.to("b")
		for _, p := range []*pooled{first, second} {
			close(p.link.Transport.(*retiringTransport).retired)
		}
		third := s.to("c")
		time.Sleep(3 * time.Second)
		fourth := s.to("d")
		if third.link == first.link || third.link == second.link || fourth.link == third.link || over(first.link) || over(second.link) || c.connects() != 4 {
			t.Errorf("after %d connects: %+v", c.connects(), s.List())
		}
		for _, p := range []*pooled{first, second} {
			old := p.link
			p.Close()
			synctest.Wait()
			if !over(old) {
				t.Error("a transport outlived its streams")
			}
		}
		if list := s.List(); len(list) != 2 || list[0].Number+list[1].Number != 3 {
			t.Errorf("listed %+v", list)
		}
	})
}

func TestHabits(t *testing.T) {
	begin := time.Now()
	at := func(seconds float64) time.Time { return begin.Add(time.Duration(seconds * float64(time.Second))) }
	x := Destination{Host: "x", Port: 1}
	use := func(h habits, at time.Time) {
		for range quietStreams {
			h.of(x, at)
		}
	}
	for name, test := range map[string]struct {
		do   func(h habits)
		want habit
	}{
		"never seen":      {func(h habits) {}, unknown},
		"just seen":       {func(h habits) { h.of(x, at(9.5)) }, unknown},
		"used once":       {func(h habits) { h.of(x, at(5)); h.ended(x, at(5), time.Second, 100) }, unknown},
		"used often":      {func(h habits) { use(h, at(5)); h.ended(x, at(5), time.Second, 100) }, quiet},
		"in use":          {func(h habits) { use(h, at(5)) }, quiet},
		"not for long":    {func(h habits) { use(h, at(9.5)) }, unknown},
		"transfer":        {func(h habits) { h.of(x, at(5)); h.isBulk(x, at(5)) }, bulk},
		"short transfer":  {func(h habits) { h.of(x, at(9)); h.ended(x, at(9), time.Second/10, bulkBytes) }, bulk},
		"long and slow":   {func(h habits) { use(h, at(0)); h.of(x, at(0)); h.ended(x, at(0), 9*time.Second, 5*bulkBytes) }, quiet},
		"two transfers":   {func(h habits) { h.of(x, at(1)); h.isBulk(x, at(1)); h.of(x, at(5)); h.isBulk(x, at(5)) }, bulk},
		"session first":   {func(h habits) { h.of(x, at(1)); h.of(x, at(5)); h.isBulk(x, at(5)) }, unknown},
		"transfer first":  {func(h habits) { h.of(x, at(1)); h.isBulk(x, at(1)); h.ended(x, at(5), 3*time.Second, 10) }, unknown},
		"another port":    {func(h habits) { h.of(Destination{Host: "x", Port: 2}, at(1)) }, unknown},
		"nothing to note": {func(h habits) { h.isBulk(x, at(1)); h.ended(x, at(1), 1, 1) }, unknown},
	} {
		h := make(habits)
		test.do(h)
		if got := h.of(x, at(10)); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
	h := make(habits)
	for i := range 3 * maxHabits {
		h.of(Destination{Host: fmt.Sprint(i)}, at(float64(i)))
		h.of(x, at(float64(i)))
	}
	if len(h) != maxHabits || h.of(x, at(1e6)) != quiet {
		t.Errorf("%d destinations are remembered", len(h))
	}
}

// TestBundleOfPlainTransports: a transport need not tell anything of itself.
func TestBundleOfPlainTransports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pl := newTestPool(t, nil)
		pl.connector = plainConnector{}
		defer pl.Close()
		p := testProfile()
		p.Transports = 2
		s, err := pl.Open(t.Context(), p, anywhere, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		time.Sleep(3 * time.Second)
		if list := live(pl); len(list) != 2 || list[0].Bulk {
			t.Errorf("listed %+v", list)
		}
	})
}

// plainConnector makes transports that tell nothing of themselves.
type plainConnector struct{}

func (plainConnector) Connect(ctx context.Context, p *Profile, _ DialFunc, _ Prompter) (Transport, error) {
	return &plainTransport{Transport: &fakeTransport{profile: p, done: make(chan struct{})}}, nil
}

type plainTransport struct{ Transport }
