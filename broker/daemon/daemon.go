package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"sync"
	"time"

	"sshbroker/broker"
	"sshbroker/broker/audit"
	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/profiles"
)

// linger is how long a broker that was started on demand stays after its last client.
const linger = 10 * time.Second

// defaultDrain is how long flows may go on after a request to stop.
const defaultDrain = 5 * time.Second

// Options are what a daemon is made of.
type Options struct {
	Listener  *control.Listener // required; the daemon closes it
	Config    config.Options    // where the configuration is
	OnDemand  bool              // end when nobody needs us any more
	MaxFlows  int               // live at once; 0: no limit
	Audit     *audit.Log        // required; the daemon closes it
	AuditPath string
	Tunnels   profiles.Connector
	Log       *slog.Logger
	Level     *slog.LevelVar // what Debug changes; may be nil
	Failure   func(state string)
	StateDir  string // for name maps; the listener's directory
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

	ctx       context.Context // Run's: ends when the daemon is to stop
	stop      context.CancelCauseFunc
	drainTime time.Duration // guarded by mu

	reloading sync.Mutex // one reload at a time

	mu       sync.Mutex
	loaded   *loaded
	captures map[string]*served
	clients  int
	leave    *time.Timer // runs while nobody needs us
	capWG    sync.WaitGroup
}

// account is whose flows these are.
type account struct {
	name   string
	groups []string
}

// errAsked is the cause by which a daemon ends that was asked to.
var errAsked = errors.New("asked to stop")

// New loads the configuration. What is wrong with it is the error, all of it.
func New(o Options) (*Daemon, error) {
	d := &Daemon{Options: o, since: time.Now(), captures: map[string]*served{}, account: ownAccount(), drainTime: defaultDrain}
	first, err := d.load()
	if err != nil {
		return nil, &control.Error{Code: control.CodeConfig, Message: err.Error(),
			Hint: "see what is wrong with ssh-broker-ctl check-config"}
	}
	d.pool = profiles.NewPool(o.Tunnels, o.Log)
	d.broker = broker.New(broker.Config{Tunnels: d.pool, Audit: o.Audit, Log: o.Log, MaxFlows: o.MaxFlows, Failpoint: o.Failure})
	d.install(first)
	d.server = control.NewServer(o.Log)
	d.server.OnClients = d.countClients
	d.ctx, d.stop = context.WithCancelCause(context.Background())
	d.handle()
	return d, nil
}

func ownAccount() account {
	u, err := user.Current()
	if err != nil {
		return account{name: fmt.Sprint(os.Getuid())}
	}
	a := account{name: u.Username}
	ids, _ := u.GroupIds()
	for _, id := range ids {
		if g, err := user.LookupGroupId(id); err == nil {
			a.groups = append(a.groups, g.Name)
		}
	}
	return a
}

// Run serves until ctx ends or a client asks to stop. It then takes no new flows,
// lets live ones go on for the time that was asked for, and closes everything.
func (d *Daemon) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { d.stop(context.Cause(ctx)) })()
	d.sweep()
	d.mu.Lock()
	d.reconsider()
	d.mu.Unlock()

	err := d.server.Serve(d.ctx, d.Listener)
	d.stop(err)
	d.Log.Info("stopping", "cause", context.Cause(d.ctx))

	d.mu.Lock()
	drain := d.drainTime
	d.mu.Unlock()
	limit, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	d.broker.Drain(limit)
	d.capWG.Wait()
	return errors.Join(err, d.pool.Close(), d.Audit.Close())
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
		d.leave = time.AfterFunc(linger, func() {
			d.mu.Lock()
			idle := d.OnDemand && d.clients == 0 && len(d.captures) == 0
			d.mu.Unlock()
			if idle {
				d.sweep()
				d.stop(errors.New("nobody needs this broker any more"))
			}
		})
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
