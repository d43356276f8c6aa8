package broker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sshbroker/broker"
	"sshbroker/broker/audit"
	"sshbroker/capture"
	"sshbroker/capture/capturetest"
	"sshbroker/filter"
	"sshbroker/filter/egrep"
	"sshbroker/profiles"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// records keeps what was recorded and lets a test wait for it.
type records struct {
	ready error
	ch    chan audit.Record
}

func (r *records) Record(rec audit.Record) { r.ch <- rec }
func (r *records) Ready() error            { return r.ready }

// noNames knows a fixed map.
type knownNames struct {
	names map[string][]string
	pool  netip.Prefix
}

func (k knownNames) Lookup(a netip.Addr) []string { return k.names[a.String()] }
func (k knownNames) Asked(a netip.Addr, name string) bool {
	return slices.Contains(k.names[a.String()], name)
}
func (k knownNames) IsPool(a netip.Addr) bool { return k.pool.IsValid() && k.pool.Contains(a) }
func (k knownNames) Hold(netip.Addr) func()   { return func() {} }

// opener opens streams to an echo, or fails.
type opener struct {
	err   error
	hangs bool // until its context ends
	seen  func(*profiles.Profile)

	mu     sync.Mutex
	opened []string // "user@server -> destination"
	live   int
}

func (o *opener) Open(ctx context.Context, p *profiles.Profile, dst profiles.Destination, _ profiles.Prompter) (profiles.Stream, error) {
	if o.hangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.seen != nil {
		o.seen(p)
	}
	o.opened = append(o.opened, fmt.Sprintf("%s@%s -> %s:%d", p.User, p.Host, dst.Host, dst.Port))
	if o.err != nil {
		return nil, o.err
	}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	near, err := net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		return nil, err
	}
	far, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	o.live++
	go func() {
		_, _ = io.Copy(far, far)
		far.Close()
		o.mu.Lock()
		o.live--
		o.mu.Unlock()
	}()
	return stream{near}, nil
}

type stream struct{ *net.TCPConn }

func (s stream) Reset() error {
	_ = s.SetLinger(0)
	return s.Close()
}

func pattern(t *testing.T, text string) *egrep.Pattern {
	t.Helper()
	p, err := egrep.Compile(text, egrep.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func set(t *testing.T, def filter.Action, rules ...filter.Rule) *filter.Set {
	t.Helper()
	s, err := filter.NewSet(rules, def)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// bench is a broker with everything around it made up.
type bench struct {
	*broker.Broker
	source  *capturetest.Source
	records *records
	opener  *opener
	states  []string
	capture *broker.Capture
}

func newBench(t *testing.T, rules *filter.Set) *bench {
	t.Helper()
	b := &bench{source: capturetest.NewSource(), records: &records{ch: make(chan audit.Record, 16)}, opener: &opener{}}
	var mu sync.Mutex
	b.Broker = broker.New(broker.Config{Tunnels: b.opener, Audit: b.records, Log: slog.New(slog.DiscardHandler),
		Failpoint: func(s string) { mu.Lock(); b.states = append(b.states, s); mu.Unlock() }})
	b.SetPolicy(&broker.Policy{Generation: 3, Rules: rules,
		Profiles: map[string]*profiles.Profile{"gw": {ID: "gw", Host: "gw.example", Port: 22, User: "u"}},
		Defaults: &profiles.Profile{Port: 22, User: "me"}})
	b.capture = &broker.Capture{ID: "c1", Backend: "test", Source: b.source, User: "me",
		Names: knownNames{names: map[string][]string{"203.0.113.7": {"db.example"}, "198.18.0.1": {"in.corp"}},
			pool: netip.MustParsePrefix("198.18.0.0/15")}}
	done := make(chan error, 1)
	go func() { done <- b.Run(context.Background(), b.capture) }()
	t.Cleanup(func() {
		b.source.Close()
		if err := <-done; !errors.Is(err, capture.ErrClosed) {
			t.Errorf("Run: %v", err)
		}
		b.Drain(t.Context())
		if n := b.Totals().Live; n != 0 {
			t.Errorf("%d flows left", n)
		}
	})
	return b
}

// dial has everything that goes in clear go to one listener, and tells where it was to go.
func (b *bench) dial(to net.Addr, dialed chan<- string) {
	b.Dial = func(_ context.Context, address string) (*net.TCPConn, error) {
		dialed <- address
		return net.DialTCP("tcp", nil, to.(*net.TCPAddr))
	}
}

func TestRefusals(t *testing.T) {
	tunnel := filter.Rule{Action: filter.Tunnel, Profile: "gw"}
	for _, c := range []struct {
		name    string
		rule    filter.Rule
		open    error
		dst     string
		refusal capture.Refusal
		reason  audit.Reason
	}{
		{"block", filter.Rule{Action: filter.Block}, nil, "203.0.113.7:23", capture.Refused, audit.Blocked},
		{"not built", filter.Rule{Action: filter.FTPTunnel, Profile: "gw"}, nil, "203.0.113.7:21", capture.Unreachable, audit.NotBuilt},
		{"refused far away", tunnel, profiles.ErrRefused, "203.0.113.7:23", capture.Refused, audit.RefusedByDestination},
		{"prohibited", tunnel, profiles.ErrProhibited, "203.0.113.7:23", capture.Unreachable, audit.Prohibited},
		{"name not found", tunnel, profiles.ErrNameNotFound, "203.0.113.7:23", capture.Unreachable, audit.NameNotFound},
		{"server down", tunnel, fmt.Errorf("%w: %w", profiles.ErrConnect, syscall.ECONNREFUSED), "203.0.113.7:23", capture.Unreachable, audit.ServerUnreachable},
		{"no login", tunnel, profiles.ErrAuth, "203.0.113.7:23", capture.Unreachable, audit.AuthFailed},
		{"wrong key", tunnel, profiles.ErrHostKey, "203.0.113.7:23", capture.Unreachable, audit.HostKey},
		{"no descriptors", tunnel, fmt.Errorf("%w: %w", profiles.ErrConnect, syscall.EMFILE), "203.0.113.7:23", capture.Unreachable, audit.NoDescriptors},
		{"unknown pool address", tunnel, nil, "198.18.0.9:23", capture.Unreachable, audit.BadName},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, set(t, filter.Direct, c.rule))
			b.opener.err = c.open
			a := b.source.Offer(capturetest.NewAttempt(c.dst))
			if got := a.Outcome(); got != (capturetest.Outcome{Refusal: c.refusal}) {
				t.Errorf("outcome %+v", got)
			}
			rec := <-b.records.ch
			if rec.Reason != c.reason || rec.Generation != 3 || rec.Rule != 1 || rec.Capture != "c1" {
				t.Errorf("recorded %+v", rec)
			}
			if c.open != nil && rec.Error == "" {
				t.Error("the record does not say why")
			}
		})
	}
}

