package metrics

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sshbroker/broker/scrape"
)

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newExposer(t *testing.T) (*Exposer, *lockedBuffer) {
	t.Helper()
	log := &lockedBuffer{}
	e := &Exposer{Metrics: used(t), Log: slog.New(slog.NewTextHandler(log, nil))}
	t.Cleanup(e.Close)
	return e, log
}

// get reads by a Unix socket, or by TCP.
func get(t *testing.T, network, address, host string) (int, string) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Get("http://" + host + "/metrics")
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func noErrors(t *testing.T, e *Exposer) {
	t.Helper()
	if errs := e.Errors(); len(errs) > 0 {
		t.Fatal(errs)
	}
}

func TestSocket(t *testing.T) {
	e, _ := newExposer(t)
	path := filepath.Join(t.TempDir(), "metrics")
	e.Apply(Ways{Socket: path})
	noErrors(t, e)
	info, err := os.Stat(path)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	if code, body := get(t, "unix", path, "localhost"); code != 200 || !strings.Contains(body, "\nssh_broker_flows_total 9\n") {
		t.Errorf("%d %s", code, body)
	}
	// What is the same stays open; what is not wanted any more goes.
	e.Apply(Ways{Socket: path})
	if again, err := os.Stat(path); err != nil || !os.SameFile(info, again) {
		t.Errorf("the same way was opened anew: %v", err)
	}
	e.Apply(Ways{})
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is still there")
	}
}

// TestSocketOfOthers: neither root nor the broker's own user is turned away by mode and
// credentials both, so each is seen alone.
func TestSocketOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		skip(t, "needs root to be somebody else")
	}
	for _, program := range []string{"setpriv", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			skip(t, "needs "+program)
		}
	}
	e, _ := newExposer(t)
	dir, err := os.MkdirTemp("", "sshbroker-metrics-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "metrics")
	e.Apply(Ways{Socket: path})
	noErrors(t, e)
	curl := func(args ...string) (string, error) {
		out, err := exec.Command("setpriv", append(append([]string{"--clear-groups"}, args...), "curl", "-sS", "--unix-socket", path, "http://localhost/metrics")...).CombinedOutput()
		return string(out), err
	}
	other := []string{"--reuid", "54321", "--regid", "54321"}
	if out, err := curl(other...); err == nil || strings.Contains(out, "ssh_broker") {
		t.Errorf("mode: %v %s", err, out)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if out, err := curl(other...); err == nil || strings.Contains(out, "ssh_broker") {
		t.Errorf("credentials: %v %s", err, out)
	}
	out, err := curl("--reuid", "0", "--regid", "0")
	if err != nil {
		t.Fatalf("root: %v %s", err, out)
	}
	wantLines(t, out, "ssh_broker_metrics_refused_total 1")
}

func TestPlaceOfSocket(t *testing.T) {
	dir := t.TempDir()
	dead, file, live := filepath.Join(dir, "dead"), filepath.Join(dir, "file"), filepath.Join(dir, "live")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", live)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()

	e, log := newExposer(t)
	e.Apply(Ways{Socket: dead})
	noErrors(t, e)
	for path, want := range map[string]string{file: "is not a socket is in the way", live: "another program's socket", filepath.Join(dir, "none", "x"): "no such file"} {
		e.Apply(Ways{Socket: path})
		if errs := e.Errors(); len(errs) != 1 || !strings.Contains(errs[0].Error(), want) {
			t.Errorf("%s: %v", path, errs)
		}
		if !strings.Contains(log.String(), want) {
			t.Errorf("%s is not in the log: %s", path, log)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "mine" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := os.Stat(live); err != nil {
		t.Error(err)
	}
}

// TestLoopback: whoever asks by another name than this host's is a page in a browser.
func TestLoopback(t *testing.T) {
	e, _ := newExposer(t)
	address := freePort(t)
	e.Apply(Ways{Listen: address})
	noErrors(t, e)
	for host, want := range map[string]int{"localhost": 200, address: 200, "[::1]:80": 200, "evil.example": 403, "localhost.evil.example:80": 403} {
		if code, body := get(t, "tcp", address, host); code != want || (code == 200) != strings.Contains(body, "ssh_broker_flows_total") {
			t.Errorf("%s: %d %.100s", host, code, body)
		}
	}
	for _, a := range []string{"0.0.0.0:9464", "[::]:9464", "192.0.2.1:9464", ":9464", "localhost:9464", "x"} {
		e.Apply(Ways{Listen: a})
		if errs := e.Errors(); len(errs) != 1 {
			t.Errorf("%s: %v", a, errs)
		}
	}
}

// TestSlowReader: one that sends nothing, or reads nothing, keeps nobody else from it.
func TestSlowReader(t *testing.T) {
	e, _ := newExposer(t)
	path := filepath.Join(t.TempDir(), "metrics")
	e.Apply(Ways{Socket: path})
	for range scrape.MaxConns / 2 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	if code, _ := get(t, "unix", path, "localhost"); code != 200 {
		t.Errorf("%d", code)
	}
	e.Close() // does not wait for them
}

func TestTextfile(t *testing.T) {
	e, log := newExposer(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "ssh-broker.prom")
	e.Apply(Ways{Textfile: path, Interval: time.Millisecond})
	var first fs.FileInfo
	within(t, "two writings", func() bool {
		info, err := os.Stat(path)
		if err != nil {
			return false
		}
		if first == nil {
			first = info
		}
		return !os.SameFile(first, info)
	})
	// Whoever reads it sees all of it, whenever that is.
	for range 200 {
		b, err := os.ReadFile(path)
		if err != nil || !bytes.HasSuffix(b, []byte("\n")) || !strings.Contains(string(b), "ssh_broker_flows_total 9") || !strings.Contains(string(b), "ssh_broker_user_limit") {
			t.Fatalf("half a file: %v\n%s", err, b)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("node_exporter, another user, cannot read it: %v %v", info, err)
	}
	e.Close()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if log.String() != "" {
		t.Errorf("log: %s", log)
	}
}

// TestTextfileFails: once in the log, counted each time, and it goes on.
func TestTextfileFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later") // removed after the exposer is closed
	e, log := newExposer(t)
	path := filepath.Join(dir, "ssh-broker.prom")
	e.Apply(Ways{Textfile: path, Interval: time.Millisecond})
	within(t, "some failures", func() bool {
		return strings.Contains(text(t, e.Metrics), "ssh_broker_metrics_write_errors_total 5")
	})
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	within(t, "the file", func() bool { _, err := os.Stat(path); return err == nil })
	within(t, "word of it", func() bool { return strings.Contains(log.String(), "written again") })
	if n := strings.Count(log.String(), "cannot be written"); n != 1 {
		t.Errorf("told %d times: %s", n, log)
	}
}

func within(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no " + what)
		}
	}
}
