package captured

import (
	"sync/atomic"
	"testing"
	"time"

	"sshbroker/capture"
	"sshbroker/capture/service"
)

func TestVerdicts(t *testing.T) {
	s, direct := start(t, newOptions(t)), listenDirect(t)
	c := s.client(t, alice)
	id, p := c.capture(t, alice)
	served := c.serve(id, judge())
	if served.Served == nil || served.Served.Owner != alice || served.Served.Cgroup == "" || len(served.files) != 4 {
		t.Errorf("served: %+v with %d sockets", served.Served, len(served.files))
	}

	how := p.dial(direct)
	a := c.attempt()
	if a.Capture != id || a.Attempt.UID != alice || a.Attempt.Dst.String() != direct {
		t.Errorf("attempt %+v", a.Attempt)
	}
	if r := c.must(service.Message{Op: service.OpWaits, ID: a.ID}); !r.Yes {
		t.Error("its program does not wait")
	}
	o := c.must(service.Message{Op: service.OpOrigin, ID: a.ID}).Origin
	if o == nil || o.PID != p.cmd.Process.Pid || !o.Known {
		t.Errorf("origin %+v, want process %d", o, p.cmd.Process.Pid)
	}
	c.admit(a, "tunnel")
	expect(t, how, "tunnel")
	if r := c.must(service.Message{Op: service.OpWaits, ID: a.ID}); r.Yes {
		t.Error("its program waits still")
	}
	c.fails(service.CodeNotFound, service.Message{Op: service.OpAdmit, ID: a.ID})

	how = p.dial(direct)
	c.refuse(c.attempt(), capture.Refused)
	expect(t, how, "ECONNREFUSED")
	how = p.dial(direct)
	c.refuse(c.attempt(), capture.Unreachable)
	expect(t, how, "EHOSTUNREACH")
	how = p.dial(direct)
	a = c.attempt()
	c.pass(a)
	c.refuse(a, capture.Refused) // is late
	expect(t, how, "direct")
	how = p.connect(direct, 50*time.Millisecond)
	a = c.attempt()
	expect(t, how, "timeout")
	c.fails(service.CodeAbandoned, service.Message{Op: service.OpAdmit, ID: a.ID})
	expect(t, start1(t, alice).dial(direct), "direct") // is in no capture
	if len(c.attempts) != 0 {
		t.Error("an attempt too much")
	}
}

// TestNextBroker has brokers vanish at every step: the next one gets what is undecided.
func TestNextBroker(t *testing.T) {
	o, stops, goOn := newOptions(t), make(chan bool, 10), make(chan bool)
	var stop atomic.Bool
	o.Failpoint = func(state string) {
		if state == StateAsked && stop.Load() {
			stops <- true
			<-goOn
		}
	}
	s, direct := start(t, o), listenDirect(t)
	maker := s.client(t, alice)
	id, p := maker.capture(t, alice)

	first := s.client(t, alice)
	first.serve(id, judge())
	given, refused := p.dial(direct), p.dial(direct)
	first.attempt()
	first.attempt()
	first.fails(service.CodeForbidden, service.Message{Op: service.OpServe, Capture: id, Spec: judge()})
	s.client(t, alice).fails(service.CodeBusy, service.Message{Op: service.OpServe, Capture: id, Spec: judge()})
	first.close()

	unserved := p.dial(direct)
	poll(t, "three to wait", func() bool { return s.status(t).Captures[0].Waiting == 3 })
	second := s.client(t, alice)
	second.serve(id, judge())
	second.pass(second.attempt())
	second.refuse(second.attempt(), capture.Refused)
	last := second.attempt()
	second.close()

	third := s.client(t, alice)
	third.serve(id, judge())
	again := third.attempt()
	if again.Attempt.Key != last.Attempt.Key {
		t.Errorf("%v came, want %v", again.Attempt.Key, last.Attempt.Key)
	}
	third.admit(again, "tunnel")
	got := map[string]int{}
	for _, how := range []<-chan string{given, refused, unserved} {
		got[await(t, "a program", how)]++
	}
	if got["direct"] != 1 || got["ECONNREFUSED"] != 1 || got["tunnel"] != 1 {
		t.Errorf("programs: %v", got)
	}

	// One that vanishes with an admission under way.
	how := p.dial(direct)
	a := third.attempt()
	stop.Store(true)
	third.ask(service.Message{Op: service.OpAdmit, ID: a.ID})
	await(t, "it to be asked", stops)
	third.close()
	fourth := s.client(t, alice)
	fourth.serve(id, judge())
	close(goOn)
	if got := await(t, "the program", how); got != "ECONNRESET" {
		t.Errorf("the program: %q", got)
	}
	if len(fourth.attempts) != 0 {
		t.Error("an attempt was given twice")
	}
}

