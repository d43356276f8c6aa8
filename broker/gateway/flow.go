package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"sshbroker/broker/audit"
	"sshbroker/broker/gateway/dial"
	"sshbroker/broker/gateway/generation"
	"sshbroker/broker/gateway/policy"
	"sshbroker/broker/relay"
	"sshbroker/profiles/socket"
)

// errGone is a client that has given a flow up before it was open.
var errGone = errors.New("the client has gone")

// request is what a client asks for.
type request struct {
	host    string // "" with port 0: the target of the service
	port    uint16
	service string // "" to have one found
	flowID  string
	program string
}

// asker is the way back to who asked for a flow.
type asker interface {
	// accept says yes, and is the client's end of the flow from then on. why says what
	// a reset of that end is told to be for, "" for nothing.
	accept(why func() string) (relay.Stream, error)
	// refuse says no, and ends it.
	refuse(*refusal)
}

// flow is one connection that a client asks for.
type flow struct {
	request
	carrier string // "mux", "connect" or "raw"
	number  uint64
	client  *client
	begun   time.Time
	count   relay.Counters // up is from the backend, which relay has for its program

	// What was decided.
	service string
	route   policy.Route
	verdict policy.Verdict
	dialled netip.AddrPort

	decision, dial time.Duration

	ctx    context.Context // ended with end
	cancel context.CancelCauseFunc

	mu    sync.Mutex
	gen   *generation.Generation // that it was judged by last
	live  bool                   // it is carried: reloads judge it
	ended error                  // why we end it

	opened bool // it has a record of its opening

	moved   int64     // bytes, when the sweep looked last
	movedAt time.Time // when that was another number
	release func()    // of the limiter; nil: there was no room
}

// serveFlow is one flow, from before its request to its record. read reads the request;
// errServed is one that asks for no flow, and was answered.
func (c *client) serveFlow(carrier string, a asker, read func() (request, error)) {
	now := time.Now()
	f := &flow{carrier: carrier, number: c.g.flows.Add(1), client: c, begun: now, movedAt: now, gen: c.g.current.Load()}
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	defer f.cancel(nil)
	no := f.begin()
	if no == nil {
		var err error
		f.request, err = read()
		f.begun = time.Now()
		switch {
		case errors.Is(err, errServed):
			f.finish()
			return
		case err != nil:
			no = byRequest(err)
		}
	}
	var backend *net.TCPConn
	if no == nil {
		backend, no = f.open()
	}
	if no == nil {
		no = f.carry(backend, a)
	}
	if no != nil {
		f.refused(no)
		a.refuse(no)
	}
	f.finish()
}

var errServed = errors.New("served")

// begin takes room for the flow, before anything of it is read.
func (f *flow) begin() *refusal {
	c, g := f.client, f.client.g
	if err := c.begin(f); err != nil {
		return byEnd(err)
	}
	release, err := g.limiter.Flow(c.key)
	if err != nil {
		g.limited(err)
		return byLimit(err)
	}
	f.release = release
	if err := g.audit.Ready(); err != nil {
		return byAudit(err)
	}
	return nil
}

func (f *flow) finish() {
	f.client.finish(f)
	if f.release != nil {
		f.release()
	}
}

// open decides, and connects to the backend.
func (f *flow) open() (*net.TCPConn, *refusal) {
	g := f.client.g
	f.gen = g.current.Load()
	ctx, cancel := context.WithTimeout(f.ctx, f.gen.Config.Limits.Dial)
	defer cancel()
	// The end of the connection, too: later the stream tells of it.
	defer context.AfterFunc(f.client.ctx, func() { f.cancel(context.Cause(f.client.ctx)) })()
	no := f.decide(ctx)
	f.decision = time.Since(f.begun)
	if no != nil {
		return nil, no
	}
	started := time.Now()
	backend, err := dial.First(ctx, g.dialer, f.route.Addrs)
	f.dial = time.Since(started)
	g.metrics.Dialled(f.dial)
	switch {
	case err == nil:
	case f.ctx.Err() != nil:
		return nil, byEnd(context.Cause(f.ctx))
	default:
		return nil, byBackend(err)
	}
	socket.Tune(backend, 0, 0)
	if addr, ok := backend.RemoteAddr().(*net.TCPAddr); ok {
		f.dialled = addr.AddrPort()
		f.dialled = netip.AddrPortFrom(f.dialled.Addr().Unmap(), f.dialled.Port())
	}
	return backend, nil
}

