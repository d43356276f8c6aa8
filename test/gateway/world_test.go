package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sshbroker/broker/gateway/gatewaytest"
	"sshbroker/profiles"
	"sshbroker/profiles/tuntest"
	"sshbroker/test/sut"
)

func TestMain(m *testing.M) { sut.Main(m, nil) }

// patience is how long a test waits for what has to come.
const patience = 20 * time.Second

// world is the files of a gateway, and the gateway while it runs.
type world struct {
	t    testing.TB
	dir  string
	addr string
	ca   *gatewaytest.Authority // of clients and servers

	cmd    *exec.Cmd
	output *transcript
	ended  chan error
}

// newWorld writes a configuration and starts the gateway. services is what stands below
// the key services.
func newWorld(t testing.TB, limits, services string) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), addr: fmt.Sprintf("127.0.0.1:%d", freePort(t)), ca: gatewaytest.NewAuthority(t, "authority", nil)}
	if !strings.Contains(limits, "drain_timeout") {
		limits = strings.TrimPrefix(limits+", drain_timeout: 1s", ", ")
	}
	w.ca.WriteCA(w.dir, "ca.pem")
	gatewaytest.WritePair(t, w.dir, "server", w.ca.Server("127.0.0.1", "gw.test", "web.test", "db.test", "echo.test", "proxy.test"))
	gatewaytest.WritePair(t, w.dir, "anna", w.ca.Client("anna@example.com"))
	text := fmt.Sprintf(`listen: %q
certificates: [{certificate: server.pem, key: server.key}]
client_ca: ca.pem
audit: {file: audit.jsonl}
metrics: "unix:metrics.sock"
limits: {%s}
services:
%s
roles: [{name: staff, email_domains: [example.com, example.org]}]
policies: [{name: staff, roles: [staff]}]
`, w.addr, limits, services)
	gatewaytest.Write(t, w.dir, "gateway.yaml", []byte(text))
	w.start()
	t.Cleanup(func() {
		if w.cmd != nil {
			w.stop()
		}
	})
	return w
}

// collection is a service for everything on loopback.
const collection = `
  - name: all
    tls_sni: proxy.test
    backend:
      http_connect: true
      allow_patterns: [{cidrs: [127.0.0.0/8, "::1/128"]}]
    policy: staff
`

func target(name, sni string, addr net.Addr) string {
	host, port, _ := net.SplitHostPort(addr.String())
	return fmt.Sprintf("\n  - name: %s\n    tls_sni: %s\n    backend: {target: {name: %q, port: %s}}\n    policy: staff\n", name, sni, host, port)
}

func (w *world) file(name string) string { return filepath.Join(w.dir, name) }

func (w *world) start() {
	w.t.Helper()
	w.output, w.ended = newTranscript(), make(chan error, 1)
	w.cmd = exec.Command(sut.Program(w.t, "ssh-gateway"), "--config", w.file("gateway.yaml"))
	w.cmd.Stderr = w.output
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := w.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func(cmd *exec.Cmd, ended chan<- error) { ended <- cmd.Wait() }(w.cmd, w.ended)
	w.output.waitFor(w.t, "configuration in force")
}

// stop is SIGTERM, twice: nothing is waited for.
func (w *world) stop() {
	w.t.Helper()
	w.cmd.Process.Signal(syscall.SIGTERM)
	w.cmd.Process.Signal(syscall.SIGTERM)
	if err := w.wait(); err != nil {
		w.t.Errorf("ssh-gateway: %v\n%s", err, w.output)
	}
}

func (w *world) wait() error {
	w.t.Helper()
	w.cmd = nil
	select {
	case err := <-w.ended:
		return err
	case <-time.After(patience):
		w.t.Fatalf("ssh-gateway does not end\n%s", w.output)
		return nil
	}
}

// profile is one of our own client's.
func (w *world) profile() *profiles.Profile {
	p := tuntest.ProfileFor(w.addr, "", "", "")
	p.Identities, p.KnownHosts = nil, nil
	p.Protocol = profiles.TLS
	p.TLS.CAFiles = []string{w.file("ca.pem")}
	p.TLS.Certificate, p.TLS.Key = w.file("anna.pem"), w.file("anna.key")
	return p
}

