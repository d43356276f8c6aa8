package metrics

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/goleak"

	"sshbroker/broker"
	"sshbroker/broker/audit"
	"sshbroker/broker/eventlog"
	"sshbroker/profiles"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// full says something in every part.
func full(context.Context) Snapshot {
	return Snapshot{
		Flows:   broker.Totals{Live: 3, All: 9, States: map[string]int{broker.StateAdmitted: 3}, Moved: broker.Moved{Up: 10, Down: 20}, Limited: 1, LimitedUser: 2},
		Ways:    map[Way]int{{"paper", "connected"}: 1, {"", "resting"}: 2},
		Queues:  []Queue{{Name: "namespace", Waiting: 1, Overruns: 2, Strangers: 3, Bounded: 4}, {Name: "ssh-captured", Metered: 5, LostMark: 6, Diverted: 7}},
		Prompts: 1, Clients: 2, Captures: 3, Listeners: 4, ListenersFailed: 5,
		Audit: audit.Stats{Written: 8, Lost: 1, Pending: 2, Failures: 3, Failing: errors.New("full")}, Events: []eventlog.TargetStats{{Target: eventlog.Target{Type: eventlog.File, Path: "/a\xff\x1b"}, Written: 4, Lost: 1, Failures: 2}},
		Generation: 2, InForce: time.Unix(1700000000, 0), Reloads: 1, FailedReloads: 1, LastReload: time.Unix(1700000001, 0), LastReloadGood: true,
		Captured: &Captured{Up: true, Enabled: true, Repairs: 1, Suppressed: 7}, Suppressed: 12,
	}
}

// used is a Metrics in which every metric has a value.
func used(t testing.TB) *Metrics {
	m := New(Options{Version: "test", System: true, Snapshot: full})
	m.Count(true)
	m.Decided(20 * time.Microsecond)
	m.Opened("TUNNEL", 3*time.Millisecond)
	m.Ended(&audit.Record{Action: "TUNNEL", Reason: audit.Carried, Rule: 2, Profile: "paper", UID: 1000})
	m.Ended(&audit.Record{Action: "TUNNEL", Reason: audit.ServerUnreachable, Rule: 2, Profile: "paper", UID: 1000, Open: time.Second})
	m.Ended(&audit.Record{Reason: audit.Limit, UID: 1001})
	return m
}

func text(t testing.TB, m *Metrics) string {
	t.Helper()
	var b bytes.Buffer
	if _, err := m.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func wantLines(t *testing.T, all string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !slices.Contains(strings.Split(all, "\n"), line) {
			t.Errorf("there is no line %q in\n%s", line, all)
		}
	}
}

func TestValues(t *testing.T) {
	wantLines(t, text(t, used(t)),
		`ssh_broker_attempts_total{reason="carried",verdict="tunnel"} 1`,
		`ssh_broker_attempts_total{reason="server-unreachable",verdict="tunnel"} 1`,
		`ssh_broker_attempts_total{reason="limit",verdict="none"} 1`,
		`ssh_broker_rule_attempts_total{profile="paper",rule="2"} 2`,
		`ssh_broker_user_attempts_total{uid="1000"} 2`,
		`ssh_broker_user_limit_refusals_total{uid="1001"} 1`,
		`ssh_broker_decision_seconds_count 1`,
		`ssh_broker_open_seconds_count{outcome="opened",verdict="tunnel"} 1`,
		`ssh_broker_open_seconds_count{outcome="failed",verdict="tunnel"} 1`,
		`ssh_broker_flows_total 9`, `ssh_broker_flows{state="admitted"} 3`, `ssh_broker_flows{state="decided"} 0`,
		`ssh_broker_carried_bytes_total{direction="up"} 10`, `ssh_broker_carried_bytes_total{direction="down"} 20`,
		`ssh_broker_limit_refusals_total{limit="uid"} 2`,
		`ssh_broker_transports{profile="paper",state="connected"} 1`, `ssh_broker_transports{profile="",state="resting"} 2`,
		`ssh_broker_queue_waiting{queue="namespace"} 1`, `ssh_broker_queue_dropped_total{cause="metered",queue="ssh-captured"} 5`,
		`ssh_broker_prompts_waiting 1`, `ssh_broker_listeners{state="failed"} 5`,
		`ssh_broker_audit_write_errors_total 3`, `ssh_broker_audit_records_total{result="lost"} 1`,
		`ssh_broker_config_generation 2`, `ssh_broker_config_last_reload_success 1`, `ssh_broker_config_reloads_total{result="failed"} 1`,
		`ssh_broker_captured_up 1`, `ssh_broker_captured_log_lines_suppressed_total 7`, `ssh_broker_log_lines_suppressed_total 12`)
}

