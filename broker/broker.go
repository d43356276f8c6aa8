package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"sshbroker/broker/audit"
	"sshbroker/broker/eventlog"
	"sshbroker/broker/relay"
	"sshbroker/capture"
	"sshbroker/filter"
	"sshbroker/profiles"
)

// Opener opens streams on transports; *profiles.Pool is one.
type Opener interface {
	Open(ctx context.Context, p *profiles.Profile, dst profiles.Destination, ask profiles.Prompter) (profiles.Stream, error)
}

// Recorder takes audit records; *audit.Log is one. Ready says whether a record
// could be written, where records are required.
type Recorder interface {
	Record(audit.Record)
	Ready() error
}

// Meter measures flows; *metrics.Metrics is one. It returns at once, and keeps nothing
// that it is given.
type Meter interface {
	Decided(took time.Duration)               // since the flow arrived
	Opened(action string, took time.Duration) // since the decision, where the way was opened
	Ended(r *audit.Record)                    // once for each flow
}

// Names knows what names a capture's programs have resolved to which addresses.
type Names interface {
	Lookup(netip.Addr) []string // most recent first
	// Asked reports whether name was asked for in this capture and led to the address;
	// a name may also be known from the hosts file alone.
	Asked(a netip.Addr, name string) bool
	IsPool(netip.Addr) bool // made up by us, known or not
	// Hold keeps a made-up address from standing for another name until release.
	Hold(netip.Addr) (release func())
}

// Config is what a Broker is made of.
type Config struct {
	Tunnels Opener       // required
	Audit   Recorder     // required
	Log     *slog.Logger // required

	// Events is told of decisions and of how flows end; nil: nothing is.
	Events *eventlog.Log

	// Meter is told how flows fare; nil: nothing is.
	Meter Meter

	// MaxFlows is how many flows may live at once; more are refused. 0: no limit.
	MaxFlows int
	// MaxUserFlows is how many of them may be of one uid. 0: no limit.
	MaxUserFlows int

	// Ask returns who is asked what a flow's way out needs to know, nil where nobody can
	// be asked now; nil: nobody ever.
	Ask func() profiles.Prompter

	// Dial opens a connection in clear; nil: the net package's dialer.
	Dial func(ctx context.Context, address string) (*net.TCPConn, error)

	// Resolve looks up the names that programs say to listeners; nil: the system's
	// resolver does.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)

	// Failpoint is called at the named states of every flow; tests kill the broker
	// there. nil: nothing happens.
	Failpoint func(state string)
}

// The states of a flow at which Failpoint is called.
const (
	StateArrived  = "arrived"  // the SYN was read, nothing is decided
	StateDecided  = "decided"  // before anything was opened
	StateOpened   = "opened"   // the far end is open, the program still waits
	StateAdmitted = "admitted" // the program's handshake is finished
	StateCarried  = "carried"  // both directions have ended, nothing is recorded
)

// States lists them all, in the order in which a tunneled flow passes them.
var States = []string{StateArrived, StateDecided, StateOpened, StateAdmitted, StateCarried}

// ErrStopped is the cause by which flows end that outlive the broker's drain.
var ErrStopped = errors.New("the broker stops")

// ErrCut is the cause by which a flow ends that Cut has ended, ErrNoFlow says that there
// is none to be cut.
var (
	ErrCut    = errors.New("closed by command")
	ErrNoFlow = errors.New("no such flow is carried")
)

// Policy is one generation of rules and profiles. It is immutable.
type Policy struct {
	Generation int
	Since      time.Time                    // when Generation came into force
	Rules      *filter.Set                  // required; as far as they are in force where the host is
	Profiles   map[string]*profiles.Profile // by id
	Defaults   *profiles.Profile            // for rules that name no profile

	// Logins are the user names of profiles that a person has chosen, by profile id.
	Logins map[string]string
	// NoRules says that nobody has written any: only captures that were allowed to are
	// decided by Rules then. What a program asks us for is refused.
	NoRules bool
	// UserBrokers has tunneled flows carried by their owners' own brokers, where the
	// source of the capture knows of one.
	UserBrokers bool
}

