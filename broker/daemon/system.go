package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"sshbroker/broker"
	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/broker/eventlog"
	"sshbroker/broker/names"
	"sshbroker/broker/plan"
	"sshbroker/capture"
	"sshbroker/capture/netns"
	"sshbroker/capture/origin"
	"sshbroker/capture/owner"
	"sshbroker/capture/service"
	"sshbroker/capture/service/client"
)

// How long a system broker waits before it looks for ssh-captured again.
const firstWait, lastWait = 100 * time.Millisecond, 5 * time.Second

// system is the capture of the whole host.
type system struct {
	d            *Daemon
	pool4, pool6 netip.Prefix
	diag         *origin.Diag // whose name queries are
	names        *names.Users
	resolver     *resolver
	accounts     *accounts
	servers      *addresses

	specs sync.Mutex // one change of the Spec at a time, to the newest

	mu     sync.Mutex
	source capturedSource // nil while there is none
	err    error          // why
	spec   capture.Spec   // what source was given last
	has    *broker.Policy // of which spec has the rules
}

// forSystem checks what a system broker of uid own is to do, and completes it.
func (d *Daemon) forSystem(l *loaded, own uint32) error {
	switch {
	case !l.present:
		return &control.Error{Code: control.CodeConfig, Message: "there is no filter-engine in any configuration file: everything would go out in clear",
			Hint: "write the rules for all users to " + config.DefaultGlobalFile}
	case l.host.CaptureRoot && own == 0:
		return &control.Error{Code: control.CodeConfig, Message: `capture-root="yes", and this broker runs as root: its own connections would come back to it`,
			Hint: "run it as an account of its own, as ssh-broker-system.service does, or take capture-root out"}
	}
	l.users = whoseFlows(l.host, own)
	l.policy.UserBrokers = l.host.UserBrokers
	for _, r := range l.host.CaptureUsers {
		if r.Lo <= own && own <= r.Hi {
			l.warn = append(l.warn, fmt.Sprintf("capture-users has uid %d in it, as which this broker runs: its connections are not captured", own))
		}
	}
	if pool4, pool6 := l.pools(); d.system != nil && (pool4 != d.system.pool4 || pool6 != d.system.pool6) {
		l.warn = append(l.warn, "other addresses for names (ip-generate-start, ip6-generate-start) count when the broker is started again")
	}
	return nil
}

func newSystem(d *Daemon, l *loaded) (*system, error) {
	pool4, pool6 := l.pools()
	if err := netns.PoolIsFree(pool4, pool6); err != nil {
		return nil, poolInUse(err)
	}
	s := &system{d: d, pool4: pool4, pool6: pool6, accounts: newAccounts(), servers: newAddresses(),
		err: errors.New("ssh-captured has not been asked yet")}
	var err error
	if s.diag, err = origin.OpenDiag(); err != nil {
		return nil, err
	}
	s.names, err = names.NewUsers(names.Config{
		Policy: namePolicy(func() *broker.Policy { return d.broker.Policy() }), Pool4: pool4, Pool6: pool6, Logger: d.Log,
		Journal:   filepath.Join(d.StateDir, "ssh-broker-names-system"),
		HostsFile: hostsFile, ResolvFile: resolvFile,
	}, askers{s.diag})
	if err != nil {
		s.diag.Close()
		return nil, err
	}
	s.resolver = &resolver{serve: s.answer}
	return s, nil
}

func (s *system) close() {
	s.resolver.close()
	_ = s.names.Close()
	_ = s.diag.Close()
}

// answer serves name queries until ctx ends.
func (s *system) answer(ctx context.Context, served service.Served, udp []net.PacketConn, tcp []net.Listener) error {
	if served.Marks {
		return s.names.ServeMarked(ctx, udp, tcp)
	}
	s.d.Log.Warn("this kernel does not tell whose a name query is (5.19 does): where a program asks several servers from one port, some of its queries fail")
	return s.names.Serve(ctx, udp, tcp)
}

// askers tells whose programs sent name queries.
type askers struct{ diag *origin.Diag }

// Sender implements names.Owners, for kernels that tell no marks.
func (a askers) Sender(from netip.AddrPort) (uid uint32, ok bool) {
	uid, err := owner.Of(a.diag, "udp", from, netip.AddrPort{})
	return uid, err == nil
}

// Marked implements names.Owners.
func (a askers) Marked(mark uint32) (uid uint32, ok bool) { return capture.Sender(mark) }