// decide finds the service and where it leads. Where the client names none and the
// connection has none, services for which clients name the destination are asked in
// order, and the first that allows it carries it.
func (f *flow) decide(ctx context.Context) *refusal {
	services, no := f.services()
	if no != nil {
		return no
	}
	r := &once{resolver: f.client.g.resolver}
	var first *refusal
	for _, s := range services {
		route, verdict := s.Decide(ctx, &f.client.who, f.host, f.port, r)
		if verdict.Allowed() {
			f.service, f.route, f.verdict = s.Name, route, verdict
			if verdict.Permissive {
				f.client.g.say.Say(slog.LevelWarn, "permissive", "let through by a permissive service", "flow", f.number, "identity", f.client.who.Name(),
					"service", s.Name, "host", f.host, "port", f.port, "verdict", verdict)
			}
			return nil
		}
		if first == nil || first.reason == policy.NoRole.String() {
			f.service = s.Name
			first = byPolicy(verdict)
		}
	}
	if len(services) > 1 {
		f.service = "" // none of them
	}
	if ctx.Err() != nil && f.ctx.Err() != nil {
		return byEnd(context.Cause(f.ctx))
	}
	return first
}

// services are those to be asked.
func (f *flow) services() ([]*policy.Service, *refusal) {
	c := f.client
	name := f.request.service
	switch {
	case name == "":
		name = c.service
	case c.bound && name != c.service:
		return nil, noService(name)
	}
	if name == "" {
		if len(f.gen.Collections) == 0 {
			return nil, noService("for destinations of the client's")
		}
		return f.gen.Collections, nil
	}
	s := f.gen.Service(name)
	if s == nil {
		return nil, noService(name)
	}
	return []*policy.Service{s}, nil
}

// carry lets the flow in, moves its bytes and records its end.
func (f *flow) carry(backend *net.TCPConn, a asker) *refusal {
	c, g := f.client, f.client.g
	// The record before anything else: whatever becomes of us, it is there.
	err := g.audit.RecordGatewayNow(f.record(audit.GatewayOpen, audit.Carried.String()))
	f.opened = true
	if err != nil && g.audit.Required() {
		resetBackend(backend)
		return byAudit(err)
	}
	if err := f.enter(); err != nil {
		resetBackend(backend)
		return byEnd(err)
	}
	stream, err := a.accept(f.why)
	if err != nil {
		resetBackend(backend)
		return byEnd(errGone)
	}
	res := g.relay.Pipe(f.ctx, backend, stream, &f.count)
	lasted := time.Since(f.begun)
	if m, ok := stream.(*muxStream); ok {
		m.settle()
	}

	r := f.record(audit.GatewayClose, audit.Carried.String())
	if why := f.reason(); why != nil {
		r.Reason, r.Error = endWord(why), why.Error()
	}
	r.ClientEnd, r.BackendEnd = endOf(res.Down), endOf(res.Up)
	if r.Error == "" {
		r.Error = errorOf(res)
	}
	r.Duration, r.BytesUp, r.BytesDown = lasted, res.Down.Bytes, res.Up.Bytes
	g.audit.RecordGateway(r)
	g.metrics.Flow(f.service, r.Reason)
	g.metrics.Carried(f.carrier, lasted)
	g.log.Debug("flow ended", "flow", f.number, "identity", c.who.Name(), "service", f.service, "to", f.dialled, "reason", r.Reason)
	return nil
}

// enter makes the flow one that reloads judge, after a last look at the generation: one
// that came meanwhile did not find it.
func (f *flow) enter() error {
	for {
		gen := f.client.g.current.Load()
		f.mu.Lock()
		if f.ended != nil || f.ctx.Err() != nil {
			f.mu.Unlock()
			return context.Cause(f.ctx)
		}
		f.live = f.gen == gen
		live, err := f.live, f.adopt(gen)
		f.mu.Unlock()
		switch {
		case err != nil:
			f.end(err)
			return err
		case live:
			return nil
		}
	}
}