// Capture is a set of programs whose flows are served together.
type Capture struct {
	ID      string
	Backend string
	Source  capture.Source
	Names   Names // nil: no names are known

	// NamesOf knows the names of one uid's programs, in place of Names where a capture
	// has flows of several.
	NamesOf func(uid uint32) Names

	// Policy is the capture's own at the moment, untouched by reloads; nil: the broker's
	// current one. A rule of the current one that blocks counts all the same. It is called
	// for every flow.
	Policy func() *Policy

	Localhost bool // connections to the capture's own addresses are judged by the rules
	User      string
	Groups    []string
	// Account finds the name and the groups of a flow's owner, in place of User and
	// Groups where a capture has flows of several. It is called for every flow.
	Account func(uid uint32) (user string, groups []string)

	// WayOut says that the kernel has a way of its own to everywhere, so that what goes
	// in clear is left to it. Else a flow that falls back to plain is relayed by us.
	WayOut bool

	// FindOrigin says whether the process behind a flow is worth looking for where no
	// rule asks for it and it is for the record alone; nil: it is.
	FindOrigin func() bool

	// Event is told what happens, for a person who watches; nil: nobody does.
	Event func(text string)
}

// Broker serves captures. Its methods are safe for concurrent use.
type Broker struct {
	Config
	policy atomic.Pointer[Policy]
	relay  relay.Relay
	serial atomic.Uint64

	searches  chan struct{} // slots for searches for processes
	searching atomic.Int64  // under way, or waiting for a slot

	limited     atomic.Uint64 // flows refused for MaxFlows
	limitedUser atomic.Uint64 // for MaxUserFlows

	mu     sync.Mutex
	moved  Moved // by flows that have ended
	flows  map[uint64]*flow
	users  map[uint32]*user
	inUse  map[int]*GenerationInfo // by live flows
	shared time.Time               // when there were flows of several uids last
	wg     sync.WaitGroup
	cut    context.CancelCauseFunc
	life   context.Context
}

// maxSearches bounds the searches through /proc at one time.
const maxSearches = 2

// New returns a broker that blocks everything until SetPolicy is called.
func New(c Config) *Broker {
	b := &Broker{Config: c, flows: map[uint64]*flow{}, users: map[uint32]*user{}, inUse: map[int]*GenerationInfo{}, searches: make(chan struct{}, maxSearches)}
	if b.Dial == nil {
		b.Dial = dialTCP
	}
	if b.Resolve == nil {
		b.Resolve = resolve
	}
	if b.Failpoint == nil {
		b.Failpoint = func(string) {}
	}
	b.life, b.cut = context.WithCancelCause(context.Background())
	return b
}

// SetPolicy brings a new generation into force for every flow that arrives from now
// on. Flows that live keep the one they began with.
func (b *Broker) SetPolicy(p *Policy) { b.policy.Store(p) }

// Policy is the generation in force; nil before the first.
func (b *Broker) Policy() *Policy { return b.policy.Load() }

// Run serves a capture until its source is closed or ctx ends. Flows that live then
// go on; Drain waits for them.
func (b *Broker) Run(ctx context.Context, c *Capture) error {
	const shortest, longest = 5 * time.Millisecond, time.Second
	pause := shortest
	for {
		a, err := c.Source.Next(ctx)
		switch {
		case err == nil:
			pause = shortest
			b.wg.Go(func() { b.serve(b.life, c, a) })
			continue
		case ctx.Err() != nil:
			return nil // asked to stop
		case errors.Is(err, capture.ErrClosed):
			return err
		}
		b.Log.Warn("capture", "capture", c.ID, "error", err, "pause", pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, longest)
	}
}

