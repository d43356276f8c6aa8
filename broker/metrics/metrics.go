package metrics

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"

	"sshbroker/broker/audit"
	"sshbroker/profiles"
)

const (
	// maxSeries bounds the values of a label that are no list of ours; what comes later is
	// counted as "other".
	maxSeries = 256
	other     = "other"
)

// Options are what a Metrics is made of.
type Options struct {
	Version string
	// System counts by uid as well: of the broker of one user they are all the same.
	System bool
	// Snapshot is what the broker says of itself. It is called for each reading, and may
	// take as long as ctx lasts.
	Snapshot func(ctx context.Context) Snapshot
}

// Metrics are those of one broker. Flows and transports are counted by its methods Decided,
// Opened, Ended and Observe. Safe for concurrent use.
type Metrics struct {
	opts     Options
	counting atomic.Bool
	registry *prometheus.Registry

	attempts *bounded[attempt]
	rules    *bounded[rule]
	users    *bounded[uint32]
	limited  *bounded[uint32]
	decision prometheus.Histogram
	open     *prometheus.HistogramVec

	connects, connectFailures prometheus.Counter
	lost, reconnects          prometheus.Counter
	refused                   prometheus.Counter // who may not read
	writeErrors               prometheus.Counter // of the text file

	mu   sync.Mutex
	gone map[profiles.Key]struct{} // ways out that have lost their transport
}

// attempt and rule are keys of counters.
type attempt struct {
	action string
	reason audit.Reason
}

type rule struct {
	number  int
	profile string
}

// Buckets, in seconds. Rules are decided in microseconds, but for those that ask for the
// program; ways are opened in milliseconds, or with a login and a person in between.
var (
	decisionBuckets = []float64{5e-6, 1e-5, 25e-6, 5e-5, 1e-4, 25e-5, 5e-4, 1e-3, 25e-4, 5e-3, 1e-2, 5e-2, .25, 1}
	openBuckets     = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
)

// New returns a Metrics that counts no flows before Count.
func New(o Options) *Metrics {
	m := &Metrics{opts: o, registry: prometheus.NewRegistry(), gone: map[profiles.Key]struct{}{}}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m.attempts = newBounded("ssh_broker_attempts_total", "Flows that have ended, by what the rules said and what became of them (the reasons of the audit record).",
		func(a attempt) []string { return []string{verdict(a.action), a.reason.String()} }, "verdict", "reason")
	m.rules = newBounded("ssh_broker_rule_attempts_total", "Flows that have ended, by the number of the rule that decided, in the configuration of the time, and the profile that it led to.",
		func(r rule) []string { return []string{ruleName(r.number), r.profile} }, "rule", "profile")
	m.users = newBounded("ssh_broker_user_attempts_total", "Flows that have ended, by the uid of their program.", uidLabel, "uid")
	m.limited = newBounded("ssh_broker_user_limit_refusals_total", "Flows that were refused as too many were open, by the uid of their program.", uidLabel, "uid")
	m.decision = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "ssh_broker_decision_seconds",
		Help: "Time from the arrival of a flow until its rule was known.", Buckets: decisionBuckets})
	m.open = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "ssh_broker_open_seconds",
		Help: "Time from the decision until the way was open or had failed.", Buckets: openBuckets}, []string{"verdict", "outcome"})
	m.connects = counter("ssh_broker_connects_total", "Transports to servers that were made.")
	m.connectFailures = counter("ssh_broker_connect_failures_total", "Attempts to make a transport that have failed.")
	m.lost = counter("ssh_broker_connections_lost_total", "Transports that have ended without us.")
	m.reconnects = counter("ssh_broker_reconnects_total", "Transports that were made in place of a lost one.")
	m.refused = counter("ssh_broker_metrics_refused_total", "Readers of the metrics that were turned away.")
	m.writeErrors = counter("ssh_broker_metrics_write_errors_total", "Failures to write the text file of the metrics.")
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "ssh_broker_build_info", Help: "1, with the version of the broker.",
		ConstLabels: prometheus.Labels{"version": o.Version, "goversion": runtime.Version()}})
	build.Set(1)
	m.registry.MustRegister(m.attempts.vec, m.rules.vec, m.decision, m.open, m.connects, m.connectFailures, m.lost, m.reconnects,
		m.refused, m.writeErrors, build, snapshots{o.Snapshot},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if o.System {
		m.registry.MustRegister(m.users.vec, m.limited.vec)
	}
	return m
}

