package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"sshbroker/broker"
	"sshbroker/broker/audit"
	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/broker/eventlog"
	"sshbroker/broker/location"
	"sshbroker/broker/wake"
	"sshbroker/capture/service/client"
	"sshbroker/profiles"
	"sshbroker/profiles/creds"
)

// linger is how long a broker that was started on demand stays after its last client.
const linger = 10 * time.Second

// defaultDrain is how long flows may go on after a request to stop.
const defaultDrain = 5 * time.Second

// Options are what a daemon is made of.
type Options struct {
	Listener *control.Listener // required; the daemon closes it
	Config   config.Options    // where the configuration is
	OnDemand bool              // end when nobody needs us any more
	MaxFlows int               // live at once; 0: no limit

	// System makes this the broker of the whole host: it decides about every user's flows
	// as ssh-captured hands them over, and has no captures of single programs.
	System       bool
	Admins       int           // gid whose members may use the control socket of a system broker; 0 and less: none
	MaxUserFlows int           // live at once of one uid, in a system broker; 0: a quarter of MaxFlows
	Captured     client.Dialer // where ssh-captured is; the zero value finds it
	NoCarry      bool          // carry nothing for a broker of the whole host

	Audit     *audit.Log // required; the daemon closes it
	AuditPath string
	Tunnels   profiles.Connector
	Events    *eventlog.Log  // what the element logging asks for; nil: nothing. The caller closes it after Run
	Keys      *creds.Keyring // what Tunnels remembers of keys; nil: nothing
	Log       *slog.Logger
	Level     *slog.LevelVar // what Debug changes; may be nil
	Failure   func(state string)
	StateDir  string // for name maps; the listener's directory, of a system broker one that lasts
	Home      string
}

// Daemon is a running broker.
type Daemon struct {
	Options
	since   time.Time
	broker  *broker.Broker
	pool    *profiles.Pool
	server  *control.Server
	account account
	prompts *prompts // of flows

	captured captured
	watch    func(ctx context.Context, told func(place))
	ports    *ports
	system   *system // nil without Options.System

	ctx       context.Context // Run's: ends when the daemon is to stop
	stop      context.CancelCauseFunc
	drainTime time.Duration // guarded by mu

	reloading sync.Mutex // one reload at a time

	mu       sync.Mutex
	place    place // where the host is
	loaded   *loaded
	captures map[string]*served
	clients  int
	leave    *time.Timer                         // runs while nobody needs us
	kept     map[profiles.Key]context.CancelFunc // connect-on-startup; ends the keeping
	carrier  capturedSource                      // of what a system broker hands over; nil while there is none
	capWG    sync.WaitGroup
}

// errAsked is the cause by which a daemon ends that was asked to.
var errAsked = errors.New("asked to stop")

// New loads the configuration. What is wrong with it is the error, all of it.
func New(o Options) (*Daemon, error) {
	if o.System && o.MaxUserFlows == 0 {
		o.MaxUserFlows = (o.MaxFlows + 3) / 4
	}
	if !o.System {
		o.MaxUserFlows = 0 // all are of one
	}
	if o.Keys == nil {
		o.Keys = new(creds.Keyring)
	}
	o.Config.System = o.System
	o.Captured.Program = "ssh-broker " + control.Version()
	d := &Daemon{Options: o, since: time.Now(), captures: map[string]*served{}, kept: map[profiles.Key]context.CancelFunc{}, account: ownAccount(), drainTime: defaultDrain,
		captured: dialed(o.Captured), place: location.Look(hostFiles)}
	d.watch = d.watchPlace
	first, err := d.load()
	if answer := (*control.Error)(nil); errors.As(err, &answer) {
		return nil, err
	}
	if err != nil {
		return nil, &control.Error{Code: control.CodeConfig, Message: err.Error(),
			Hint: "see what is wrong with ssh-broker-ctl check-config"}
	}
	d.ctx, d.stop = context.WithCancelCause(context.Background())
	d.server = control.NewServer(o.Log)
	if o.System {
		if d.system, err = newSystem(d, first); err != nil {
			return nil, err
		}
		if err := d.admit(o.Admins); err != nil {
			d.system.close()
			return nil, err
		}
	}
	d.prompts = d.newPrompts()
	d.pool = profiles.NewPool(o.Tunnels, o.Log)
	d.pool.Observe = Observer(o.Events)
	d.broker = broker.New(broker.Config{Tunnels: d.pool, Audit: o.Audit, Log: o.Log, Events: o.Events, MaxFlows: o.MaxFlows, MaxUserFlows: o.MaxUserFlows, Ask: d.prompts.prompter, Failpoint: o.Failure})
	if d.ports, err = newPorts(d); err != nil {
		if d.system != nil {
			d.system.close()
		}
		return nil, err
	}
	d.install(first)
	d.logPlace()
	d.server.OnClients = d.countClients
	d.handle()
	return d, nil
}

