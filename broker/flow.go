package broker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"sshbroker/broker/audit"
	"sshbroker/broker/eventlog"
	"sshbroker/broker/relay"
	"sshbroker/capture"
	"sshbroker/filter"
	"sshbroker/profiles"
)

// flow is one attempt on its way. It is its goroutine's own, but for what mu guards
// and the counters.
type flow struct {
	*Broker
	c      *Capture
	a      capture.Attempt
	id     uint64
	at     capture.Flow
	policy *Policy
	names  Names
	user   string // and groups: the owner
	groups []string
	count  relay.Counters

	requested *Request // nil: it was caught
	lookErr   error    // of its name

	release func()        // of the made-up address
	turned  func()        // ends its turn
	origin  chan struct{} // closed when the process behind it was looked for

	mu    sync.Mutex // guards rec, state and way, which lists read
	rec   audit.Record
	state string
	way   uint64
	end   context.CancelCauseFunc // while it is carried
}

// originPatience is how long a refusal waits for the process to be found, while no more
// than fewSearches are under way.
const (
	originPatience = 5 * time.Millisecond
	fewSearches    = 8
)

// serve is the life of one flow.
func (b *Broker) serve(ctx context.Context, c *Capture, a capture.Attempt) {
	f := b.arrive(c, a)
	defer f.record()
	f.turned = b.turn(ctx, f.at.UID)
	defer f.turned()

	unrecorded := f.Audit.Ready()
	switch {
	case f.MaxFlows > 0 && f.live() > f.MaxFlows:
		f.limited.Add(1)
		f.refuse(audit.Limit, fmt.Errorf("%d flows are open already", f.MaxFlows))
		return
	case f.MaxUserFlows > 0 && f.ofUser(f.at.UID) > f.MaxUserFlows:
		f.limitedUser.Add(1)
		f.refuse(audit.Limit, fmt.Errorf("%d flows of uid %d are open already", f.MaxUserFlows, f.at.UID))
		return
	case unrecorded != nil:
		f.refuse(audit.AuditRequired, unrecorded)
		return
	case f.order() != nil:
		f.obey(ctx)
		return
	case f.requested != nil:
		f.comply(ctx, f.requested)
		return
	case f.at.Local && !c.Localhost:
		f.mu.Lock()
		f.rec.Action = filter.Direct.String()
		f.mu.Unlock()
		f.direct(ctx, audit.Direct)
		return
	}

	f.judge(ctx)
}

// judge has the rules decide, and does what they say.
func (f *flow) judge(ctx context.Context) {
	d, err := f.decide()
	if err != nil {
		f.refuse(tunnelReason(err), err)
		return
	}
	f.tell(eventlog.ConnectorFilterRule)
	f.decided()

	if d.Action != filter.Block && f.names.IsPool(f.at.Dst.Addr()) && d.Name == "" {
		// Neither way leads anywhere: such an address means nothing but its name.
		f.refuse(audit.BadName, fmt.Errorf("%v was made up for a name that is not known any more", f.at.Dst.Addr()))
		return
	}
	switch d.Action {
	case filter.Direct:
		f.direct(ctx, audit.Direct)
	case filter.Tunnel:
		f.tunnel(ctx, d)
	case filter.Block:
		f.refuseAs(capture.Refused, audit.Blocked, nil)
	default:
		f.refuse(audit.NotBuilt, fmt.Errorf("action %v is not built yet", d.Action))
	}
}

// arrive begins the record.
func (b *Broker) arrive(c *Capture, a capture.Attempt) *flow {
	f := &flow{Broker: b, c: c, a: a, at: a.Flow(), id: b.serial.Add(1), origin: make(chan struct{})}
	f.names, f.user, f.groups = c.Names, c.User, c.Groups
	if c.NamesOf != nil {
		f.names = c.NamesOf(f.at.UID)
	}
	if f.names == nil {
		f.names = nameless{}
	}
	f.requests()
	if c.Account != nil {
		f.user, f.groups = c.Account(f.at.UID)
	}
	f.release = f.names.Hold(f.at.Dst.Addr())
	policy := b.Policy
	if c.Policy != nil {
		policy = c.Policy
	}
	f.policy = policy()
	f.rec = audit.Record{
		Time: f.at.Arrived, Flow: f.id, Capture: c.ID, Backend: c.Backend,
		UID: f.at.UID, User: f.user, Groups: f.groups, Src: f.at.Src, Dst: f.at.Dst,
		Names: f.names.Lookup(f.at.Dst.Addr()),
	}
	if f.policy != nil {
		f.rec.Generation = uint64(f.policy.Generation)
	}
	b.mu.Lock()
	b.flows[f.id] = f
	b.join(f.at.UID)
	b.use(f.policy, 1)
	b.mu.Unlock()
	if c.FindOrigin == nil || c.FindOrigin() {
		go f.findOrigin()
	} else {
		close(f.origin)
	}
	f.enter(StateArrived)
	return f
}

