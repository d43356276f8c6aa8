package metrics

import (
	"context"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sshbroker/broker"
	"sshbroker/broker/audit"
	"sshbroker/broker/eventlog"
)

// Snapshot is what a broker says of itself at one moment. Counts never go down while it
// runs.
type Snapshot struct {
	Flows   broker.Totals
	Ways    map[Way]int
	Queues  []Queue
	Prompts int // questions that wait for a person
	Clients int
	// Captures, and ports of tunnels, open ones and those that cannot be.
	Captures, Listeners, ListenersFailed int

	Audit  audit.Stats
	Events []eventlog.TargetStats

	Generation     int
	InForce        time.Time // since when it is
	Reloads        uint64
	FailedReloads  uint64
	LastReload     time.Time // zero: none
	LastReloadGood bool

	Captured *Captured // nil where nothing is done through ssh-captured

	Suppressed uint64 // lines of the log that were left out, as there were too many of a kind
}

// Way is a kind of transport: whose and how it is.
type Way struct{ Profile, State string }

// Queue is where SYNs wait for a decision.
type Queue struct {
	Name      string // "namespace", of all captures by namespaces, or "ssh-captured"
	Waiting   int
	Overruns  uint64 // times that the kernel dropped some as they were not read in time
	Strangers uint64 // connections straight to a listener

	Bounded, Metered, LostMark, Diverted uint64 // SYNs that were dropped, by why
}

// Captured is how the broker stands with ssh-captured.
type Captured struct {
	Up      bool
	Enabled bool   // system-wide capture
	Repairs uint64 // times that another program removed its rules

	Suppressed uint64 // lines of its log that were left out
}

// readTime is how long a Snapshot may take.
const readTime = 5 * time.Second

// family is one metric that is read off a Snapshot.
type family struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(s *Snapshot, put put)
}

// put adds a value with the values of the family's labels.
type put func(value float64, labels ...string)

func count(name, help string, read func(*Snapshot, put), labels ...string) family {
	return family{prometheus.NewDesc(name, help, labels, nil), prometheus.CounterValue, read}
}

func gauge(name, help string, read func(*Snapshot, put), labels ...string) family {
	return family{prometheus.NewDesc(name, help, labels, nil), prometheus.GaugeValue, read}
}