// Serve serves one attempt of a capture that has no source. ended is closed when its flow
// has ended and is recorded; Drain waits for it.
func (b *Broker) Serve(c *Capture, a capture.Attempt) (ended <-chan struct{}) {
	done := make(chan struct{})
	b.wg.Go(func() {
		defer close(done)
		b.serve(b.life, c, a)
	})
	return done
}

// Drain waits until every flow has ended. When ctx ends first, the flows that are
// left are reset.
func (b *Broker) Drain(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { b.cut(ErrStopped) })
	defer stop()
	b.wg.Wait()
	b.relay.Close()
}

// FlowInfo is a live flow, for lists.
type FlowInfo struct {
	ID       uint64
	Capture  string
	Record   audit.Record // as far as it is known
	By       By
	State    string
	Way      uint64 // the pool's ID of the way out; 0 for none
	Since    time.Time
	Up, Down int64 // bytes
}

// Flows lists the live flows, oldest first.
func (b *Broker) Flows() []FlowInfo {
	b.mu.Lock()
	list := make([]FlowInfo, 0, len(b.flows))
	for _, f := range b.flows {
		list = append(list, f.info())
	}
	b.mu.Unlock()
	sort.Slice(list, func(i, j int) bool { return list[i].ID < list[j].ID })
	return list
}

// GenerationInfo is a generation that live flows began with.
type GenerationInfo struct {
	Generation int
	Since      time.Time
	Flows      int
}

// Generations lists those of live flows, the oldest first.
func (b *Broker) Generations() []GenerationInfo {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []GenerationInfo
	for _, g := range b.inUse {
		list = append(list, *g)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Generation < list[j].Generation })
	return list
}

// use counts n more flows of p's generation. The caller holds mu.
func (b *Broker) use(p *Policy, n int) {
	if p == nil {
		return
	}
	g := b.inUse[p.Generation]
	if g == nil {
		g = &GenerationInfo{Generation: p.Generation, Since: p.Since}
		b.inUse[p.Generation] = g
	}
	if g.Flows += n; g.Flows == 0 {
		delete(b.inUse, p.Generation)
	}
}

// Cut resets a flow that is being carried, at both ends.
func (b *Broker) Cut(id uint64) error {
	b.mu.Lock()
	f := b.flows[id]
	b.mu.Unlock()
	var end context.CancelCauseFunc
	if f != nil {
		f.mu.Lock()
		end = f.end
		f.mu.Unlock()
	}
	if end == nil {
		return fmt.Errorf("channel %d: %w", id, ErrNoFlow)
	}
	end(ErrCut)
	return nil
}

// Moved counts bytes: up from programs, down to them.
type Moved struct{ Up, Down int64 }

// Totals counts flows.
type Totals struct {
	Live, All int64
	States    map[string]int // of the live ones, by state
	Moved     Moved          // by all of them, those that live too; never less than before

	// Refused for Config.MaxFlows, and for MaxUserFlows.
	Limited, LimitedUser uint64
}

// Totals returns how many flows live and how many there have been, and what they have
// moved. It costs a look at each that lives.
func (b *Broker) Totals() Totals {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := Totals{Live: int64(len(b.flows)), All: int64(b.serial.Load()), States: make(map[string]int, len(States)),
		Moved: b.moved, Limited: b.limited.Load(), LimitedUser: b.limitedUser.Load()}
	for _, f := range b.flows {
		t.Moved.Up += f.count.Up.Load()
		t.Moved.Down += f.count.Down.Load()
		f.mu.Lock()
		t.States[cmp.Or(f.state, StateArrived)]++
		f.mu.Unlock()
	}
	return t
}

// live is how many flows live.
func (b *Broker) live() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.flows)
}

func dialTCP(ctx context.Context, address string) (*net.TCPConn, error) {
	var d net.Dialer
	d.SetMultipathTCP(false)
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}