// findOrigin looks for the process beside everything else, as it may take longer
// than opening the way. Few searches run at once: they cost CPU that flows need.
func (f *flow) findOrigin() {
	f.searching.Add(1)
	defer f.searching.Add(-1)
	defer close(f.origin)
	f.searches <- struct{}{}
	o := f.at.Origin()
	<-f.searches
	f.found(o)
}

func (f *flow) found(o capture.Origin) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rec.PID, f.rec.Program = o.PID, o.Exe
}

// decide asks the rules. No rules at all block. An error means that a rule asked for
// the program and that we could not look.
func (f *flow) decide() (filter.Decision, error) {
	var blind error
	q := filter.Flow{
		Names: f.rec.Names, Addr: f.at.Dst.Addr(), Port: f.at.Dst.Port(), User: f.user, Groups: f.groups,
		Program: func() string {
			o := f.at.Origin()
			blind = o.Err
			f.found(o)
			return o.Exe
		},
	}
	var d filter.Decision
	if f.policy != nil {
		d = f.policy.Rules.Decide(&q)
	}
	if current := f.Policy(); f.c.Policy != nil && current != nil {
		// A rule set of the capture's own does not open what the common one blocks.
		if common := current.Rules.Decide(&q); common.Action == filter.Block && common.Rule != nil {
			d = common
		}
	}
	if blind != nil {
		return filter.Decision{}, fmt.Errorf("program behind the flow: %w", blind)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rec.Action, f.rec.Name = d.Action.String(), d.Name
	f.rec.Decision = time.Since(f.at.Arrived)
	if d.Rule != nil {
		f.rec.Rule, f.rec.RuleSource = d.Rule.Number, d.Rule.Source
	}
	return d, nil
}

// tunnel opens the channel first and lets the program in then.
func (f *flow) tunnel(ctx context.Context, d filter.Decision) {
	if d.Name != "" && !f.names.Asked(f.at.Dst.Addr(), d.Name) {
		d.Name = "" // a name of the hosts file: the program gave the address
	}
	p, dst, err := f.policy.Way(d, f.at)
	if err != nil {
		f.refuse(audit.ProfileError, err)
		return
	}
	fallback := d.Rule != nil && d.Rule.FallbackToPlain
	if f.handOver(ctx, d, p, dst, fallback) {
		return
	}
	f.through(ctx, p, dst, fallback)
}

// through opens a channel on p's transport and has it carry the flow.
func (f *flow) through(ctx context.Context, p *profiles.Profile, dst profiles.Destination, fallback bool) {
	f.leadsTo(p, dst)
	f.mu.Lock()
	dst.Flow, dst.Program = f.rec.FlowID, f.rec.Program
	f.mu.Unlock()
	wanted, done := f.whileWanted(ctx)
	var ask profiles.Prompter
	if f.Ask != nil {
		ask = f.Ask()
	}
	stream, err := f.Tunnels.Open(wanted, p, dst, ask)
	unwanted := context.Cause(wanted) == capture.ErrAbandoned
	done()
	switch {
	case err != nil && unwanted:
		f.forget()
		return
	case err != nil && fallback && mayFallBack(err):
		f.fallBack(ctx, tunnelReason(err), err)
		return
	case err != nil:
		f.refuse(tunnelReason(err), err)
		return
	}
	f.carriedBy(stream, p)
	f.opened()
	f.tell(eventlog.TunnelOpened)
	conn, err := f.a.Admit(ctx)
	if err != nil {
		_ = stream.Reset()
		_ = stream.Close()
		f.gaveUp(err)
		return
	}
	f.enter(StateAdmitted)
	f.carry(ctx, conn, stream, audit.Carried)
}

// leadsTo records the way.
func (f *flow) leadsTo(p *profiles.Profile, dst profiles.Destination) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rec.Profile, f.rec.Server = p.ID, account(p, profiles.Server{Host: p.Host, Port: p.Port})
	f.rec.Target = dst.String()
	if p.Protocol == profiles.TLS {
		f.rec.FlowID = rand.Text()
	}
}

