package profiles

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeConnector makes transports in memory. Each connect takes a second.
type fakeConnector struct {
	mu       sync.Mutex
	fail     error
	starts   []time.Time
	running  map[Key]int
	together bool // two connects of one key at once
	made     []*fakeTransport
	ask      func(ctx context.Context, ask Prompter) error
	touched  bool // every login takes a person
	allowed  int  // transports at a time; 0: any number
}

func (c *fakeConnector) Connect(ctx context.Context, p *Profile, via DialFunc, ask Prompter) (Transport, error) {
	c.mu.Lock()
	if c.running == nil {
		c.running = make(map[Key]int)
	}
	c.running[p.Key()]++
	c.together = c.together || c.running[p.Key()] > 1
	c.starts = append(c.starts, time.Now())
	fail, question := c.fail, c.ask
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.running[p.Key()]--
		c.mu.Unlock()
	}()

	t := &fakeTransport{profile: p, touched: c.touched, done: make(chan struct{})}
	if via != nil {
		conn, err := via(ctx, "tcp", net.JoinHostPort(p.Host, fmt.Sprint(p.Port)))
		if err != nil {
			return nil, err
		}
		t.under = conn
	}
	if question != nil {
		if err := question(ctx, ask); err != nil {
			return nil, err
		}
	}
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrConnect, context.Cause(ctx))
	}
	if fail != nil {
		return nil, fail
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	live := 0
	for _, other := range c.made {
		if !over(other) {
			live++
		}
	}
	if c.allowed > 0 && live >= c.allowed {
		return nil, fmt.Errorf("%w: one connection is enough", ErrAuth)
	}
	c.made = append(c.made, t)
	return t, nil
}

func (c *fakeConnector) set(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = err
}

func (c *fakeConnector) connects() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.starts)
}

func (c *fakeConnector) last() *fakeTransport {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.made[len(c.made)-1]
}

type fakeTransport struct {
	profile *Profile
	under   net.Conn
	once    sync.Once
	done    chan struct{}
	err     error
	refuse  error
	dead    atomic.Bool // nothing comes any more
	carried atomic.Uint64
	touched bool // a person had a part in its login
}

func (t *fakeTransport) end(err error) {
	t.once.Do(func() {
		t.err = err
		if t.under != nil {
			t.under.Close()
		}
		close(t.done)
	})
}

func (t *fakeTransport) Open(ctx context.Context, dst Destination) (Stream, error) {
	select {
	case <-t.done:
		return nil, ErrLost
	default:
	}
	if t.refuse != nil {
		return nil, t.refuse
	}
	a, b := net.Pipe()
	go func() { io.Copy(b, b); b.Close() }()
	return &fakeStream{Conn: a, t: t}, nil
}
func (t *fakeTransport) Probe(limit time.Duration) {
	time.AfterFunc(limit, func() {
		if t.dead.Load() {
			t.end(ErrLost)
		}
	})
}
func (t *fakeTransport) Carried() uint64       { return t.carried.Load() }
func (t *fakeTransport) Attended() bool        { return t.touched }
func (t *fakeTransport) Done() <-chan struct{} { return t.done }
func (t *fakeTransport) Err() error            { return t.err }
func (t *fakeTransport) Close() error          { t.end(errors.New("closed")); return nil }

// fakeStream counts what its test says that it carried.
type fakeStream struct {
	net.Conn
	t     *fakeTransport
	count atomic.Uint64
}

func (s *fakeStream) carry(n uint64) {
	s.count.Add(n)
	s.t.carried.Add(n)
}

func (s *fakeStream) Counts() (sent, received uint64) { return 0, s.count.Load() }

func (s *fakeStream) CloseWrite() error { return nil }
func (s *fakeStream) Reset() error      { return s.Close() }

func newTestPool(t *testing.T, c Connector) *Pool {
	return NewPool(c, slog.New(slog.NewTextHandler(t.Output(), nil)))
}

