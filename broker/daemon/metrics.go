package daemon

import (
	"bytes"
	"context"
	"time"

	"sshbroker/broker"
	"sshbroker/broker/control"
	"sshbroker/broker/metrics"
	"sshbroker/capture/service"
	"sshbroker/profiles"
)

// counts are those of the daemon's own, which its metrics tell. Guarded by Daemon.mu.
type counts struct {
	reloads, failedReloads uint64
	lastReload             time.Time
	lastReloadGood         bool
	namespaces             metrics.Queue // of captures that have ended
}

func (d *Daemon) newMetrics() *metrics.Metrics {
	return metrics.New(metrics.Options{Version: control.Version(), System: d.System, Snapshot: d.snapshot})
}

// expose has the metrics read as the configuration in force says. The caller does not hold
// mu, which a reading needs.
func (d *Daemon) expose() {
	d.mu.Lock()
	m := d.loaded.metrics
	d.mu.Unlock()
	d.metrics.Count(m.On)
	d.exposer.Apply(metrics.Ways{Socket: m.Socket, Listen: m.Listen, Textfile: m.Textfile, Interval: m.Interval})
}

// observe tells the metrics and the events of what happens on the way to servers.
func (d *Daemon) observe() profiles.Observer {
	events := Observer(d.Events)
	return func(e profiles.Event) {
		d.metrics.Observe(e)
		events(e)
	}
}

// reloaded counts a reload. It returns err.
func (d *Daemon) reloaded(err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counts.lastReload, d.counts.lastReloadGood = time.Now(), err == nil
	if err == nil {
		d.counts.reloads++
	} else {
		d.counts.failedReloads++
	}
	return err
}

// snapshot implements metrics.Options.
func (d *Daemon) snapshot(ctx context.Context) metrics.Snapshot {
	limit, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	now, uses, serr := d.askCaptured(limit)
	s := metrics.Snapshot{Flows: d.broker.Totals(), Prompts: d.prompts.waiting(), Audit: d.Audit.Stats(), Events: d.Events.Stats(), Suppressed: d.Suppressed()}
	open, shut := d.ports.status()
	s.Listeners, s.ListenersFailed = open, len(shut)

	d.mu.Lock()
	policy := d.loaded.policy
	s.Generation, s.InForce = policy.Generation, policy.Since
	s.Reloads, s.FailedReloads, s.LastReload, s.LastReloadGood = d.counts.reloads, d.counts.failedReloads, d.counts.lastReload, d.counts.lastReloadGood
	s.Clients, s.Captures = d.clients, len(d.captures)
	namespaces := d.counts.namespaces
	for _, c := range d.captures {
		add(&namespaces, c.backend)
	}
	d.mu.Unlock()

	if !d.System {
		s.Queues = append(s.Queues, namespaces)
	}
	if uses {
		s.Captured = &metrics.Captured{Up: serr == nil, Enabled: now.Enabled, Repairs: now.Repairs, Suppressed: now.Suppressed}
	}
	if uses && serr == nil {
		s.Queues = append(s.Queues, queueOf(now))
	}
	s.Ways = waysOf(d.pool.List(), policy)
	return s
}

// add adds what a capture by a namespace counts. The number of those that wait is that of
// captures that live.
func add(sum *metrics.Queue, b backend) {
	sum.Name = "namespace"
	if n, ok := b.(*namespace); ok {
		q := n.Queue()
		sum.Waiting += q.Pending
		sum.Overruns += q.Overruns
		sum.Strangers += q.Strangers
		sum.Bounded += q.Bounded
	}
}

func queueOf(s service.Status) metrics.Queue {
	return metrics.Queue{Name: "ssh-captured", Waiting: s.Waiting, Overruns: s.Overruns, Strangers: s.Strangers,
		Bounded: s.Bounded, Metered: s.Metered, LostMark: s.LostMark, Diverted: s.Diverted}
}

// waysOf counts ways out by the profiles of the configuration. Other profiles, such as a
// system broker's, may be any number.
func waysOf(list []profiles.Info, p *broker.Policy) map[metrics.Way]int {
	ways := map[metrics.Way]int{}
	for _, in := range list {
		id := in.ProfileID
		if id != "" && p.Profiles[id] == nil {
			id = "other"
		}
		ways[metrics.Way{Profile: id, State: wayState(in)}]++
	}
	return ways
}

// metricsPiece keeps a row within a message, where quotes and newlines are two bytes each.
const metricsPiece = control.MaxMessage / 4

func (d *Daemon) handleMetrics(_ context.Context, call *control.Call) error {
	var text bytes.Buffer
	if _, err := d.metrics.WriteTo(&text); err != nil {
		return err
	}
	for text.Len() > 0 {
		if err := call.Send(control.MetricsRow{Text: string(text.Next(metricsPiece)), Counting: d.metrics.Counts()}); err != nil {
			return err
		}
	}
	return nil
}
