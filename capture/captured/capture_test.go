package captured

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/service"
	broker "sshbroker/capture/service/client"
)

// leaves are the cgroups of captures.
func leaves() []string {
	list, _ := filepath.Glob(filepath.Join(os.Getenv(place), "ssh-capture", "*-*"))
	return list
}

func TestEndOfCapture(t *testing.T) {
	s, direct := start(t, newOptions(t)), listenDirect(t)
	c, maker := s.client(t, alice), s.client(t, alice)
	id, p := maker.capture(t, alice)
	maker.close() // one that is in use stays
	c.serve(id, judge())
	p.dial(direct)
	a := c.attempt()
	p.kill()
	if m := await(t, "word of the end", c.others); m.Error == nil || m.Error.Code != service.CodeEnded || m.Capture != id {
		t.Errorf("told: %+v", m)
	}
	c.fails(service.CodeNotFound, service.Message{Op: service.OpAdmit, ID: a.ID})
	c.fails(service.CodeEnded, service.Message{Op: service.OpSpec, Capture: id, Spec: judge()})
	poll(t, "the cgroup to be gone", func() bool { return len(leaves()) == 0 })

	// One that nobody has entered goes with its maker.
	maker = s.client(t, alice)
	maker.must(service.Message{Op: service.OpMake, Capture: "unused"})
	c.serve("unused", judge())
	maker.close()
	if m := await(t, "word of the end", c.others); m.Error == nil || m.Error.Code != service.CodeEnded {
		t.Errorf("told: %+v", m)
	}
	poll(t, "the cgroup to be gone", func() bool { return len(leaves()) == 0 })
	s.changing.Lock()
	defer s.changing.Unlock()
	if len(s.captures) != 0 || len(s.queues) != 0 || len(s.config.Captures) != 0 {
		t.Errorf("left: %v, %v, %+v", s.captures, s.queues, s.config)
	}
	if s.withdraw(); s.table != nil {
		t.Error("the table is there still")
	}
}

func TestTwoCaptures(t *testing.T) {
	s, direct := start(t, newOptions(t)), listenDirect(t)
	a, b := s.client(t, alice), s.client(t, alice)
	ida, pa := a.capture(t, alice)
	idb, pb := b.capture(t, alice)
	rule := func(number int, o capture.Outcome) *capture.Spec {
		return &capture.Spec{Local: true, Rules: []capture.SpecRule{{Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, Outcome: o, Number: number}}}
	}
	a.serve(ida, rule(1, capture.Reset))
	b.serve(idb, rule(2, capture.Ask))
	howb := pb.dial(direct)
	expect(t, pa.dial(direct), "ECONNREFUSED")
	b.admit(b.attempt(), "tunnel")
	expect(t, howb, "tunnel")
	// A Spec that the kernel decides by alone, and back; what is held stays so.
	held := pb.dial(direct)
	at := b.attempt()
	for _, o := range []capture.Outcome{capture.Pass, capture.Reset, capture.Ask} {
		b.must(service.Message{Op: service.OpSpec, Capture: idb, Spec: rule(2, o)})
		if o == capture.Pass {
			expect(t, pb.dial(direct), "direct")
		}
	}
	b.admit(at, "tunnel")
	expect(t, held, "tunnel")
	st := a.must(service.Message{Op: service.OpStatus}).Status
	for _, c := range st.Captures {
		if c.ID == ida && (len(c.Hits) != 1 || c.Hits[0] != service.Hit{Rule: 1, Outcome: "reset", Count: 1}) {
			t.Errorf("hits: %+v", c.Hits)
		}
	}
}

// TestPools: what one user calls a pool is nobody else's concern.
func TestPools(t *testing.T) {
	s, direct := start(t, newOptions(t)), listenDirect(t)
	c := s.client(t, alice)
	id, p := c.capture(t, alice)
	all := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	c.serve(id, &capture.Spec{Pools: all, RefuseUDP: true, Rest: capture.Reset})
	expect(t, start1(t, bob).dial(direct), "direct")
	expect(t, start1(t, 0).dial(direct), "direct")
	how := p.dial(direct)
	c.admit(c.attempt(), "tunnel")
	expect(t, how, "tunnel")
}