func testProfile() *Profile {
	return &Profile{ID: "gw", Host: "gw.example", Port: 22, User: "me", IdleTimeout: time.Minute}
}

var anywhere = Destination{Host: "db.internal", Port: 5432}

func mustOpen(t *testing.T, pl *Pool, p *Profile) Stream {
	t.Helper()
	s, err := pl.Open(t.Context(), p, anywhere, nil)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s
}

func TestPoolSharesOneConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		defer pl.Close()
		var tasks sync.WaitGroup
		for range 50 {
			tasks.Go(func() {
				s := mustOpen(t, pl, testProfile())
				defer s.Close()
				if _, err := s.Write([]byte("x")); err != nil {
					t.Error(err)
				}
			})
		}
		// One who gives up does not take the connect away from the others.
		tasks.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if _, err := pl.Open(ctx, testProfile(), anywhere, nil); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
		tasks.Wait()
		if c.connects() != 1 || c.together {
			t.Errorf("%d connects, together %t", c.connects(), c.together)
		}
	})
}

func TestPoolConnectOutlivesItsWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		defer pl.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		pl.Open(ctx, testProfile(), anywhere, nil)
		time.Sleep(2 * time.Second)
		begin := time.Now()
		mustOpen(t, pl, testProfile()).Close()
		if time.Since(begin) != 0 || c.connects() != 1 {
			t.Errorf("opened after %s with %d connects", time.Since(begin), c.connects())
		}
	})
}

// The question to a person ends when nobody waits for what it is for.
func TestPoolQuestionEndsWithItsWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := make(chan error, 1)
		c := &fakeConnector{ask: func(ctx context.Context, ask Prompter) error {
			_, err := ask.Ask(ctx, Prompt{Text: "password?"})
			asked <- err
			return fmt.Errorf("%w: %w", ErrAuth, err)
		}}
		pl := newTestPool(t, c)
		defer pl.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := pl.Ready(ctx, testProfile(), silentPerson{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Ready: %v", err)
		}
		if err := <-asked; !errors.Is(err, context.Canceled) {
			t.Errorf("the question ended with %v", err)
		}
	})
}

type silentPerson struct{}

func (silentPerson) Ask(ctx context.Context, _ Prompt) (string, error) {
	<-ctx.Done()
	return "", ctx.Err()
}

func TestPoolBackoff(t *testing.T) {
	for _, test := range []struct {
		err        error
		from, most int // connects that a minute and an hour of flows cause
		hour       int
	}{
		{ErrConnect, 4, 8, 75},
		{ErrAuth, 2, 3, 13},
		{ErrHostKey, 2, 3, 13},
	} {
		t.Run(test.err.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &fakeConnector{fail: fmt.Errorf("dial gw.example:22: %w", test.err)}
				pl := newTestPool(t, c)
				defer pl.Close()
				begin := time.Now()
				late := 0
				for time.Since(begin) < time.Minute {
					at := time.Now()
					_, err := pl.Open(t.Context(), testProfile(), anywhere, nil)
					if !errors.Is(err, test.err) {
						t.Fatalf("open: %v", err)
					}
					if time.Since(at) > 0 {
						late++
					} else if !strings.Contains(err.Error(), "next attempt in") {
						t.Fatalf("at once: %v", err)
					}
					time.Sleep(50 * time.Millisecond)
				}
				if n := c.connects(); n < test.from || n > test.most || n != late {
					t.Errorf("%d connects in a minute, %d waited for", n, late)
				}
				for time.Since(begin) < time.Hour {
					pl.Open(t.Context(), testProfile(), anywhere, nil)
					time.Sleep(time.Second)
				}
				if n := c.connects(); n > test.hour {
					t.Errorf("%d connects in an hour", n)
				}
				// A person who is there does not wait.
				before := c.connects()
				c.set(nil)
				if err := pl.Ready(t.Context(), testProfile(), silentPerson{}); err != nil || c.connects() != before+1 {
					t.Errorf("Ready: %v, %d connects", err, c.connects()-before)
				}
			})
		})
	}
}