// Count turns the counting of flows on or off. While it is off a flow costs one look; what
// was counted stays.
func (m *Metrics) Count(on bool) { m.counting.Store(on) }

// Counts reports whether flows are counted.
func (m *Metrics) Counts() bool { return m.counting.Load() }

// Decided implements broker.Meter.
func (m *Metrics) Decided(took time.Duration) {
	if m.counting.Load() {
		m.decision.Observe(took.Seconds())
	}
}

// Opened implements broker.Meter.
func (m *Metrics) Opened(action string, took time.Duration) {
	if m.counting.Load() {
		m.open.WithLabelValues(verdict(action), "opened").Observe(took.Seconds())
	}
}

// Ended implements broker.Meter.
func (m *Metrics) Ended(r *audit.Record) {
	if !m.counting.Load() {
		return
	}
	m.attempts.inc(attempt{r.Action, r.Reason})
	if r.Action != "" {
		m.rules.inc(rule{r.Rule, r.Profile})
	}
	if failed(r.Reason) && r.Open > 0 {
		m.open.WithLabelValues(verdict(r.Action), "failed").Observe(r.Open.Seconds())
	}
	if m.opts.System {
		m.users.inc(r.UID)
		if r.Reason == audit.Limit {
			m.limited.inc(r.UID)
		}
	}
}

// failed reports whether a way was tried and did not open.
func failed(r audit.Reason) bool {
	switch r {
	case audit.RefusedByDestination, audit.Unreachable, audit.Prohibited, audit.NameNotFound, audit.ServerUnreachable,
		audit.AuthFailed, audit.HostKey, audit.TransportLost, audit.RefusedByCarrier, audit.CarrierGone:
		return true
	}
	return false
}

// Observe is a profiles.Observer.
func (m *Metrics) Observe(e profiles.Event) {
	switch e.Kind {
	case profiles.ConnectFailed:
		m.connectFailures.Inc()
	case profiles.Connected:
		m.connects.Inc()
		if m.again(e.Profile) {
			m.reconnects.Inc()
		}
	case profiles.ConnectionLost:
		m.lost.Inc()
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.gone) < maxSeries {
			m.gone[e.Profile.Key()] = struct{}{}
		}
	}
}

// again reports whether p's transport was lost before, and forgets that.
func (m *Metrics) again(p *profiles.Profile) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, lost := m.gone[p.Key()]
	delete(m.gone, p.Key())
	return lost
}

// WriteTo writes everything in Prometheus's text format.
func (m *Metrics) WriteTo(w io.Writer) (int64, error) {
	families, err := m.registry.Gather()
	if err != nil {
		return 0, fmt.Errorf("metrics: %w", err)
	}
	var all int64
	for _, f := range families {
		n, err := expfmt.MetricFamilyToText(w, f)
		all += int64(n)
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

// verdict is the word for an action, as a label.
func verdict(action string) string {
	switch action {
	case "":
		return "none"
	case "DIRECT":
		return "direct"
	case "TUNNEL":
		return "tunnel"
	case "BLOCK":
		return "block"
	}
	return strings.ToLower(action)
}

func ruleName(number int) string {
	if number == 0 {
		return "default"
	}
	return strconv.Itoa(number)
}

func uidLabel(uid uint32) []string { return []string{strconv.FormatUint(uint64(uid), 10)} }

// bounded is a counter with labels that has so many series at most.
type bounded[K comparable] struct {
	vec    *prometheus.CounterVec
	labels func(K) []string

	mu    sync.RWMutex
	known map[K]prometheus.Counter
	rest  prometheus.Counter // nil: there was room for all
}

func newBounded[K comparable](name, help string, labels func(K) []string, names ...string) *bounded[K] {
	return &bounded[K]{vec: prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, names), labels: labels, known: map[K]prometheus.Counter{}}
}

func (b *bounded[K]) inc(k K) {
	b.mu.RLock()
	c := b.known[k]
	b.mu.RUnlock()
	if c == nil {
		c = b.add(k)
	}
	c.Inc()
}

func (b *bounded[K]) add(k K) prometheus.Counter {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c := b.known[k]; c != nil {
		return c
	}
	labels := b.labels(k)
	for i := range labels {
		labels[i] = strings.ToValidUTF8(labels[i], "?") // the registry panics at what is not
	}
	if len(b.known) < maxSeries {
		c := b.vec.WithLabelValues(labels...)
		b.known[k] = c
		return c
	}
	if b.rest == nil {
		for i := range labels {
			labels[i] = other
		}
		b.rest = b.vec.WithLabelValues(labels...)
	}
	return b.rest
}