// carriedBy records which of the profile's servers it is, and the transport.
func (f *flow) carriedBy(s profiles.Stream, p *profiles.Profile) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if pooled, ok := s.(interface {
		Way() uint64
		Server() profiles.Server
	}); ok {
		f.way, f.rec.Server = pooled.Way(), account(p, pooled.Server())
	}
}

func account(p *profiles.Profile, s profiles.Server) string {
	if p.User == "" {
		return s.String()
	}
	return p.User + "@" + s.String()
}

// fallBack carries the flow in clear after its tunnel has failed.
func (f *flow) fallBack(ctx context.Context, reason audit.Reason, err error) {
	f.note(fmt.Errorf("tunnel failed (%s), carried in clear: %w", reason, err))
	f.tell(eventlog.TunnelFallback)
	f.direct(ctx, audit.Fallback)
}

// Way finds the profile and the destination that a decision leads to.
func (p *Policy) Way(d filter.Decision, at capture.Flow) (*profiles.Profile, profiles.Destination, error) {
	asked := d.Name
	if asked == "" {
		asked = at.Dst.Addr().String()
	}
	dst := profiles.Destination{Host: asked, Port: at.Dst.Port(), Origin: at.Src}
	if r := d.Rule; r != nil {
		if r.Destination != "" {
			dst.Host = r.Destination
		}
		if r.DestinationPort != 0 {
			dst.Port = r.DestinationPort
		}
	}
	profile := p.profile(d.Rule)
	if profile == nil {
		return nil, dst, fmt.Errorf("no profile for this flow: %w", profiles.ErrSetup)
	}
	user, fromApp := "", false
	if r := d.Rule; r != nil {
		var err error
		if user, err = username(r); err != nil {
			return nil, dst, fmt.Errorf("%w: %w", profiles.ErrSetup, err)
		}
		fromApp = r.HostnameFromApp
	}
	return profile.For(asked, user, fromApp), dst, nil
}

// profile finds the profile that a rule leads to, nil where there is none. No rule is
// that of the default action.
func (p *Policy) profile(r *filter.Rule) *profiles.Profile {
	if r == nil || r.Profile == "" {
		return p.Defaults
	}
	return p.Profiles[r.Profile]
}

// direct carries the flow in clear: by the kernel where it can, else by us. The kernel
// has no way to an address that was made up.
func (f *flow) direct(ctx context.Context, reason audit.Reason) {
	if (f.c.WayOut || reason != audit.Fallback) && !f.names.IsPool(f.at.Dst.Addr()) && f.a.Pass() == nil {
		if reason == audit.Direct {
			reason = audit.Passed
		}
		f.finish(reason, nil)
		return
	}
	if f.requested != nil {
		if why, err := f.plainly(); err != nil {
			f.refuse(why, err)
			return
		}
	}
	wanted, done := f.whileWanted(ctx)
	far, err := f.Dial(wanted, f.plainAddress())
	unwanted := context.Cause(wanted) == capture.ErrAbandoned
	done()
	switch {
	case err != nil && unwanted:
		f.forget()
		return
	case err != nil:
		refusal, why := plainRefusal(err)
		f.refuseAs(refusal, why, err)
		return
	}
	f.opened()
	conn, err := f.a.Admit(ctx)
	if err != nil {
		_ = far.SetLinger(0)
		far.Close()
		f.gaveUp(err)
		return
	}
	f.enter(StateAdmitted)
	f.carry(ctx, conn, relay.TCP{TCPConn: far}, reason)
}

// plainAddress is where a flow goes in clear. An address of the capture's own means
// the host's loopback; one that we made up means nothing but its name.
func (f *flow) plainAddress() string {
	addr, port := f.at.Dst.Addr(), f.at.Dst.Port()
	switch {
	case f.at.Local && !addr.IsLoopback() && addr.Is4():
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case f.at.Local && !addr.IsLoopback():
		addr = netip.IPv6Loopback()
	case (f.names.IsPool(addr) || f.requested != nil && addr == unknownAddress) && len(f.rec.Names) > 0:
		return hostPort(f.rec.Names[0], port)
	}
	return netip.AddrPortFrom(addr, port).String()
}