func TestPoolLostTransport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		defer pl.Close()
		s := mustOpen(t, pl, testProfile())
		defer s.Close()
		time.Sleep(time.Minute)
		c.last().end(fmt.Errorf("%w: cable cut", ErrLost))
		synctest.Wait()
		// It had lived long enough: the next one goes out at once.
		s2 := mustOpen(t, pl, testProfile())
		defer s2.Close()
		if c.connects() != 2 {
			t.Errorf("%d connects", c.connects())
		}
		// This one had not.
		c.last().end(fmt.Errorf("%w: cable cut again", ErrLost))
		synctest.Wait()
		if _, err := pl.Open(t.Context(), testProfile(), anywhere, nil); !errors.Is(err, ErrLost) {
			t.Errorf("open: %v", err)
		}
		list := pl.List()
		if len(list) != 1 || list[0].Connected || list[0].Failures != 1 || !strings.Contains(list[0].LastError, "cable cut again") || !list[0].RetryAt.After(time.Now()) {
			t.Errorf("list: %+v", list)
		}
	})
}

// A transport may end between being chosen and being asked.
func TestPoolRetriesOnceOnLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		defer pl.Close()
		mustOpen(t, pl, testProfile()).Close()
		time.Sleep(30 * time.Second)
		old := c.last()
		old.refuse = ErrLost
		go old.end(ErrLost)
		mustOpen(t, pl, testProfile()).Close()
		if c.connects() != 2 {
			t.Errorf("%d connects", c.connects())
		}
	})
}

func TestPoolIdle(t *testing.T) {
	for _, test := range []struct {
		idle  time.Duration
		alive []time.Duration // after the last stream
		dead  time.Duration   // 0: never
	}{
		{0, nil, time.Millisecond},
		{time.Minute, []time.Duration{59 * time.Second}, 61 * time.Second},
		{-1, []time.Duration{time.Hour, 100 * time.Hour}, 0},
	} {
		t.Run(test.idle.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &fakeConnector{}
				pl := newTestPool(t, c)
				defer pl.Close()
				p := testProfile()
				p.IdleTimeout = test.idle
				if err := pl.Ready(t.Context(), p, nil); err != nil {
					t.Fatal(err)
				}
				time.Sleep(30 * time.Second) // Ready leaves time for a first stream
				s := mustOpen(t, pl, p)
				time.Sleep(time.Hour)
				if over(c.last()) || c.connects() != 1 {
					t.Fatal("closed with a stream open")
				}
				s.Close()
				s.Close()
				ended := time.Now()
				for _, d := range test.alive {
					time.Sleep(time.Until(ended.Add(d)))
					if over(c.last()) {
						t.Errorf("closed within %s", d)
					}
				}
				if test.dead > 0 {
					time.Sleep(time.Until(ended.Add(test.dead)))
					synctest.Wait()
					if !over(c.last()) {
						t.Errorf("not closed after %s", test.dead)
					}
				}
			})
		})
	}
}

func TestPoolRetire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		defer pl.Close()
		kept, gone := testProfile(), testProfile()
		gone.User = "other"
		keptStream, goneStream := mustOpen(t, pl, kept), mustOpen(t, pl, gone)
		defer keptStream.Close()
		old := c.last()
		pl.Retire(func(k Key) bool { return k == kept.Key() })
		synctest.Wait()
		if over(old) {
			t.Fatal("closed with a stream open")
		}
		goneStream.Close()
		synctest.Wait()
		if !over(old) {
			t.Error("not closed after the last stream")
		}
		mustOpen(t, pl, kept).Close()
		if c.connects() != 2 {
			t.Errorf("%d connects", c.connects())
		}
	})
}

func TestPoolGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		defer pl.Close()
		gw := testProfile()
		gw.IdleTimeout = 0
		inner := &Profile{ID: "inner", Host: "inner.example", Port: 2222, User: "me", Gateway: gw, IdleTimeout: 0}
		s := mustOpen(t, pl, inner)
		list := pl.List()
		if len(list) != 2 || list[0].Gateway != "gw" || list[0].Server != "inner.example:2222" || list[1].Streams != 1 {
			t.Errorf("list: %+v", list)
		}
		if streams := pl.Streams(); len(streams) != 2 {
			t.Errorf("streams: %+v", streams)
		}
		s.Close()
		synctest.Wait()
		for _, in := range pl.List() {
			if in.Connected {
				t.Errorf("still connected: %+v", in)
			}
		}
	})
}

// What a gateway says of our server is not what is said of the destination.
func TestPoolGatewayFailure(t *testing.T) {
	for _, test := range []struct{ gateway, want, not error }{
		{ErrRefused, ErrConnect, ErrRefused},
		{ErrNameNotFound, ErrConnect, ErrNameNotFound},
		{ErrProhibited, ErrConnect, ErrProhibited},
		{ErrHostKey, ErrHostKey, ErrConnect},
		{ErrAuth, ErrAuth, ErrConnect},
	} {
		synctest.Test(t, func(t *testing.T) {
			pl := newTestPool(t, &fakeConnector{})
			defer pl.Close()
			gw := testProfile()
			if errors.Is(test.gateway, ErrHostKey) || errors.Is(test.gateway, ErrAuth) {
				pl.connector.(*fakeConnector).set(test.gateway)
			} else {
				mustOpen(t, pl, gw).Close()
				pl.connector.(*fakeConnector).last().refuse = test.gateway
			}
			_, err := pl.Open(t.Context(), &Profile{ID: "inner", Host: "inner", Port: 22, User: "me", Gateway: gw}, anywhere, nil)
			if !errors.Is(err, test.want) || errors.Is(err, test.not) {
				t.Errorf("%v: got %v", test.gateway, err)
			}
		})
	}
}

func TestPoolGatewayLoop(t *testing.T) {
	pl := newTestPool(t, &fakeConnector{})
	defer pl.Close()
	p := testProfile()
	p.Gateway = p
	if _, err := pl.Open(t.Context(), p, anywhere, nil); !errors.Is(err, ErrSetup) {
		t.Errorf("got %v", err)
	}
}

func TestPoolDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		p := testProfile()
		p.IdleTimeout = -1
		s := mustOpen(t, pl, p)
		drained := make(chan error, 1)
		go func() { drained <- pl.Drain(t.Context()) }()
		synctest.Wait()
		if _, err := pl.Open(t.Context(), p, anywhere, nil); !errors.Is(err, ErrClosed) {
			t.Errorf("open while draining: %v", err)
		}
		select {
		case err := <-drained:
			t.Fatalf("drained with a stream open: %v", err)
		default:
		}
		s.Close()
		if err := <-drained; err != nil || !over(c.last()) {
			t.Errorf("drained: %v", err)
		}
	})
}

// A transport that would stay for a while without streams does not keep a drain waiting, nor
// outlive its configuration.
func TestPoolIdleEnds(t *testing.T) {
	for name, end := range map[string]func(pl *Pool){
		"drain":  func(pl *Pool) { pl.Drain(context.Background()) },
		"retire": func(pl *Pool) { pl.Retire(func(Key) bool { return false }) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &fakeConnector{}
				pl := newTestPool(t, c)
				defer pl.Close()
				mustOpen(t, pl, testProfile()).Close()
				begin := time.Now()
				end(pl)
				synctest.Wait()
				if !over(c.last()) || time.Since(begin) > 0 {
					t.Errorf("after %s it is open: %t", time.Since(begin), !over(c.last()))
				}
			})
		})
	}
}

func TestPoolDrainLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		s := mustOpen(t, pl, testProfile())
		defer s.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := pl.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) || !over(c.last()) {
			t.Errorf("drain: %v", err)
		}
	})
}