// TestLint: names, units and helps are as Prometheus wants them.
func TestLint(t *testing.T) {
	problems, err := promlint.New(strings.NewReader(text(t, used(t)))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// skip ends a test that cannot run here; in CI everything must be there.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s, and CI=true allows no skip", why)
	}
	t.Skip(why)
}

// TestPromtool holds it to Prometheus's own program.
func TestPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		skip(t, "needs promtool (Debian package prometheus)")
	}
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(text(t, used(t)))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestOff: nothing of a flow is counted, and what was stays.
func TestOff(t *testing.T) {
	m := used(t)
	before := text(t, m)
	m.Count(false)
	m.Decided(time.Second)
	m.Opened("DIRECT", time.Second)
	m.Ended(&audit.Record{Action: "BLOCK", Reason: audit.Blocked, UID: 5})
	for line := range strings.Lines(text(t, m)) {
		if strings.HasPrefix(line, "ssh_broker_") && !strings.Contains(before, line) {
			t.Errorf("counted while it is off: %s", line)
		}
	}
}

// TestBounded: labels that others choose do not fill the memory.
func TestBounded(t *testing.T) {
	m := New(Options{System: true, Snapshot: full})
	m.Count(true)
	for i := range 3 * maxSeries {
		m.Ended(&audit.Record{Action: "TUNNEL", Reason: audit.Carried, Rule: i, Profile: "p\xff", UID: uint32(i)})
	}
	for name, series := range map[string]int{"rules": testutil.CollectAndCount(m.rules.vec), "users": testutil.CollectAndCount(m.users.vec)} {
		if series != maxSeries+1 {
			t.Errorf("%s: %d series, want %d", name, series, maxSeries+1)
		}
	}
	wantLines(t, text(t, m), `ssh_broker_user_attempts_total{uid="other"} 512`, `ssh_broker_rule_attempts_total{profile="other",rule="other"} 512`)
}

func TestReconnects(t *testing.T) {
	m := New(Options{Snapshot: full})
	a, b := &profiles.Profile{ID: "a", Host: "a"}, &profiles.Profile{ID: "b", Host: "b"}
	for _, e := range []profiles.Event{{Kind: profiles.Connected, Profile: a}, {Kind: profiles.ConnectionLost, Profile: a}, {Kind: profiles.ConnectFailed, Profile: a},
		{Kind: profiles.Connected, Profile: b}, {Kind: profiles.Connected, Profile: a}, {Kind: profiles.Disconnected, Profile: a}, {Kind: profiles.Connected, Profile: a}} {
		m.Observe(e)
	}
	wantLines(t, text(t, m), "ssh_broker_connects_total 4", "ssh_broker_connect_failures_total 1", "ssh_broker_connections_lost_total 1", "ssh_broker_reconnects_total 1")
}

// TestDashboard: the file is one that Grafana reads, and asks for nothing that is not there.
func TestDashboard(t *testing.T) {
	b, err := os.ReadFile("../../etc/grafana/ssh-broker.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Title, UID    string
		SchemaVersion int
		Panels        []struct {
			ID          int
			Title, Type string
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct{ Expr, RefID string }
		}
	}
	if err := json.Unmarshal(b, &board); err != nil {
		t.Fatal(err)
	}
	if board.Title == "" || board.UID == "" || board.SchemaVersion < 30 || len(board.Panels) < 8 {
		t.Errorf("%+v", board)
	}
	there := map[string]bool{}
	for line := range strings.Lines(text(t, used(t))) {
		if name := regexp.MustCompile(`^[a-z_]+`).FindString(line); name != "" {
			there[name] = true
		}
	}
	asked, ids := map[string]bool{}, map[int]bool{}
	for _, p := range board.Panels {
		if ids[p.ID] || p.Title == "" || len(p.Targets) == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %+v", p)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			names := regexp.MustCompile(`\b(ssh_broker|process|go)_[a-z_]+`).FindAllString(target.Expr, -1)
			if len(names) == 0 {
				t.Errorf("%s: %q asks for nothing of ours", p.Title, target.Expr)
			}
			for _, name := range names {
				asked[name] = true
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		if !there[name] {
			t.Errorf("the dashboard asks for %s, which does not exist", name)
		}
	}
}

// BenchmarkFlow is what one flow costs.
func BenchmarkFlow(b *testing.B) {
	for _, on := range []bool{true, false} {
		name := map[bool]string{true: "on", false: "off"}[on]
		b.Run(name, func(b *testing.B) {
			m := New(Options{System: true, Snapshot: full})
			m.Count(on)
			r := &audit.Record{Action: "TUNNEL", Reason: audit.Carried, Rule: 120, Profile: "paper", UID: 1000}
			b.ReportAllocs()
			for b.Loop() {
				m.Decided(10 * time.Microsecond)
				m.Opened("TUNNEL", time.Millisecond)
				m.Ended(r)
			}
		})
	}
}
