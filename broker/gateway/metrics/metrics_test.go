package metrics

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func full() *Metrics {
	m := New("1.2.3", Live{
		Connections: func() int { return 3 }, Flows: func() int { return 7 }, Bytes: func() (int64, int64) { return 10, 20 }, Generation: func() uint64 { return 2 },
		Expiry: func() map[string]time.Time {
			return map[string]time.Time{"certificate": time.Unix(1000, 0), "revocation-list": {}}
		},
		Audit: func() (uint64, uint64) { return 4, 5 },
	})
	m.Handshake("revoked")
	m.Flow("db", "carried")
	m.Flow("db", "carried")
	m.Carried("mux", time.Second)
	m.Dialled(time.Millisecond)
	m.Limit("flows")
	m.Reload(true)
	m.Reload(false)
	m.Suppressed(9)
	return m
}

func TestValues(t *testing.T) {
	m := full()
	text, err := m.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`ssh_gateway_build_info{version="1.2.3"} 1`, "ssh_gateway_connections 3", "ssh_gateway_flows 7", "ssh_gateway_config_generation 2",
		`ssh_gateway_bytes_total{direction="up"} 10`, `ssh_gateway_bytes_total{direction="down"} 20`, `ssh_gateway_handshakes_total{outcome="revoked"} 1`,
		`ssh_gateway_flows_total{reason="carried",service="db"} 2`, `ssh_gateway_limit_hits_total{limit="flows"} 1`, `ssh_gateway_reloads_total{outcome="done"} 1`,
		`ssh_gateway_reloads_total{outcome="failed"} 1`, "ssh_gateway_audit_lost_total 4", "ssh_gateway_audit_failures_total 5",
		`ssh_gateway_expiry_timestamp_seconds{what="certificate"} 1000`, "ssh_gateway_log_lines_suppressed_total 9",
		"ssh_gateway_dial_duration_seconds_count 1", `ssh_gateway_flow_duration_seconds_count{carrier="mux"} 1`,
	} {
		if !strings.Contains(text, "\n"+want+"\n") {
			t.Errorf("there is no %s", want)
		}
	}
	if strings.Contains(text, "revocation-list") {
		t.Error("the end of something that has none is shown")
	}
}

// Names and types are what Prometheus expects of them.
func TestConventions(t *testing.T) {
	problems, err := testutil.GatherAndLint(full().registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "ssh_gateway") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

func TestServe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.sock")
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	for _, tc := range []struct{ network, address string }{{"unix", path}, {"tcp", "127.0.0.1:0"}} {
		s, err := full().Serve(tc.network, tc.address, log)
		if err != nil {
			t.Fatal(err)
		}
		client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, s.Addr().Network(), s.Addr().String())
			}}}
		for what, code := range map[string]int{"/metrics": 200, "/": 404, "/debug/pprof/": 404} {
			answer, err := client.Get("http://x" + what)
			if err != nil {
				t.Fatal(err)
			}
			text, _ := io.ReadAll(answer.Body)
			answer.Body.Close()
			if answer.StatusCode != code || code == 200 && !strings.Contains(string(text), "\nssh_gateway_flows 7\n") {
				t.Errorf("%s %s: %s\n%.300s", tc.network, what, answer.Status, text)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket is left behind")
	}
}

func TestRefusedAddresses(t *testing.T) {
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	dir := t.TempDir()
	taken := filepath.Join(dir, "taken.sock")
	l, err := net.Listen("unix", taken)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]string{
		"0.0.0.0:0": "no loopback address", "192.0.2.1:9": "no loopback address", "localhost:9": "no loopback address",
	} {
		if _, err := full().Serve("tcp", address, log); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", address, err)
		}
	}
	for address, want := range map[string]string{
		taken: "another program's socket", file: "not a socket", filepath.Join(dir, "none", "x"): "no such file",
	} {
		if _, err := full().Serve("unix", address, log); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", address, err)
		}
	}
	if text, _ := os.ReadFile(file); string(text) != "precious" {
		t.Error("a file was replaced")
	}
}