func TestHandOver(t *testing.T) {
	s, direct := start(t, newOptions(t)), listenDirect(t)
	system := s.client(t, 0)
	system.serve(service.System, &capture.Spec{Local: true, Users: []capture.UIDRange{{Lo: alice, Hi: bob}}})
	system.must(service.Message{Op: service.OpConnector, Enable: new(true)})
	p := start1(t, alice)
	hand := func(a *service.Message) <-chan reply {
		return system.ask(service.Message{Op: service.OpHand, ID: a.ID, Payload: []byte(`"go"`)})
	}

	how := p.dial(direct)
	a := system.attempt()
	if r := await(t, "hand", hand(a)); r.Error == nil || r.Error.Code != service.CodeNoCarrier {
		t.Errorf("without a carrier: %v", r.Error)
	}
	carrier := s.client(t, alice)
	carrier.must(service.Message{Op: service.OpCarry})
	s.client(t, alice).fails(service.CodeBusy, service.Message{Op: service.OpCarry})
	other := s.client(t, bob)
	other.must(service.Message{Op: service.OpCarry})
	if got := s.status(t).Carriers; len(got) != 2 {
		t.Errorf("carriers %v", got)
	}

	// Refused by the carrier, and then by the system broker.
	done := hand(a)
	b := carrier.attempt()
	if b.Capture != "" || string(b.Attempt.Payload) != `"go"` || b.Attempt.Key != a.Attempt.Key {
		t.Errorf("carried: %+v", b)
	}
	system.fails(service.CodeNotFound, service.Message{Op: service.OpAdmit, ID: a.ID})
	carrier.fails(service.CodeBadRequest, service.Message{Op: service.OpHand, ID: b.ID})
	carrier.send(service.Message{Op: service.OpRefuse, ID: b.ID, Refusal: capture.Unreachable, Text: "no"})
	if h := await(t, "hand", done).Handed; h == nil || h.Outcome != service.HandRefused || h.Text != "no" || h.Refusal != capture.Unreachable {
		t.Errorf("handed: %+v", h)
	}
	// Admitted.
	done = hand(a)
	b = carrier.attempt()
	carrier.admit(b, "carried")
	if h := await(t, "hand", done).Handed; h == nil || h.Outcome != service.HandAdmitted {
		t.Errorf("handed: %+v", h)
	}
	expect(t, how, "carried")
	// The program gives up.
	gave := p.connect(direct, 50*time.Millisecond)
	done = hand(system.attempt())
	b = carrier.attempt()
	expect(t, gave, "timeout")
	carrier.fails(service.CodeAbandoned, service.Message{Op: service.OpAdmit, ID: b.ID})
	if h := await(t, "hand", done).Handed; h == nil || h.Outcome != service.HandLost {
		t.Errorf("handed: %+v", h)
	}
	// The carrier dies, and the system broker decides.
	how = p.dial(direct)
	a = system.attempt()
	done = hand(a)
	carrier.attempt()
	carrier.close()
	if h := await(t, "hand", done).Handed; h == nil || h.Outcome != service.HandGone {
		t.Errorf("handed: %+v", h)
	}
	system.admit(a, "tunnel")
	expect(t, how, "tunnel")
	// The system broker dies: the next one gets what the carrier does not take.
	carrier = s.client(t, alice)
	carrier.must(service.Message{Op: service.OpCarry})
	taken, how := p.dial(direct), p.dial(direct)
	hand(system.attempt())
	hand(system.attempt())
	b, b2 := carrier.attempt(), carrier.attempt()
	system.close()
	carrier.admit(b, "either")
	next := s.client(t, admin, admin)
	next.serve(service.System, &capture.Spec{Local: true, Users: []capture.UIDRange{{Lo: alice, Hi: bob}}})
	carrier.refuse(b2, capture.Refused)
	next.admit(next.attempt(), "either")
	expect(t, taken, "either")
	expect(t, how, "either")
	// A carrier has no way out.
	p.dial(direct)
	go next.ask(service.Message{Op: service.OpHand, ID: next.attempt().ID})
	carrier.pass(carrier.attempt())
	carrier.ended()
}