// judge holds a flow that is carried against a generation, and ends it where it may not
// go on.
func (f *flow) judge(gen *generation.Generation) {
	f.mu.Lock()
	var err error
	if f.live {
		err = f.adopt(gen)
	}
	f.mu.Unlock()
	if err != nil {
		f.end(err)
	}
}

// adopt judges the flow by a generation, which counts for it from then on, or says why it
// may not go on. Called with the lock.
func (f *flow) adopt(gen *generation.Generation) error {
	if f.gen == gen {
		return nil
	}
	err := f.allowed(gen)
	if err == nil {
		f.gen = gen
	}
	return err
}

// allowed decides once more, for the address that was dialled: names are not looked up
// again. Called with the lock.
func (f *flow) allowed(gen *generation.Generation) error {
	s := gen.Service(f.service)
	if s == nil {
		return errors.New("no longer allowed: the service " + f.service + " is gone")
	}
	route, verdict := s.Decide(f.ctx, &f.client.who, f.host, f.port, same(f.dialled.Addr()))
	switch {
	case !verdict.Allowed():
		return errors.New("no longer allowed: " + verdict.String())
	case !slices.Contains(route.Addrs, f.dialled):
		return errors.New("no longer allowed: the service leads to another address")
	}
	return nil
}

// end ends the flow at both ends. The first reason counts.
func (f *flow) end(why error) {
	f.mu.Lock()
	if f.ended == nil {
		f.ended = why
	}
	f.mu.Unlock()
	f.cancel(why)
}

// reason is why we ended it, nil where we did not.
func (f *flow) reason() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ended
}

// why is reason in words.
func (f *flow) why() string {
	if err := f.reason(); err != nil {
		return err.Error()
	}
	return ""
}

// refused records a flow that was not carried.
func (f *flow) refused(no *refusal) {
	g := f.client.g
	defer g.metrics.Flow(f.service, no.reason)
	// All else that a client is refused its rate bounds; these it could repeat until they
	// are all that the audit file holds.
	if no.reason == audit.Limit.String() && !g.say.Take("audit") {
		g.metrics.Unrecorded()
		return
	}
	event := audit.GatewayRefused
	if f.opened {
		event = audit.GatewayClose
	}
	r := f.record(event, no.reason)
	if no.rule != "" {
		r.Rule = no.rule
	}
	r.Error, r.Duration = no.text, time.Since(f.begun)
	if no.err != nil {
		r.Error = no.err.Error()
	}
	g.audit.RecordGateway(r)
	g.say.Say(slog.LevelInfo, "flow "+no.reason, "flow refused", "flow", f.number, "client", f.client.from, "identity", f.client.who.Name(),
		"service", f.service, "host", f.host, "port", f.port, "reason", no.reason, "rule", no.rule, "error", r.Error)
}

// record fills in what is known of the flow so far.
func (f *flow) record(event audit.GatewayEvent, reason string) audit.GatewayRecord {
	r := f.client.record(f)
	r.Event, r.Reason, r.Flow, r.FlowID, r.Program = event, reason, f.number, printable(f.flowID, maxFlowID), printable(f.program, maxProgram)
	f.mu.Lock()
	r.Generation = f.gen.Number
	f.mu.Unlock()
	r.Host, r.Port, r.Service = f.host, f.port, f.service
	r.Rule, r.Permissive = f.route.Rule, f.verdict.Permissive
	if r.Permissive {
		r.Error = f.verdict.String()
	}
	if f.verdict.Rule != "" {
		r.Rule = strings.Trim(r.Rule+", "+f.verdict.Rule, ", ")
	}
	if f.route.Host != "" {
		r.Target = net.JoinHostPort(f.route.Host, strconv.Itoa(int(f.route.Port)))
	}
	r.Dialled, r.Decision, r.Dial = f.dialled, f.decision, f.dial
	return r
}

// endOf and errorOf say how a relay has ended, in this side's words.
func endOf(d relay.Direction) string {
	switch d.End {
	case relay.ResetByProgram:
		return "reset-by-backend"
	case relay.ResetByFar:
		return "reset-by-client"
	}
	return d.End.String()
}

func errorOf(res relay.Result) string {
	for _, d := range []relay.Direction{res.Down, res.Up} {
		if d.Err != nil {
			return d.Err.Error()
		}
	}
	return ""
}

func resetBackend(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}