func TestNoPolicyBlocks(t *testing.T) {
	b := newBench(t, nil)
	a := b.source.Offer(capturetest.NewAttempt("203.0.113.7:23"))
	if got := a.Outcome(); got != (capturetest.Outcome{Refusal: capture.Refused}) {
		t.Errorf("outcome %+v", got)
	}
	if rec := <-b.records.ch; rec.Reason != audit.Blocked {
		t.Errorf("recorded %v", rec.Reason)
	}
}

// talk sends and expects the echo, with half-close.
func talk(t *testing.T, a *capturetest.Attempt) {
	t.Helper()
	c := a.Program()
	defer c.Close()
	if _, err := io.WriteString(c, "over and out"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "over and out" {
		t.Errorf("echo %q, %v", got, err)
	}
}

func TestTunnelCarries(t *testing.T) {
	for _, c := range []struct {
		name string
		rule filter.Rule
		dst  string
		want string
	}{
		{"by name", filter.Rule{Action: filter.Tunnel, Profile: "gw"}, "203.0.113.7:5432", "u@gw.example -> db.example:5432"},
		{"by address", filter.Rule{Action: filter.Tunnel, Profile: "gw"}, "203.0.113.8:5432", "u@gw.example -> 203.0.113.8:5432"},
		{"pseudo address", filter.Rule{Action: filter.Tunnel, Profile: "gw"}, "198.18.0.1:23", "u@gw.example -> in.corp:23"},
		{"server from the program", filter.Rule{Action: filter.Tunnel, HostnameFromApp: true}, "203.0.113.7:23", "me@db.example -> db.example:23"},
		{"fixed destination", filter.Rule{Action: filter.Tunnel, Profile: "gw", Destination: "other", DestinationPort: 99, Username: "x"},
			"203.0.113.7:23", "x@gw.example -> other:99"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, set(t, filter.Direct, c.rule))
			a := b.source.Offer(capturetest.NewAttempt(c.dst))
			if !a.Outcome().Admitted {
				t.Fatal("not admitted")
			}
			talk(t, a)
			rec := <-b.records.ch
			if rec.Reason != audit.Carried || rec.BytesUp != 12 || rec.BytesDown != 12 {
				t.Errorf("recorded %+v", rec)
			}
			if !slices.Equal(b.opener.opened, []string{c.want}) {
				t.Errorf("opened %q, want %q", b.opener.opened, c.want)
			}
			if !slices.Equal(b.states, broker.States) {
				t.Errorf("passed the states %q", b.states)
			}
		})
	}
}

