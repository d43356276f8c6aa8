package metrics

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"
)

// Live is what is asked for when somebody looks.
type Live struct {
	Connections func() int
	Flows       func() int
	Bytes       func() (up, down int64)      // of all flows ever
	Generation  func() uint64                // of the configuration in force
	Expiry      func() map[string]time.Time  // of certificates and revocation lists, by a word for each
	Audit       func() (lost, failed uint64) // records, and attempts to write
}

// Metrics are the counters. Safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	handshakes *prometheus.CounterVec
	requests   *prometheus.CounterVec
	duration   *prometheus.HistogramVec
	dial       prometheus.Histogram
	limits     *prometheus.CounterVec
	reloads    *prometheus.CounterVec
	suppressed prometheus.Counter
	unrecorded prometheus.Counter
}

// New makes the counters. Every function of live is required.
func New(version string, live Live) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ssh_gateway_handshakes_total", Help: "TLS handshakes by what became of them."}, []string{"outcome"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ssh_gateway_flows_total", Help: "Flows that were asked for and have ended, by service and by what became of them."}, []string{"service", "reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ssh_gateway_flow_duration_seconds", Help: "How long carried flows lasted.",
			Buckets: prometheus.ExponentialBuckets(0.01, 6, 9)}, []string{"carrier"}),
		dial: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ssh_gateway_dial_duration_seconds", Help: "How long it took to connect to a backend, or to fail.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 9)}),
		limits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ssh_gateway_limit_hits_total", Help: "What was refused for want of room, by the limit."}, []string{"limit"}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ssh_gateway_reloads_total", Help: "Reloads of the configuration and its files, by how they went."}, []string{"outcome"}),
		suppressed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ssh_gateway_log_lines_suppressed_total", Help: "Log lines that were left out as there were too many of a kind."}),
		unrecorded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ssh_gateway_audit_suppressed_total", Help: "Records of flows refused for want of room that were left out as there were too many."}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "ssh_gateway_build_info", Help: "Always 1; the label is the version.", ConstLabels: prometheus.Labels{"version": version}})
	build.Set(1)
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	m.registry.MustRegister(m.handshakes, m.requests, m.duration, m.dial, m.limits, m.reloads, m.suppressed, m.unrecorded, build,
		gauge("ssh_gateway_connections", "Open connections of clients.", func() float64 { return float64(live.Connections()) }),
		gauge("ssh_gateway_flows", "Open flows.", func() float64 { return float64(live.Flows()) }),
		gauge("ssh_gateway_config_generation", "Number of the configuration in force.", func() float64 { return float64(live.Generation()) }),
		&liveCollector{live},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handshake counts one.
func (m *Metrics) Handshake(outcome string) { m.handshakes.WithLabelValues(outcome).Inc() }

// Flow counts one that has ended or was refused. service is one of the configuration's,
// or "".
func (m *Metrics) Flow(service, reason string) { m.requests.WithLabelValues(service, reason).Inc() }

// Carried notes how long a flow lasted.
func (m *Metrics) Carried(carrier string, d time.Duration) {
	m.duration.WithLabelValues(carrier).Observe(d.Seconds())
}

// Dialled notes how long a dial took.
func (m *Metrics) Dialled(d time.Duration) { m.dial.Observe(d.Seconds()) }

// Limit counts one refusal for want of room.
func (m *Metrics) Limit(name string) { m.limits.WithLabelValues(name).Inc() }

// Reload counts one.
func (m *Metrics) Reload(ok bool) {
	outcome := "failed"
	if ok {
		outcome = "done"
	}
	m.reloads.WithLabelValues(outcome).Inc()
}

// Suppressed counts log lines that were left out.
func (m *Metrics) Suppressed(n uint64) { m.suppressed.Add(float64(n)) }

// Unrecorded counts a flow that was refused for want of room, and has no record.
func (m *Metrics) Unrecorded() { m.unrecorded.Inc() }

// liveCollector shows what several numbers come from at once.
type liveCollector struct{ Live }

var (
	bytesDesc  = prometheus.NewDesc("ssh_gateway_bytes_total", "Bytes of flows, up from clients and down to them.", []string{"direction"}, nil)
	expiryDesc = prometheus.NewDesc("ssh_gateway_expiry_timestamp_seconds", "When a certificate ends, or a revocation list is due.", []string{"what"}, nil)
	lostDesc   = prometheus.NewDesc("ssh_gateway_audit_lost_total", "Audit records that were lost.", nil, nil)
	failedDesc = prometheus.NewDesc("ssh_gateway_audit_failures_total", "Failed attempts to write the audit file.", nil, nil)
)

func (c *liveCollector) Describe(out chan<- *prometheus.Desc) {
	out <- bytesDesc
	out <- expiryDesc
	out <- lostDesc
	out <- failedDesc
}

func (c *liveCollector) Collect(out chan<- prometheus.Metric) {
	counter := func(desc *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, value, labels...)
	}
	up, down := c.Bytes()
	counter(bytesDesc, float64(up), "up")
	counter(bytesDesc, float64(down), "down")
	lost, failed := c.Audit()
	counter(lostDesc, float64(lost))
	counter(failedDesc, float64(failed))
	for what, when := range c.Expiry() {
		if !when.IsZero() {
			out <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, float64(when.Unix()), what)
		}
	}
}

// Gather is what Prometheus would get, in its text form.
func (m *Metrics) Gather() (string, error) {
	families, err := m.registry.Gather()
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for _, family := range families {
		if _, err := expfmt.MetricFamilyToText(&text, family); err != nil {
			return "", err
		}
	}
	return text.String(), nil
}