// admit lets administrators use the control socket.
func (d *Daemon) admit(gid int) error {
	if gid <= 0 {
		return nil
	}
	d.server.Admins = gid
	if err := d.Listener.Share(gid); err != nil {
		return &control.Error{Code: control.CodeFailed, Message: fmt.Sprintf("control socket for administrators: %v", err),
			Hint: "the broker's account has to be a member of that group: SupplementaryGroups= in its unit"}
	}
	return nil
}

// Run serves until ctx ends or a client asks to stop. It then takes no new flows,
// lets live ones go on for the time that was asked for, and closes everything.
func (d *Daemon) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { d.stop(context.Cause(ctx)) })()
	d.sweep()
	d.tellStart()
	d.mu.Lock()
	d.reconsider()
	d.mu.Unlock()
	if d.system != nil {
		d.capWG.Go(func() { d.system.run(d.ctx) })
	} else if !d.NoCarry {
		d.capWG.Go(func() { d.carry(d.ctx) })
	}
	d.capWG.Go(func() { d.watchClock(d.ctx) })
	d.capWG.Go(func() { d.watch(d.ctx, d.moved) })
	d.capWG.Go(d.followPool)

	err := d.server.Serve(d.ctx, d.Listener)
	d.stop(err)
	d.Log.Info("stopping", "cause", context.Cause(d.ctx))
	d.tell(eventlog.BrokerStopping, ownPID(), textOf(context.Cause(d.ctx)))

	d.mu.Lock()
	drain := d.drainTime
	d.mu.Unlock()
	limit, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	d.ports.close()
	d.broker.Drain(limit)
	d.capWG.Wait()
	err = errors.Join(err, d.pool.Close(), d.Audit.Close())
	d.tell(eventlog.BrokerStopped, ownPID(), eventlog.ArgCount.Is(strconv.FormatInt(d.broker.Totals().All, 10)))
	return err
}

// aliveWithin is how long a server has to give a sign of life after the host may have
// slept: a round trip and some retransmissions.
const aliveWithin = 5 * time.Second

// watchClock has every transport show that it lives when the host may have slept: the
// server may have given it up meanwhile, or the network be another one.
func (d *Daemon) watchClock(ctx context.Context) {
	err := wake.Watch(ctx, func() {
		d.Log.Info("the clock was set, or the host has slept: asking servers for a sign of life")
		d.pool.Recheck(aliveWithin)
	})
	if err != nil {
		d.Log.Warn("whether the host has slept cannot be told", "error", err)
	}
}

// countClients is told how many clients are connected.
func (d *Daemon) countClients(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clients = n
	d.reconsider()
}

// reconsider starts or stops the clock by which an on-demand broker ends. The
// caller holds mu.
func (d *Daemon) reconsider() {
	if !d.OnDemand {
		return
	}
	if d.leave != nil {
		d.leave.Stop()
		d.leave = nil
	}
	if d.clients == 0 && len(d.captures) == 0 {
		d.leave = time.AfterFunc(linger, d.leaveIfIdle)
	}
}

// leaveIfIdle ends a broker that nobody needs. What it carries for a system broker or
// from a listener needs it as well, and so does a listener that somebody has opened.
func (d *Daemon) leaveIfIdle() {
	carries := d.carries()
	d.mu.Lock()
	idle := d.OnDemand && d.clients == 0 && len(d.captures) == 0
	if idle && carries {
		d.reconsider()
	}
	d.mu.Unlock()
	if idle && !carries {
		d.sweep()
		d.stop(errors.New("nobody needs this broker any more"))
	}
}

// Stay turns an on-demand broker into one that stays.
func (d *Daemon) Stay() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.OnDemand = false
	if d.leave != nil {
		d.leave.Stop()
	}
}

// Stop ends Run after at most that time for live flows.
func (d *Daemon) Stop(drain time.Duration) {
	d.mu.Lock()
	d.drainTime = drain
	d.mu.Unlock()
	d.sweep()
	d.stop(errAsked)
}