func TestAbandonedLeavesNoChannel(t *testing.T) {
	b := newBench(t, set(t, filter.Direct, filter.Rule{Action: filter.Tunnel, Profile: "gw"}))
	a := capturetest.NewAttempt("203.0.113.7:23")
	a.Abandoned = true
	b.source.Offer(a)
	a.Outcome()
	if rec := <-b.records.ch; rec.Reason != audit.Abandoned {
		t.Errorf("recorded %v", rec.Reason)
	}
}

// Without a descriptor nobody is admitted, and no rule about programs is passed over.
func TestNoDescriptors(t *testing.T) {
	b := newBench(t, set(t, filter.Direct,
		filter.Rule{Application: pattern(t, ".*/telnet"), Action: filter.Tunnel, Profile: "gw", FallbackToPlain: true}))
	blind := capturetest.NewAttempt("203.0.113.7:23")
	blind.At.Origin = func() capture.Origin {
		return capture.Origin{Err: &fs.PathError{Op: "open", Path: "/proc", Err: syscall.EMFILE}}
	}
	full := capturetest.NewAttempt("203.0.113.7:23")
	full.At.Origin = func() capture.Origin { return capture.Origin{Known: true, PID: 1, Exe: "/usr/bin/telnet"} }
	full.Exhausted = true
	for _, a := range []*capturetest.Attempt{blind, full} {
		b.source.Offer(a)
		if got := a.Outcome(); got != (capturetest.Outcome{Refusal: capture.Unreachable}) {
			t.Errorf("outcome %+v", got)
		}
		if rec := <-b.records.ch; rec.Reason != audit.NoDescriptors || !strings.Contains(rec.Error, "too many open files") {
			t.Errorf("recorded %v, %q", rec.Reason, rec.Error)
		}
	}
	if len(b.opener.opened) != 1 {
		t.Errorf("opened %q, want one stream, for the flow that was not admitted", b.opener.opened)
	}

	// Our own shortage is nothing that fallback-to-plain is for.
	b.opener.err = fmt.Errorf("dial: %w: %w", profiles.ErrConnect, syscall.EMFILE)
	a := capturetest.NewAttempt("203.0.113.7:23")
	a.At.Origin = full.At.Origin
	b.source.Offer(a)
	if got := a.Outcome(); got != (capturetest.Outcome{Refusal: capture.Unreachable}) {
		t.Errorf("outcome %+v", got)
	}
	if rec := <-b.records.ch; rec.Reason != audit.NoDescriptors {
		t.Errorf("recorded %v, %q", rec.Reason, rec.Error)
	}
}

// TestProgramGivesUpWhileOpening shows that nothing goes on for a program that is gone.
func TestProgramGivesUpWhileOpening(t *testing.T) {
	b := newBench(t, set(t, filter.Direct, filter.Rule{Action: filter.Tunnel, Profile: "gw", FallbackToPlain: true}))
	b.opener.hangs = true
	a := capturetest.NewAttempt("203.0.113.7:23")
	a.Gone = true
	b.source.Offer(a)
	if got := a.Outcome(); got != (capturetest.Outcome{Refusal: capture.Silent}) {
		t.Errorf("outcome %+v", got)
	}
	if rec := <-b.records.ch; rec.Reason != audit.Abandoned {
		t.Errorf("recorded %v", rec.Reason)
	}
}

func TestFallback(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	rule := filter.Rule{Action: filter.Tunnel, Profile: "gw", FallbackToPlain: true}
	for _, c := range []struct {
		err  error
		want audit.Reason
	}{
		{profiles.ErrConnect, audit.Fallback},
		{profiles.ErrAuth, audit.Fallback},
		{profiles.ErrProhibited, audit.Fallback},
		{profiles.ErrHostKey, audit.HostKey},
		{fmt.Errorf("%w: %w", profiles.ErrConnect, profiles.ErrHostKey), audit.HostKey},
		{profiles.ErrRefused, audit.RefusedByDestination},
		{profiles.ErrSetup, audit.ProfileError},
	} {
		b := newBench(t, set(t, filter.Direct, rule))
		b.opener.err = c.err
		a := b.source.Offer(capturetest.NewAttempt(l.Addr().String()))
		if a.Outcome().Admitted != (c.want == audit.Fallback) {
			t.Errorf("%v: admitted and should not, or the reverse", c.err)
		} else if c.want == audit.Fallback {
			talk(t, a)
		}
		if rec := <-b.records.ch; rec.Reason != c.want || rec.Error == "" {
			t.Errorf("%v: recorded %v, %q", c.err, rec.Reason, rec.Error)
		}
	}
}