// carry moves the bytes until both directions have ended.
func (f *flow) carry(ctx context.Context, conn *capture.Conn, far relay.Stream, reason audit.Reason) {
	f.event("open")
	f.turned()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	f.mu.Lock()
	f.end = end
	f.mu.Unlock()
	res := f.relay.Pipe(ctx, conn.TCPConn, far, &f.count)
	f.enter(StateCarried)
	var err error
	switch {
	case errors.Is(context.Cause(ctx), ErrStopped):
		reason, err = audit.Shutdown, ErrStopped
	case errors.Is(context.Cause(ctx), ErrCut):
		err = ErrCut
	case errors.Is(res.Down.Err, profiles.ErrLost), errors.Is(res.Down.Err, profiles.ErrEnded):
		err = res.Down.Err
	}
	f.mu.Lock()
	f.rec.BytesUp, f.rec.BytesDown = res.Up.Bytes, res.Down.Bytes
	f.rec.UpEnd, f.rec.DownEnd = res.Up.End.String(), res.Down.End.String()
	f.mu.Unlock()
	f.finish(reason, err)
}

// refuse lets connect() fail as reason deserves.
func (f *flow) refuse(reason audit.Reason, err error) {
	refusal := capture.Unreachable
	if reason == audit.RefusedByDestination {
		refusal = capture.Refused
	}
	f.refuseAs(refusal, reason, err)
}

func (f *flow) refuseAs(r capture.Refusal, reason audit.Reason, err error) {
	if f.searching.Load() <= fewSearches { // in a rush the answer counts more
		select {
		case <-f.origin: // a program that is refused may end at once, and is unknown then
		case <-time.After(originPatience):
		}
	}
	f.answer(r, reason, err)
	f.mu.Lock()
	if f.rec.Action != "" {
		f.rec.Open = time.Since(f.at.Arrived) - f.rec.Decision
	}
	f.mu.Unlock()
	f.finish(reason, err)
	f.event("refused, " + connectError(r))
}

// connectError is what connect() reports of a refusal.
func connectError(r capture.Refusal) string {
	switch r {
	case capture.Refused:
		return "ECONNREFUSED"
	case capture.Silent:
		return "no answer"
	default:
		return "EHOSTUNREACH"
	}
}

// wantedCheck is how often a program is looked after that has waited so long.
const wantedCheck = time.Second

// whileWanted returns a context that ends, caused by capture.ErrAbandoned, when the
// program has given up, for work that takes long. The caller calls done.
func (f *flow) whileWanted(ctx context.Context) (wanted context.Context, done func()) {
	w, ok := f.a.(capture.Waiter)
	if !ok {
		return ctx, func() {}
	}
	wanted, cancel := context.WithCancelCause(ctx)
	var look func()
	look = func() {
		switch {
		case wanted.Err() != nil:
		case w.Waits():
			time.AfterFunc(wantedCheck, look)
		default:
			cancel(capture.ErrAbandoned)
		}
	}
	first := time.AfterFunc(wantedCheck, look)
	return wanted, func() { first.Stop(); cancel(nil) }
}

// forget ends a flow whose program gave up before there was anything to be let into.
func (f *flow) forget() {
	f.answer(capture.Silent, audit.Abandoned, nil)
	f.finish(audit.Abandoned, nil)
}

// gaveUp ends a flow whose far end was open and whose program did not come.
func (f *flow) gaveUp(err error) {
	switch {
	case errors.Is(err, capture.ErrNoDescriptors):
		f.refuse(audit.NoDescriptors, err)
	case errors.Is(err, capture.ErrAbandoned):
		f.finish(audit.Abandoned, nil)
	case errors.Is(context.Cause(f.life), ErrStopped), errors.Is(err, capture.ErrClosed):
		f.finish(audit.Shutdown, err)
	default:
		f.finish(audit.Internal, err)
	}
}

func (f *flow) decided() {
	if f.Meter != nil {
		f.Meter.Decided(f.rec.Decision)
	}
	f.enter(StateDecided)
}

func (f *flow) opened() {
	f.mu.Lock()
	f.rec.Open = time.Since(f.at.Arrived) - f.rec.Decision
	f.mu.Unlock()
	if f.Meter != nil {
		f.Meter.Opened(f.rec.Action, f.rec.Open)
	}
	f.enter(StateOpened)
}

func (f *flow) enter(state string) {
	f.mu.Lock()
	f.state = state
	f.mu.Unlock()
	f.Failpoint(state)
}

