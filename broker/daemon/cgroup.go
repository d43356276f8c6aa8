package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"sshbroker/broker"
	"sshbroker/broker/control"
	"sshbroker/broker/names"
	"sshbroker/broker/plan"
	"sshbroker/capture"
	hierarchy "sshbroker/capture/cgroup"
	"sshbroker/capture/service"
	"sshbroker/capture/service/client"
)

// cgroup is a capture whose cgroup ssh-captured has made for its client. Attempts and
// name queries come from there.
type cgroup struct {
	capturedSource
	resolver *resolver
	tell     func(level int, text string)

	once  sync.Once
	ended chan struct{} // closed when ssh-captured says that it is no more

	specs sync.Mutex                    // one change of the Spec at a time, to the newest
	has   atomic.Pointer[broker.Policy] // of which the kernel has the rules
}

func (d *Daemon) cgroupOpening(args control.CaptureArgs, files []*os.File) (opening, error) {
	closeFiles(files)
	return opening{
		journal: d.journal(args.ID, cgroupJournal),
		open:    d.openCgroup,
		drop:    func() {},
	}, nil
}

func (d *Daemon) openCgroup(ctx context.Context, s *served) (backend, error) {
	r := &resolver{serve: func(ctx context.Context, _ service.Served, udp []net.PacketConn, tcp []net.Listener) error {
		return s.names.Serve(ctx, udp, tcp)
	}}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	spec, policy := d.specOf(s)
	source, err := d.captured.serve(ctx, client.Options{Capture: s.args.ID, Spec: spec, Log: d.Log, Names: r.take})
	if err != nil {
		r.close()
		return nil, forClient(err)
	}
	if owner, own := source.Served().Owner, os.Getuid(); int(owner) != own {
		source.Close()
		r.close()
		return nil, &control.Error{Code: control.CodeForbidden, Message: fmt.Sprintf("capture %s is uid %d's, and this broker is uid %d's", s.args.ID, owner, own)}
	}
	c := &cgroup{capturedSource: source, resolver: r, tell: s.tell, ended: make(chan struct{})}
	c.has.Store(policy)
	return c, nil
}

// specOf compiles the rules that are in force for a capture. The common ones may block
// what its own let through, so that is not left to the kernel then.
func (d *Daemon) specOf(s *served) (spec capture.Spec, of *broker.Policy) {
	d.mu.Lock()
	current, l := d.loaded, d.loaded
	if s.way.own != nil {
		l = s.way.own
	}
	d.mu.Unlock()
	rules := l.policy.Rules
	spec = d.compile(rules, plan.Options{
		Pools: pools(s.way.pool4, s.way.pool6), Local: s.args.Localhost,
		RefuseUDP: !s.args.UDPDirect && (s.args.Via != "" || plan.RefusesUDP(rules)),
	}, l.host)
	if l != current && blocks(current.policy.Rules) {
		spec = askBeforePass(spec)
	}
	return spec, l.policy
}

// renew gives the kernel what can be compiled of the rules in force now.
func (d *Daemon) renew(s *served, c *cgroup) error {
	c.specs.Lock()
	defer c.specs.Unlock()
	ctx, cancel := context.WithTimeout(d.ctx, answerTime)
	defer cancel()
	spec, policy := d.specOf(s)
	if err := c.SetSpec(ctx, spec); err != nil {
		return err
	}
	c.has.Store(policy)
	return nil
}

// renewAll does it for everything that ssh-captured captures for us, and returns what
// went wrong, for people.
func (d *Daemon) renewAll() (warnings []string) {
	d.mu.Lock()
	captures := slices.Collect(maps.Values(d.captures))
	d.mu.Unlock()
	var mu sync.Mutex
	var wg sync.WaitGroup
	renew := func(id string, renew func() error) {
		wg.Go(func() {
			if text := d.told(id, renew()); text != "" {
				mu.Lock()
				defer mu.Unlock()
				warnings = append(warnings, text)
			}
		})
	}
	for _, s := range captures {
		if c, ok := s.backend.(*cgroup); ok {
			renew(s.args.ID, func() error { return d.renew(s, c) })
		}
	}
	if d.system != nil {
		renew(service.System, d.system.renew)
	}
	wg.Wait()
	slices.Sort(warnings)
	return warnings
}

// told logs that the kernel has not got the newest rules. A capture that has ended, or
// begins, needs none.
func (d *Daemon) told(id string, err error) (text string) {
	if err == nil || errors.Is(err, capture.ErrClosed) || d.ctx.Err() != nil {
		return ""
	}
	d.Log.Warn("the kernel has the rules of before for what it decides by itself", "capture", id, "error", err)
	return fmt.Sprintf("capture %s: the kernel has the rules of before for what it decides by itself: %v", id, err)
}

func (c *cgroup) describe(b *broker.Capture) {
	b.Backend, b.WayOut = "cgroup", true
	b.FindOrigin = func() bool { return c.Served().Origins }
}

func (c *cgroup) held() bool { return c.Served().Held }

func (c *cgroup) strangers() uint64 { return 0 } // ssh-captured counts its own

// answer has nothing to begin: names are served since the sockets came.
func (c *cgroup) answer(ctx context.Context, _ *names.Names) {
	<-ctx.Done()
	c.resolver.close()
}

// over says that the last process has ended, or that everything was opened. Its client
// may stay a little longer.
func (c *cgroup) over(err error) bool {
	switch codeOf(err) {
	case service.CodeReleased:
		c.tell(1, "ssh-captured was told to open everything: what connects from now on is not captured")
	case service.CodeEnded, service.CodeNotFound:
	default:
		return false
	}
	c.once.Do(func() { close(c.ended) })
	return true
}

func (c *cgroup) waitEmpty(ctx context.Context) error {
	select {
	case <-c.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *cgroup) empty() bool {
	select {
	case <-c.ended:
		return true
	default:
	}
	leaf := hierarchy.Leaf{Path: c.Served().Cgroup} // of which we may not have been told yet
	populated, err := leaf.Populated()
	return leaf.Path != "" && err == nil && !populated
}