// Peer implements names.Owners.
func (a askers) Peer(c net.Conn) (uid uint32, ok bool) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return 0, false
	}
	uid, err := owner.OfPeer(a.diag, tcp)
	return uid, err == nil
}

// run serves until ctx ends. ssh-captured may come and go.
func (s *system) run(ctx context.Context) {
	defer s.close()
	again := s.resolve()
	var refreshing sync.WaitGroup
	refreshing.Go(func() { s.refresh(ctx, again) })
	defer refreshing.Wait()

	said := ""
	for wait := firstWait; ctx.Err() == nil; wait = min(2*wait, lastWait) {
		began := time.Now()
		err := s.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > lastWait {
			wait, said = firstWait, ""
		}
		if text := err.Error(); text != said {
			said = text
			s.d.Log.Warn("the host is not captured by this broker; it goes on trying", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// serve serves until ctx or the source ends, and says why.
func (s *system) serve(ctx context.Context) error {
	spec, policy := s.wanted()
	limit, cancel := context.WithTimeout(ctx, answerTime)
	source, err := s.d.captured.serve(limit, client.Options{Capture: service.System, Spec: spec, Log: s.d.Log, Names: s.resolver.take})
	cancel()
	s.mu.Lock()
	s.source, s.err, s.spec, s.has = source, err, spec, policy
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.d.Log.Info("serves the capture of the whole host", "enabled", source.Served().Enabled)
	s.d.tellSource(eventlog.CaptureStarted, service.System, nil)
	s.d.told(service.System, s.renew()) // a reload may have come between

	err = s.d.broker.Run(ctx, &broker.Capture{
		ID: service.System, Backend: "system", Source: source, WayOut: true,
		NamesOf:    func(uid uint32) broker.Names { return s.names.For(uid) },
		FindOrigin: func() bool { return source.Served().Origins },
		Account: func(uid uint32) (string, []string) {
			a := s.accounts.of(uid)
			return a.name, a.groups
		},
	})
	s.mu.Lock()
	s.source, s.err = nil, err
	s.mu.Unlock()
	_ = source.Close()
	s.d.tellSource(eventlog.CaptureEnded, service.System, err)
	if err == nil {
		err = capture.ErrClosed // ctx has ended
	}
	return err
}

// failure is why nothing is served just now; nil while it is.
func (s *system) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// uses is the policy by whose rules the host is captured; nil while it is not.
func (s *system) uses() *broker.Policy {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.source == nil {
		return nil
	}
	return s.has
}

// wanted is the Spec of the rules in force now.
func (s *system) wanted() (spec capture.Spec, of *broker.Policy) {
	s.d.mu.Lock()
	l := s.d.loaded
	s.d.mu.Unlock()
	return s.d.compile(l.policy.Rules, plan.Options{
		Pools: pools(s.pool4, s.pool6), Exempt: s.servers.list(), Users: l.users, RefuseUDP: plan.RefusesUDP(l.policy.Rules),
	}, l.host), l.policy
}

// renew gives the kernel the newest rules, if they are other than those it has.
func (s *system) renew() error {
	s.specs.Lock()
	defer s.specs.Unlock()
	spec, policy := s.wanted()
	s.mu.Lock()
	source, same := s.source, reflect.DeepEqual(spec, s.spec)
	if same {
		s.has = policy
	}
	s.mu.Unlock()
	if source == nil || same {
		return nil
	}
	ctx, cancel := context.WithTimeout(s.d.ctx, answerTime)
	defer cancel()
	if err := source.SetSpec(ctx, spec); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.source == source {
		s.spec, s.has = spec, policy
	}
	return nil
}

// resolve looks up the addresses of the servers, and returns when to do it again.
func (s *system) resolve() time.Duration {
	s.d.mu.Lock()
	policy := s.d.loaded.policy
	s.d.mu.Unlock()
	errs := s.servers.resolve(s.d.ctx, servers(policy))
	if len(errs) == 0 {
		return resolveEvery
	}
	if s.d.ctx.Err() == nil {
		s.d.Log.Warn("servers without an address: connections to them are captured as others are", "error", errors.Join(errs...))
	}
	return resolveAgain
}

// refresh keeps the addresses of the servers up to date.
func (s *system) refresh(ctx context.Context, wait time.Duration) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = s.resolve()
		s.d.told(service.System, s.renew())
	}
}
