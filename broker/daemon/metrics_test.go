package daemon

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sshbroker/broker/control"
)

// metricsText is what ssh-broker-ctl metrics prints.
func (b *bench) metricsText() (text string, counting bool) {
	b.t.Helper()
	for _, r := range all[control.MetricsRow](b, control.OpMetrics) {
		text += r.Text
		counting = r.Counting
	}
	return text, counting
}

// says reports whether the metrics have that line now.
func (b *bench) says(line string) bool {
	b.t.Helper()
	text, _ := b.metricsText()
	return slices.Contains(strings.Split(text, "\n"), line)
}

// general puts something into the element of that name.
func (b *bench) general(in string) {
	b.t.Helper()
	text, err := os.ReadFile(b.file)
	if err != nil {
		b.t.Fatal(err)
	}
	bare := regexp.MustCompile(`<general>.*</general>`).ReplaceAllString(string(text), "")
	if err := os.WriteFile(b.file, []byte(strings.Replace(bare, "<secsh-broker>", "<secsh-broker><general>"+in+"</general>", 1)), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// TestMetrics: off, on and off again by reloads, with a flow in between.
func TestMetrics(t *testing.T) {
	b := begin(t, "", tunnel, nil)
	if text, counting := b.metricsText(); counting || strings.Contains(text, "ssh_broker_attempts_total") || !strings.Contains(text, "\nssh_broker_flows_total 0\n") {
		t.Errorf("before it was asked for: %t\n%s", counting, text)
	}
	socket := filepath.Join(b.dir, "metrics")
	b.general(`<metrics socket="` + socket + `"/>`)
	if _, err := b.Reload(); err != nil {
		t.Fatal(err)
	}
	row, err := one[control.ListenerRow](b, control.OpOpenListener, control.OpenListenerArgs{Type: "tcp", Listen: ":0", Host: "d", Port: 7, Server: "gw"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", row.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	live := []string{`ssh_broker_flows{state="admitted"} 1`, `ssh_broker_flows_total 1`, `ssh_broker_carried_bytes_total{direction="up"} 5`,
		`ssh_broker_carried_bytes_total{direction="down"} 5`, `ssh_broker_connects_total 1`, `ssh_broker_transports{profile="gw",state="connected"} 1`,
		`ssh_broker_listeners{state="open"} 1`, `ssh_broker_config_generation 2`, `ssh_broker_config_last_reload_success 1`,
		`ssh_broker_open_seconds_count{outcome="opened",verdict="tunnel"} 1`}
	for _, line := range live {
		eventually(t, line, func() bool { return b.says(line) })
	}
	c.Close()
	b.records(1)
	for _, line := range []string{`ssh_broker_attempts_total{reason="carried",verdict="tunnel"} 1`, `ssh_broker_flows{state="admitted"} 0`,
		`ssh_broker_carried_bytes_total{direction="up"} 5`, `ssh_broker_audit_records_total{result="written"} 1`} {
		eventually(t, line, func() bool { return b.says(line) })
	}

	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	resp, err := (&http.Client{Transport: transport}).Get("http://localhost/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	transport.CloseIdleConnections()
	if err != nil || !strings.Contains(string(body), `ssh_broker_attempts_total{reason="carried",verdict="tunnel"} 1`) {
		t.Errorf("%v\n%s", err, body)
	}

	b.general(`<metrics socket="` + socket + `" listen="0.0.0.0:1"/>`)
	if _, err := b.Reload(); err == nil {
		t.Error("a port for other hosts is taken")
	}
	for _, line := range []string{`ssh_broker_config_last_reload_success 0`, `ssh_broker_config_reloads_total{result="failed"} 1`, `ssh_broker_config_generation 2`} {
		if !b.says(line) {
			t.Errorf("no %s", line)
		}
	}
	b.general(`<metrics socket="` + b.dir + `"/>`) // in the way
	if _, err := b.Reload(); err != nil {
		t.Error(err)
	}
	if status, err := one[control.StatusRow](b, control.OpStatus, nil); err != nil || len(status.MetricsErrors) != 1 || !strings.Contains(status.MetricsErrors[0], "left alone") {
		t.Errorf("%v %v", status.MetricsErrors, err)
	}
	b.general("")
	if _, err := b.Reload(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(socket); err == nil {
		t.Error("the socket stays")
	}
	if _, counting := b.metricsText(); counting {
		t.Error("it still counts")
	}
}

// TestMetricsOfCaptured: what ssh-captured says of itself is there while it is used.
func TestMetricsOfCaptured(t *testing.T) {
	b := begin(t, "", tunnel, func(o *Options) { o.System = true })
	b.captured.source(t, "system")
	for _, line := range []string{"ssh_broker_captured_up 1", "ssh_broker_captured_enabled 1", `ssh_broker_queue_waiting{queue="ssh-captured"} 0`} {
		eventually(t, line, func() bool { return b.says(line) })
	}
	b.captured.set(true)
	eventually(t, "word of its absence", func() bool { return b.says("ssh_broker_captured_up 0") })
}