func TestPermissions(t *testing.T) {
	s := start(t, newOptions(t))
	maker := s.client(t, alice)
	id, p := maker.capture(t, alice)
	spec := service.Message{Op: service.OpSpec, Capture: id, Spec: judge()}
	serve := service.Message{Op: service.OpServe, Capture: id, Spec: judge()}
	system := service.Message{Op: service.OpServe, Capture: service.System, Spec: judge()}
	on := service.Message{Op: service.OpConnector, Enable: new(false)}
	foreign, own := start1(t, bob), start1(t, alice)
	enter := service.Message{Op: service.OpEnter, Capture: id}

	for _, c := range []*conn{s.client(t, bob), s.client(t, admin, 5, admin)} {
		c.fails(service.CodeForbidden, serve)
		c.fails(service.CodeForbidden, spec)
		c.fails(service.CodeForbidden, enter, foreign.pidfd)
		c.fails(service.CodeForbidden, enter, own.pidfd)
		c.fails(service.CodeBusy, service.Message{Op: service.OpMake, Capture: id})
		if st := c.must(service.Message{Op: service.OpStatus}).Status; len(st.Captures) != 0 != (c.uid == admin) {
			t.Errorf("uid %d sees %+v", c.uid, st.Captures)
		}
	}
	for _, uid := range []int{alice, bob} {
		c := s.client(t, uid, 1, 2, 3)
		c.fails(service.CodeForbidden, system)
		c.fails(service.CodeForbidden, on)
		c.fails(service.CodeForbidden, service.Message{Op: service.OpRelease})
		c.fails(service.CodeForbidden, service.Message{Op: service.OpSpec, Capture: service.System, Spec: judge()})
		c.fails(service.CodeEnded, service.Message{Op: service.OpServe, Capture: "nothing", Spec: judge()})
		for _, bad := range []string{"", service.System, "../x", "UPPER", "abc", strings.Repeat("a", 33), "a b c"} {
			c.fails(service.CodeBadRequest, service.Message{Op: service.OpMake, Capture: bad})
		}
	}
	a := s.client(t, alice)
	a.fails(service.CodeForbidden, enter, foreign.pidfd)
	a.fails(service.CodeBadRequest, enter)
	a.fails(service.CodeForbidden, spec) // is not its server
	a.fails(service.CodeBadRequest, service.Message{Op: service.OpServe, Capture: id})
	f, _ := os.Open("/dev/null")
	defer f.Close()
	a.fails(service.CodeKernel, enter, f)
	own.kill()
	a.fails(service.CodeNotFound, enter, own.pidfd)
	// Others can do all that.
	s.client(t, admin, admin).serve(service.System, &capture.Spec{})
	root := s.client(t, 0)
	root.must(on)
	root.serve(id, judge())
	if st := root.must(service.Message{Op: service.OpStatus}).Status; len(st.Captures) != 1 || !st.Serving {
		t.Errorf("root sees %+v", st.Captures)
	}
	if st := s.client(t, bob).must(service.Message{Op: service.OpStatus}).Status; len(st.Captures) != 0 || len(st.Carriers) != 0 {
		t.Errorf("bob sees %+v", st)
	}
	_ = p
}

