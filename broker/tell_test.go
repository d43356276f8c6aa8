package broker

import (
	"log/slog"
	"path/filepath"
	"testing"

	"sshbroker/broker/audit"
	"sshbroker/broker/eventlog"
	"sshbroker/filter"
)

// Every reason of the audit record is an event too.
func TestEveryEndIsAnEvent(t *testing.T) {
	seen := map[eventlog.Event]bool{}
	for _, reason := range audit.Reasons() {
		for _, action := range []filter.Action{filter.Direct, filter.Block, filter.Tunnel} {
			e := endOf(&audit.Record{Reason: reason, Action: action.String()})
			if e.Definition().Name == "" {
				t.Errorf("%v, %v: no event", reason, action)
			}
			seen[e] = true
		}
	}
	if len(seen) != 8 {
		t.Errorf("%d events: %v", len(seen), seen)
	}
}

// logs are what a broker may have: none, one that logs nothing, one that logs other things.
func logs(t testing.TB) map[string]*eventlog.Log {
	other := eventlog.New(eventlog.Options{Logger: slog.New(slog.DiscardHandler)})
	other.Apply(eventlog.Routing{Rules: []eventlog.Rule{{Names: []string{"Broker_*"},
		Targets: []eventlog.Target{{Type: eventlog.File, Path: filepath.Join(t.TempDir(), "e.log")}}}}})
	t.Cleanup(other.Close)
	return map[string]*eventlog.Log{"none": nil, "off": eventlog.New(eventlog.Options{}), "other events": other}
}

// perFlow are the events of a flow that is tunneled.
func perFlow(f *flow) {
	f.tell(eventlog.ConnectorFilterRule)
	f.tell(eventlog.TunnelOpened)
	f.tell(endOf(&f.rec))
}

// While the events of flows are not logged, a flow allocates nothing for them.
func TestEventsOffDoNotAllocate(t *testing.T) {
	for name, log := range logs(t) {
		f := &flow{Broker: &Broker{Config: Config{Events: log}}, rec: audit.Record{Reason: audit.Carried}}
		if n := testing.AllocsPerRun(1000, func() { perFlow(f) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkEventsOff(b *testing.B) {
	for name, log := range logs(b) {
		b.Run(name, func(b *testing.B) {
			f := &flow{Broker: &Broker{Config: Config{Events: log}}, rec: audit.Record{Reason: audit.Carried}}
			b.ReportAllocs()
			for b.Loop() {
				perFlow(f)
			}
		})
	}
}