func TestConnector(t *testing.T) {
	s, direct := start(t, newOptions(t)), listenDirect(t)
	root, p := s.client(t, 0), start1(t, alice)
	on, off := service.Message{Op: service.OpConnector, Enable: new(true)}, service.Message{Op: service.OpConnector, Enable: new(false)}
	root.fails(service.CodeNoSystem, on)
	root.fails(service.CodeBadRequest, service.Message{Op: service.OpConnector})
	spec := &capture.Spec{Local: true, Users: []capture.UIDRange{{Lo: alice, Hi: alice}}}
	system := s.client(t, admin, 7, admin, 8)
	if r := system.serve(service.System, spec); r.Served.Enabled || r.Served.Cgroup != "" {
		t.Errorf("served: %+v", r.Served)
	}
	expect(t, p.dial(direct), "direct")
	root.must(on)
	root.must(on)
	held, other := p.dial(direct), p.dial(direct)
	a := system.attempt()
	// Another Spec, with other parts of the table, keeps what is held.
	system.must(service.Message{Op: service.OpSpec, Capture: service.System, Spec: &capture.Spec{Local: true, RefuseUDP: true,
		Rules: []capture.SpecRule{{Number: 3, Outcome: capture.Reset}}, Users: spec.Users}})
	expect(t, p.dial(direct), "ECONNREFUSED")
	root.must(off)
	expect(t, held, "direct") // at once: long before a SYN comes again
	expect(t, other, "direct")
	system.fails(service.CodeNotFound, service.Message{Op: service.OpAdmit, ID: a.ID})
	expect(t, p.dial(direct), "direct")
	root.must(on)
	system.must(service.Message{Op: service.OpSpec, Capture: service.System, Spec: spec})

	// Closed: without a broker it waits; open: it passes.
	system.close()
	held = p.dial(direct)
	poll(t, "it to wait", func() bool { return s.status(t).Captures[0].Waiting == 1 })
	system = s.client(t, 0)
	open := *spec
	open.Open = true
	system.serve(service.System, &open)
	system.attempt()
	if st := s.status(t); st.Policy != "open" && st.Ownership != "none" || !st.Serving || !st.Enabled {
		t.Errorf("status %+v", st)
	}
	system.close()
	expect(t, held, "direct")
	expect(t, p.dial(direct), "direct")
}

func TestRelease(t *testing.T) {
	o := newOptions(t)
	s, direct := start(t, o), listenDirect(t)
	c := s.client(t, alice)
	id, p := c.capture(t, alice)
	c.serve(id, judge())
	system := s.client(t, 0)
	system.serve(service.System, &capture.Spec{Local: true, Users: []capture.UIDRange{{Lo: bob, Hi: bob}}})
	system.must(service.Message{Op: service.OpConnector, Enable: new(true)})
	q := start1(t, bob)
	hows := []<-chan string{p.dial(direct), q.dial(direct)}
	c.attempt()
	system.attempt()
	c.fails(service.CodeForbidden, service.Message{Op: service.OpRelease})
	if err := Release(o); err != nil {
		t.Fatal(err)
	}
	for _, how := range append(hows, p.dial(direct), q.dial(direct)) {
		expect(t, how, "direct")
	}
	for _, served := range []*conn{c, system} {
		if m := await(t, "word of the end", served.others); m.Error == nil || m.Error.Code != service.CodeReleased {
			t.Errorf("told: %+v", m)
		}
	}
	if st := s.status(t); len(st.Captures) != 0 || st.Enabled {
		t.Errorf("status %+v", st)
	}
	// It is forgotten for good, though the program is in its cgroup still.
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	s = start(t, o)
	expect(t, p.dial(direct), "direct")
	if st := s.status(t); len(st.Captures) != 0 || st.Enabled {
		t.Errorf("status %+v", st)
	}
}