func TestBounds(t *testing.T) {
	s := start(t, newOptions(t))
	var all []*conn
	for range connsPerUID {
		all = append(all, s.client(t, alice))
	}
	more := s.dial(t, alice)
	go more.read()
	more.ended()
	s.client(t, bob).must(service.Message{Op: service.OpStatus})
	a := all[0]
	for i := range capturesPerUID {
		a.must(service.Message{Op: service.OpMake, Capture: fmt.Sprintf("many%d", i)})
	}
	a.fails(service.CodeBusy, service.Message{Op: service.OpMake, Capture: "onemore"})
	if n := len(leaves()); n != capturesPerUID {
		t.Errorf("%d cgroups", n)
	}
	s.client(t, bob).must(service.Message{Op: service.OpMake, Capture: "bobs"})

	big := func(n int) *capture.Spec {
		spec := judge()
		for i := range n {
			spec.Rules = append(spec.Rules, capture.SpecRule{Number: i, Outcome: capture.Pass})
		}
		return spec
	}
	large := func(c *conn) *conn { // what it says may be large
		raw, _ := c.conn.File().SyscallConn()
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20)
		})
		return c
	}
	began := time.Now()
	large(all[1]).serve("many1", big(specPerUID*3/4))
	t.Logf("%d rules took %v", specPerUID*3/4, time.Since(began))
	large(all[2]).fails(service.CodeBadRequest, service.Message{Op: service.OpServe, Capture: "many2", Spec: big(specPerUID / 2)})
	all[2].serve("many2", big(specPerUID/8))
	// Root can read of it all.
	st := s.status(t)
	n := 0
	for _, c := range st.Captures {
		n += len(c.Hits)
	}
	if len(st.Captures) != capturesPerUID+1 || n != maxHits {
		t.Errorf("%d captures, %d hits", len(st.Captures), n)
	}
	a.close()
	poll(t, "the captures to go with their maker", func() bool { return len(leaves()) <= 1 })
}

// TestNobodyReads: a client that only asks is stopped, and holds nobody up.
func TestNobodyReads(t *testing.T) {
	s := start(t, newOptions(t))
	before := openFiles(t)
	c := s.dial(t, alice)
	c.send(service.Message{Op: service.OpHello, Hello: &service.Hello{Version: service.Version}})
	c.send(service.Message{Op: service.OpMake, Capture: "mine", Seq: 1})
	c.send(service.Message{Op: service.OpServe, Capture: "mine", Spec: judge(), Seq: 2})
	raw, _ := c.conn.File().SyscallConn()
	sent, full := 0, false
	for end := time.Now().Add(patience); !full && time.Now().Before(end); {
		_ = raw.Control(func(fd uintptr) {
			op := []string{"status", "waits", "serve", "spec"}[sent%4]
			err := unix.Send(int(fd), fmt.Appendf(nil, `{"op":%q,"seq":%d,"capture":"mine","spec":{}}`, op, sent+3), unix.MSG_DONTWAIT)
			if err == unix.EAGAIN {
				time.Sleep(50 * time.Millisecond) // it may only be slow
				err = unix.Send(int(fd), fmt.Appendf(nil, `{"op":"waits","seq":%d}`, sent+3), unix.MSG_DONTWAIT)
				full = err == unix.EAGAIN
			}
		})
		sent++
	}
	if !full {
		t.Errorf("%d requests were taken", sent)
	}
	s.client(t, bob).must(service.Message{Op: service.OpMake, Capture: "bobs"})
	if n := openFiles(t); n > before+50 {
		t.Errorf("%d descriptors more", n-before)
	}
	s.mu.Lock()
	u := s.user(alice)
	s.mu.Unlock()
	if len(u.slots) > slotsPerUID {
		t.Errorf("%d requests under way", len(u.slots))
	}
	c.conn.Close()
	poll(t, "the connection to be gone", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return u.conns == 0 && len(u.slots) == 0
	})
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestFairSending: a thousand attempts of one user do not delay another's one.
func TestFairSending(t *testing.T) {
	s, direct := start(t, newOptions(t)), listenDirect(t)
	spec := &capture.Spec{Local: true, Users: []capture.UIDRange{{Lo: alice, Hi: bob}}}
	idle := s.client(t, 0)
	idle.serve(service.System, spec)
	idle.must(service.Message{Op: service.OpConnector, Enable: new(true)})
	idle.close()
	flood, one := start1(t, alice), start1(t, bob)
	for range 1000 {
		flood.connect(direct, patience)
	}
	poll(t, "the flood to be held", func() bool { return s.status(t).Waiting == 1000 })
	how := one.dial(direct)
	poll(t, "the one to be held", func() bool { return s.status(t).Waiting == 1001 })
	c := s.client(t, 0)
	c.serve(service.System, spec)
	mine := 0
	for i := 0; mine == 0; i++ {
		if a := c.attempt(); a.Attempt.UID == bob {
			mine = i + 1
			c.pass(a)
		}
	}
	if mine > 2 {
		t.Errorf("bob's one was number %d", mine)
	}
	expect(t, how, "direct")
	for range window - 2 {
		c.attempt()
	}
	select { // its window is full
	case <-c.attempts:
	case <-time.After(100 * time.Millisecond):
		if n := len(c.attempts); n > 2 {
			t.Errorf("%d beyond the window", n)
		}
	}
}