// families is never written to.
var families = []family{
	count("ssh_broker_flows_total", "Flows that have arrived.", func(s *Snapshot, put put) { put(float64(s.Flows.All)) }),
	gauge("ssh_broker_flows", "Flows that are open, by their state.", func(s *Snapshot, put put) {
		for _, state := range broker.States {
			put(float64(s.Flows.States[state]), state)
		}
	}, "state"),
	count("ssh_broker_carried_bytes_total", "Bytes of flows, up from programs and down to them. What the kernel carries is not among them.", func(s *Snapshot, put put) {
		put(float64(s.Flows.Moved.Up), "up")
		put(float64(s.Flows.Moved.Down), "down")
	}, "direction"),
	count("ssh_broker_limit_refusals_total", "Flows that were refused as too many were open, of all or of one uid.", func(s *Snapshot, put put) {
		put(float64(s.Flows.Limited), "all")
		put(float64(s.Flows.LimitedUser), "uid")
	}, "limit"),

	gauge("ssh_broker_transports", "Ways out to servers, by profile and state.", func(s *Snapshot, put put) {
		for way, n := range s.Ways {
			put(float64(n), way.Profile, way.State)
		}
	}, "profile", "state"),
	gauge("ssh_broker_prompts_waiting", "Questions that wait for a person.", func(s *Snapshot, put put) { put(float64(s.Prompts)) }),
	gauge("ssh_broker_clients", "Programs that are connected to the control socket.", func(s *Snapshot, put put) { put(float64(s.Clients)) }),
	gauge("ssh_broker_captures", "Captures that are served.", func(s *Snapshot, put put) { put(float64(s.Captures)) }),
	gauge("ssh_broker_listeners", "Ports of tunnels, by whether they are open.", func(s *Snapshot, put put) {
		put(float64(s.Listeners), "open")
		put(float64(s.ListenersFailed), "failed")
	}, "state"),

	gauge("ssh_broker_queue_waiting", "SYNs that wait for a decision.", ofQueues(func(q Queue) float64 { return float64(q.Waiting) }), "queue"),
	count("ssh_broker_queue_overruns_total", "Times that the kernel dropped SYNs as its queue was not read in time; they come again.", ofQueues(func(q Queue) float64 { return float64(q.Overruns) }), "queue"),
	count("ssh_broker_queue_dropped_total", "SYNs that were dropped and come again: too many of one uid (bounded, metered), or changed by a foreign rule (lost-mark, diverted).", func(s *Snapshot, put put) {
		for _, q := range s.Queues {
			put(float64(q.Bounded), q.Name, "bounded")
			put(float64(q.Metered), q.Name, "metered")
			put(float64(q.LostMark), q.Name, "lost-mark")
			put(float64(q.Diverted), q.Name, "diverted")
		}
	}, "queue", "cause"),
	count("ssh_broker_strangers_total", "Connections straight to a listener of a capture; they were reset.", ofQueues(func(q Queue) float64 { return float64(q.Strangers) }), "queue"),
	gauge("ssh_broker_captured_up", "1 while ssh-captured answers. Absent where it has nothing to do.", ofCaptured(func(c *Captured) float64 { return truth(c.Up) })),
	gauge("ssh_broker_captured_enabled", "1 while the whole host is captured.", ofCaptured(func(c *Captured) float64 { return truth(c.Enabled) })),
	count("ssh_broker_captured_repairs_total", "Times that another program removed the rules of ssh-captured.", ofCaptured(func(c *Captured) float64 { return float64(c.Repairs) })),
	count("ssh_broker_captured_log_lines_suppressed_total", "Lines of the log of ssh-captured that were left out, as there were too many of a kind.",
		ofCaptured(func(c *Captured) float64 { return float64(c.Suppressed) })),

	count("ssh_broker_audit_records_total", "Audit records, by what became of them.", func(s *Snapshot, put put) {
		put(float64(s.Audit.Written), "written")
		put(float64(s.Audit.Lost), "lost")
	}, "result"),
	count("ssh_broker_audit_write_errors_total", "Failures to write the audit record; it is tried again.", func(s *Snapshot, put put) { put(float64(s.Audit.Failures)) }),
	gauge("ssh_broker_audit_pending_records", "Audit records that wait to be written.", func(s *Snapshot, put put) { put(float64(s.Audit.Pending)) }),
	count("ssh_broker_events_total", "Events by the target of the element logging that they go to, and what became of them.", func(s *Snapshot, put put) {
		for _, t := range s.Events {
			put(float64(t.Written), t.Target.String(), "written")
			put(float64(t.Lost), t.Target.String(), "lost")
		}
	}, "target", "result"),
	count("ssh_broker_event_write_errors_total", "Failures to write events; it is tried again.", func(s *Snapshot, put put) {
		for _, t := range s.Events {
			put(float64(t.Failures), t.Target.String())
		}
	}, "target"),
	count("ssh_broker_log_lines_suppressed_total", "Lines of the broker's log that were left out, as there were too many of a kind.", func(s *Snapshot, put put) { put(float64(s.Suppressed)) }),

	gauge("ssh_broker_config_generation", "Number of the configuration in force: 1 at the start, one more with each reload.", func(s *Snapshot, put put) { put(float64(s.Generation)) }),
	gauge("ssh_broker_config_in_force_timestamp_seconds", "When that configuration came into force.", func(s *Snapshot, put put) { put(seconds(s.InForce)) }),
	count("ssh_broker_config_reloads_total", "Reloads, by whether the new configuration came into force.", func(s *Snapshot, put put) {
		put(float64(s.Reloads), "done")
		put(float64(s.FailedReloads), "failed")
	}, "result"),
	gauge("ssh_broker_config_last_reload_success", "1 if the last reload brought its configuration into force; 0 if the old one has stayed. Absent before the first.", func(s *Snapshot, put put) {
		if !s.LastReload.IsZero() {
			put(truth(s.LastReloadGood))
		}
	}),
	gauge("ssh_broker_config_last_reload_timestamp_seconds", "When the last reload was. Absent before the first.", func(s *Snapshot, put put) {
		if !s.LastReload.IsZero() {
			put(seconds(s.LastReload))
		}
	}),
}

func ofQueues(value func(Queue) float64) func(*Snapshot, put) {
	return func(s *Snapshot, put put) {
		for _, q := range s.Queues {
			put(value(q), q.Name)
		}
	}
}

func ofCaptured(value func(*Captured) float64) func(*Snapshot, put) {
	return func(s *Snapshot, put put) {
		if s.Captured != nil {
			put(value(s.Captured))
		}
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// snapshots is the collector of families.
type snapshots struct {
	take func(ctx context.Context) Snapshot
}

// Describe implements prometheus.Collector.
func (snapshots) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range families {
		ch <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (c snapshots) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), readTime)
	defer cancel()
	s := c.take(ctx)
	for _, f := range families {
		f.read(&s, func(value float64, labels ...string) {
			for i := range labels {
				labels[i] = strings.ToValidUTF8(labels[i], "?")
			}
			ch <- prometheus.MustNewConstMetric(f.desc, f.kind, value, labels...)
		})
	}
}