// Close ends an attempt and everything else, from several sides at once.
func TestPoolClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{}
		pl := newTestPool(t, c)
		s := mustOpen(t, pl, testProfile())
		waiting := make(chan error, 1)
		other := testProfile()
		other.User = "other"
		go func() {
			_, err := pl.Open(t.Context(), other, anywhere, nil)
			waiting <- err
		}()
		synctest.Wait()
		var tasks sync.WaitGroup
		for range 3 {
			tasks.Go(func() { pl.Close() })
		}
		tasks.Wait()
		if err := <-waiting; err == nil {
			t.Error("an open succeeded on a closed pool")
		}
		if !over(c.last()) {
			t.Error("transport still open")
		}
		s.Close()
		if _, err := pl.Open(t.Context(), testProfile(), anywhere, nil); !errors.Is(err, ErrClosed) {
			t.Errorf("open: %v", err)
		}
	})
}

// Profiles made for one host each must not pile up.
func TestPoolForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeConnector{fail: ErrConnect}
		pl := newTestPool(t, c)
		defer pl.Close()
		for i := range 100 {
			pl.Open(t.Context(), testProfile().For(fmt.Sprint("host", i), "", true), anywhere, nil)
			time.Sleep(time.Minute)
		}
		if n := len(pl.List()); n > 10 {
			t.Errorf("%d ways remembered", n)
		}
	})
}

// Every field of a profile but ID and Name makes another key.
func TestKeyCoversEveryField(t *testing.T) {
	base := testProfile().Key()
	typ := reflect.TypeFor[Profile]()
	for i := range typ.NumField() {
		p := *testProfile()
		f := reflect.ValueOf(&p).Elem().Field(i)
		switch f.Interface().(type) {
		case string:
			f.SetString("changed")
		case []string:
			f.Set(reflect.ValueOf([]string{"changed"}))
		case bool:
			f.SetBool(true)
		case []Server:
			f.Set(reflect.ValueOf([]Server{{"changed", 1}}))
		case []AuthMethod:
			f.Set(reflect.ValueOf([]AuthMethod{Password}))
		case *Profile:
			f.Set(reflect.ValueOf(testProfile()))
		case []KeyStore:
			f.Set(reflect.ValueOf([]KeyStore{{Dir: "changed"}}))
		case Remember:
			f.Set(reflect.ValueOf(Remember{Idle: 1}))
		case KeySelection:
			f.Set(reflect.ValueOf(KeySelection{Shy: true}))
		case TLSSettings:
			f.Set(reflect.ValueOf(TLSSettings{Proxy: true}))
		default:
			if f.CanInt() {
				f.SetInt(7)
			} else {
				f.SetUint(7)
			}
		}
		name := typ.Field(i).Name
		if changed := p.Key() != base; changed == (name == "ID" || name == "Name") {
			t.Errorf("%s: key changed is %t", name, changed)
		}
	}
	for i, one := range []TLSSettings{{CAFiles: []string{"c"}}, {SystemRoots: true}, {Certificate: "c"}, {Key: "c"}, {ServerName: "c"}, {Service: "c"}, {Proxy: true}} {
		if reflect.ValueOf(one).Field(i).IsZero() {
			t.Fatalf("field %d of TLSSettings is not the one that is set", i)
		}
		p := *testProfile()
		p.TLS = one
		if p.Key() == base {
			t.Errorf("%+v: the key is that without", one)
		}
	}
	if n := reflect.TypeFor[TLSSettings]().NumField(); n != 7 {
		t.Errorf("TLSSettings has %d fields", n)
	}
	a, b := testProfile(), testProfile()
	a.Identities, b.Identities = []string{"ab", "c"}, []string{"a", "bc"}
	if a.Key() == b.Key() {
		t.Error("two lists read alike")
	}
}

func BenchmarkKey(b *testing.B) {
	p := testProfile()
	for b.Loop() {
		p.Key()
	}
}