// TestGivenUp: programs that gave up while nobody decided make room.
func TestGivenUp(t *testing.T) {
	s, direct := start(t, newOptions(t)), listenDirect(t)
	c := s.client(t, alice)
	id, p := c.capture(t, alice)
	c.serve(id, judge())
	gone, stays := p.connect(direct, 50*time.Millisecond), p.dial(direct)
	first, second := c.attempt(), c.attempt()
	expect(t, gone, "timeout")
	s.forget(time.Now())
	var left []*service.Message
	for _, a := range []*service.Message{first, second} {
		if await(t, "waits", c.ask(service.Message{Op: service.OpWaits, ID: a.ID})).Yes {
			left = append(left, a)
		}
	}
	if st := s.status(t); len(left) != 1 || st.Captures[0].Waiting != 1 || st.Waiting != 1 {
		t.Fatalf("%d wait, %+v", len(left), st)
	}
	c.admit(left[0], "tunnel")
	expect(t, stays, "tunnel")
}

// TestRace has processes enter and leave while captures begin and end.
func TestRace(t *testing.T) {
	s, direct := start(t, newOptions(t)), listenDirect(t)
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			for i := range 5 {
				c := s.client(t, alice)
				id := fmt.Sprintf("race%d%d", n, i)
				c.must(service.Message{Op: service.OpMake, Capture: id})
				p := start1(t, alice)
				entered := c.ask(service.Message{Op: service.OpEnter, Capture: id}, p.pidfd)
				if i%2 == 0 {
					await(t, "enter", entered)
				}
				served := c.ask(service.Message{Op: service.OpServe, Capture: id, Spec: &capture.Spec{Local: true, Rest: capture.Reset}})
				if i%2 == 0 {
					await(t, "serve", served)
					expect(t, p.dial(direct), "ECONNREFUSED")
				}
				if i%3 == 0 {
					c.conn.Close()
				}
				p.kill()
				c.conn.Close()
			}
		})
	}
	wg.Wait()
	poll(t, "everything to be gone", func() bool {
		s.changing.Lock()
		defer s.changing.Unlock()
		return len(s.captures) == 0 && len(leaves()) == 0
	})
}

// TestClient is the client that brokers have.
func TestClient(t *testing.T) {
	s, direct := start(t, newOptions(t)), listenDirect(t)
	c := s.client(t, alice)
	id, p := c.capture(t, alice)
	var source *broker.Source
	as(t, alice, nil, func() (err error) {
		source, err = broker.Serve(t.Context(), broker.Options{Dialer: broker.Dialer{Path: s.opts.Socket}, Capture: id, Spec: *judge()})
		return err
	})
	defer source.Close()
	how := p.dial(direct)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	a, err := source.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if o := a.Flow().Origin(); o.PID != p.cmd.Process.Pid {
		t.Errorf("origin %+v", o)
	}
	nc, err := a.Admit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(nc, "tunnel")
	nc.Close()
	expect(t, how, "tunnel")
}