// TestOwnPolicy shows that a capture's own rules do not open what the common ones block.
func TestOwnPolicy(t *testing.T) {
	b := newBench(t, set(t, filter.Direct, filter.Rule{Host: pattern(t, "db\\.example"), Action: filter.Block}))
	own := &broker.Policy{Rules: set(t, filter.Tunnel), Defaults: &profiles.Profile{Host: "bastion", Port: 22, User: "me"}}
	b.capture.Policy = func() *broker.Policy { return own }
	blocked := b.source.Offer(capturetest.NewAttempt("203.0.113.7:23"))
	if blocked.Outcome().Admitted {
		t.Error("a private rule set opened what the common one blocks")
	}
	if rec := <-b.records.ch; rec.Reason != audit.Blocked {
		t.Errorf("recorded %v", rec.Reason)
	}
	open := b.source.Offer(capturetest.NewAttempt("203.0.113.9:23"))
	if !open.Outcome().Admitted {
		t.Fatal("not admitted")
	}
	talk(t, open)
	<-b.records.ch
	if !slices.Equal(b.opener.opened, []string{"me@bastion -> 203.0.113.9:23"}) {
		t.Errorf("opened %q", b.opener.opened)
	}
}

func TestLocalPassesRules(t *testing.T) {
	block := set(t, filter.Block)
	for _, judged := range []bool{false, true} {
		b := newBench(t, block)
		b.capture.Localhost = judged
		a := capturetest.NewAttempt("127.0.0.1:5432")
		a.At.Local, a.CanPass = true, true
		b.source.Offer(a)
		if got := a.Outcome(); got.Passed == judged {
			t.Errorf("judged=%v: %+v", judged, got)
		}
		<-b.records.ch
	}
}

func TestAuditRequired(t *testing.T) {
	b := newBench(t, set(t, filter.Direct))
	b.records.ready = errors.New("disk full")
	a := b.source.Offer(capturetest.NewAttempt("203.0.113.7:23"))
	if a.Outcome().Admitted {
		t.Error("admitted without a record")
	}
	if rec := <-b.records.ch; rec.Reason != audit.AuditRequired {
		t.Errorf("recorded %v", rec.Reason)
	}
}

func TestDrainCutsWhatLingers(t *testing.T) {
	b := newBench(t, set(t, filter.Direct, filter.Rule{Action: filter.Tunnel, Profile: "gw"}))
	a := b.source.Offer(capturetest.NewAttempt("203.0.113.7:23"))
	a.Outcome()
	c := a.Program()
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	b.Drain(ctx)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a flow that outlived the drain ended with %v", err)
	}
	if rec := <-b.records.ch; rec.Reason != audit.Shutdown {
		t.Errorf("recorded %v", rec.Reason)
	}
}

// Lists tell who decided, so that nobody asks the wrong rules why.
func TestFlowsTellWhoDecided(t *testing.T) {
	tunnel := filter.Rule{Action: filter.Tunnel, Profile: "gw"}
	for want, prepare := range map[broker.By]func(*bench, *capturetest.Attempt){
		broker.ByRules: func(*bench, *capturetest.Attempt) {},
		broker.ByOwn: func(b *bench, _ *capturetest.Attempt) {
			own := &broker.Policy{Rules: set(t, filter.Direct, tunnel), Profiles: b.Policy().Profiles, Defaults: b.Policy().Defaults}
			b.capture.Policy = func() *broker.Policy { return own }
		},
		broker.ByPlace: func(b *bench, a *capturetest.Attempt) {
			l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			b.dial(l.Addr(), make(chan string, 1))
			a.At.Local = true
			go func() {
				if c, err := l.Accept(); err == nil {
					_, _ = io.Copy(c, c)
					c.Close()
				}
			}()
		},
	} {
		b := newBench(t, set(t, filter.Direct, tunnel))
		a := capturetest.NewAttempt("203.0.113.7:23")
		prepare(b, a)
		b.source.Offer(a)
		if got := a.Outcome(); !got.Admitted {
			t.Fatalf("by %d: %+v", want, got)
		}
		if flows := b.Flows(); len(flows) != 1 || flows[0].By != want {
			t.Errorf("by %d: %+v", want, flows)
		}
		talk(t, a)
		<-b.records.ch
	}
}