// note keeps an error that does not end the flow.
func (f *flow) note(err error) {
	f.mu.Lock()
	f.rec.Error = err.Error()
	f.mu.Unlock()
	f.Log.Warn("fallback to plain", "flow", f.rec.Flow, "dst", f.at.Dst, "error", err)
}

func (f *flow) finish(reason audit.Reason, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rec.Reason = reason
	if err != nil {
		if f.rec.Error != "" {
			f.rec.Error += "; "
		}
		f.rec.Error += err.Error()
	}
}

// record writes the flow's one record and forgets it.
func (f *flow) record() {
	<-f.origin
	f.release()
	f.mu.Lock()
	f.rec.Duration = time.Since(f.at.Arrived)
	rec := f.rec
	f.mu.Unlock()
	f.Audit.Record(rec)
	f.tell(endOf(&rec))
	f.event("ended, " + rec.Reason.String())
	if f.Meter != nil {
		f.Meter.Ended(&rec)
	}
	f.Broker.mu.Lock()
	delete(f.flows, f.id)
	f.moved.Up += f.count.Up.Load()
	f.moved.Down += f.count.Down.Load()
	f.part(f.at.UID)
	f.use(f.policy, -1)
	f.Broker.mu.Unlock()
}

func (f *flow) event(what string) {
	if f.c.Event == nil {
		return
	}
	f.mu.Lock()
	r := f.rec
	f.mu.Unlock()
	to := r.Dst.String()
	if r.Name != "" {
		to = r.Name + " (" + to + ")"
	}
	text := fmt.Sprintf("%s to %s: %s", r.Action, to, what)
	if r.Error != "" {
		text += ": " + r.Error
	}
	f.c.Event(text)
}

func (f *flow) info() FlowInfo {
	f.mu.Lock()
	defer f.mu.Unlock()
	return FlowInfo{ID: f.id, Capture: f.c.ID, Record: f.rec, By: f.by(), State: f.state, Way: f.way, Since: f.at.Arrived,
		Up: f.count.Up.Load(), Down: f.count.Down.Load()}
}

// tunnelReason is the one place where the errors of tunnels become reasons.
func tunnelReason(err error) audit.Reason {
	for _, class := range []struct {
		err    error
		reason audit.Reason
	}{
		{profiles.ErrHostKey, audit.HostKey}, // before all others: it must never be hidden
		{syscall.EMFILE, audit.NoDescriptors},
		{syscall.ENFILE, audit.NoDescriptors},
		{profiles.ErrAuth, audit.AuthFailed},
		{profiles.ErrSetup, audit.ProfileError},
		{profiles.ErrRefused, audit.RefusedByDestination},
		{profiles.ErrProhibited, audit.Prohibited},
		{profiles.ErrNameNotFound, audit.NameNotFound},
		{profiles.ErrConnect, audit.ServerUnreachable},
		{profiles.ErrLost, audit.TransportLost},
		{profiles.ErrOpen, audit.Unreachable},
		{ErrStopped, audit.Shutdown},
		{context.Canceled, audit.Shutdown},
		{context.DeadlineExceeded, audit.Unreachable},
	} {
		if errors.Is(err, class.err) {
			return class.reason
		}
	}
	return audit.Internal
}

// mayFallBack says whether a rule's fallback-to-plain covers a failure. It never
// covers a host key that was refused, nor a destination that was reached and said no,
// nor what we are short of ourselves: a program could see to that.
func mayFallBack(err error) bool {
	for _, never := range []error{profiles.ErrHostKey, profiles.ErrRefused, syscall.EMFILE, syscall.ENFILE} {
		if errors.Is(err, never) {
			return false
		}
	}
	for _, class := range []error{profiles.ErrConnect, profiles.ErrAuth, profiles.ErrLost,
		profiles.ErrProhibited, profiles.ErrNameNotFound, profiles.ErrOpen} {
		if errors.Is(err, class) {
			return true
		}
	}
	return false
}

// plainRefusal says how connect() fails when dialing in clear did.
func plainRefusal(err error) (capture.Refusal, audit.Reason) {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return capture.Refused, audit.RefusedByDestination
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return capture.Unreachable, audit.NoDescriptors
	case errors.Is(err, syscall.ETIMEDOUT):
		return capture.Silent, audit.Unreachable
	default:
		return capture.Unreachable, audit.Unreachable
	}
}

func hostPort(host string, port uint16) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}