// record is a line of the audit file, as far as the tests ask.
type record struct {
	Event     string `json:"event"`
	Instance  string `json:"instance"`
	Flow      uint64 `json:"flow"`
	FlowID    string `json:"flow_id"`
	Carrier   string `json:"carrier"`
	Service   string `json:"service"`
	Reason    string `json:"reason"`
	ClientEnd string `json:"client_end"`
	BytesUp   int64  `json:"bytes_up"`
	BytesDown int64  `json:"bytes_down"`
}

func (w *world) records() []record {
	w.t.Helper()
	text, err := os.ReadFile(w.file("audit.jsonl"))
	if err != nil {
		w.t.Fatal(err)
	}
	var all []record
	for line := range bytes.Lines(text) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // it is being written
		}
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			w.t.Fatalf("record %q: %v", line, err)
		}
		all = append(all, r)
	}
	return all
}

func (w *world) await(what string, fits func(record) bool) record {
	w.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(5 * time.Millisecond) {
		for _, r := range w.records() {
			if fits(r) {
				return r
			}
		}
	}
	w.t.Fatalf("no record of %s: %+v", what, w.records())
	return record{}
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// serve runs a server on loopback until the test ends.
func serve(t *testing.T, handle func(*net.TCPConn)) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	live := map[net.Conn]bool{}
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			c, err := l.(*net.TCPListener).AcceptTCP()
			if err != nil {
				return
			}
			mu.Lock()
			live[c] = true
			mu.Unlock()
			tasks.Go(func() {
				defer func() {
					mu.Lock()
					delete(live, c)
					mu.Unlock()
					c.Close()
				}()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range live {
			c.Close()
		}
		mu.Unlock()
		tasks.Wait()
	})
	return l.Addr()
}

// command runs a program and returns what it prints.
func command(t testing.TB, stdin string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// requireProgram skips without a program, where that is allowed.
func requireProgram(t *testing.T, name, debianPackage string) {
	t.Helper()
	if _, err := exec.LookPath(name); err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("needs %s (Debian package %s), and CI=true allows no skip", name, debianPackage)
	}
	t.Skipf("needs %s (Debian package %s)", name, debianPackage)
}

// transcript is what a program prints.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{} // closed by the next write
}

func newTranscript() *transcript { return &transcript{more: make(chan struct{})} }

func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.more)
	t.more = make(chan struct{})
	return t.text.Write(p)
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

func (tr *transcript) waitFor(t testing.TB, text string) {
	t.Helper()
	limit := time.After(patience)
	for {
		tr.mu.Lock()
		more, said := tr.more, tr.text.String()
		tr.mu.Unlock()
		if strings.Contains(said, text) {
			return
		}
		select {
		case <-more:
		case <-limit:
			t.Fatalf("it does not say %q:\n%s", text, said)
		}
	}
}

// dial is a plain TLS client with Anna's certificate.
func (w *world) dial(name string) (*tls.Conn, error) {
	w.t.Helper()
	cert, err := tls.LoadX509KeyPair(w.file("anna.pem"), w.file("anna.key"))
	if err != nil {
		w.t.Fatal(err)
	}
	return tls.Dial("tcp", w.addr, &tls.Config{RootCAs: w.ca.Pool(), ServerName: name, Certificates: []tls.Certificate{cert}})
}

// metrics asks the gateway as Prometheus would.
func (w *world) metrics() string {
	w.t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", w.file("metrics.sock"))
		}}}
	answer, err := client.Get("http://gateway/metrics")
	if err != nil {
		w.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		w.t.Fatalf("%s: %v\n%s", answer.Status, err, text)
	}
	return string(text)
}

// awaitFlows waits until so many are open.
func (w *world) awaitFlows(n int) {
	w.t.Helper()
	want := fmt.Sprintf("\nssh_gateway_flows %d\n", n)
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
		if strings.Contains(w.metrics(), want) {
			return
		}
	}
	w.t.Fatalf("there are never %d flows", n)
}
