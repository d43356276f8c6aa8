package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sshbroker/broker/gateway/gatewaytest"
	"sshbroker/broker/gateway/gwconfig"
	"sshbroker/profiles/tlstun/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what has to come.
const patience = 20 * time.Second

// world is a gateway with its authority and its files, and a backend that echoes.
type world struct {
	t        testing.TB
	dir      string
	ca       *gatewaytest.Authority // of clients
	serverCA *gatewaytest.Authority
	addr     string // of the gateway
	own      string // of the service that has a port of its own
	echo     *backend
	names    *names
	gw       *Gateway
	log      *transcript
	ended    chan error
}

// services that most tests use; %[1]s is the address and %[2]d the port of the echo,
// %[3]d a port of its own.
const services = `
services:
  - name: echo
    tls_sni: echo.test
    backend: {target: {name: %[1]s, port: %[2]d}}
    policy: staff
  - name: own
    port: %[3]d
    backend: {target: {name: %[1]s, port: %[2]d}}
    policy: staff
  - name: web
    tls_sni: web.test
    description: what the staff needs
    kind: http
    client: {port: 18080, allow_override: false}
    backend:
      http_connect: true
      dns_overrides: {old.test: new.test}
      allow_patterns:
        - hostnames: ["*.test"]
          cidrs: [127.0.0.0/8]
      exclude_patterns:
        - hostnames: [secret.test]
    policy: staff
  - name: admins
    tls_sni: admins.test
    backend: {target: {name: %[1]s, port: %[2]d}}
    policy: admins
roles:
  - name: staff
    email_domains: [example.com]
  - name: admin
    emails: [root@example.com]
policies:
  - name: staff
    roles: [staff]
  - name: admins
    roles: [admin]
`

type setup struct {
	services string // the constant of that name
	top      string // further lines at the top, as limits
	names    map[string][]string
	backend  func(*net.TCPConn)
}

func freePort(t testing.TB) uint16 { return freePorts(t, 1)[0] }

// freePorts are different ones.
func freePorts(t testing.TB, n int) []uint16 {
	t.Helper()
	var ports []uint16
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // all are open at once
		ports = append(ports, uint16(l.Addr().(*net.TCPAddr).Port))
	}
	return ports
}

func newWorld(t testing.TB, s setup) *world {
	t.Helper()
	w := prepare(t, s)
	w.start()
	return w
}

// prepare writes all files and starts nothing.
func prepare(t testing.TB, s setup) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), ca: gatewaytest.NewAuthority(t, "clients", nil), serverCA: gatewaytest.NewAuthority(t, "servers", nil),
		names: &names{zone: map[string][]string{"new.test": {"127.0.0.1"}, "a.test": {"127.0.0.1"}}}, log: new(transcript)}
	for name, addrs := range s.names {
		w.names.zone[name] = addrs
	}
	if s.backend == nil {
		s.backend = func(c *net.TCPConn) { io.Copy(c, c); c.CloseWrite() }
	}
	w.echo = newBackend(t, s.backend)
	w.ca.WriteCA(w.dir, "ca.pem")
	gatewaytest.Write(t, w.dir, "ca.crl", w.ca.List(nil))
	gatewaytest.WritePair(t, w.dir, "server", w.serverCA.Server("gw.test", "echo.test", "web.test", "admins.test"))
	ports := freePorts(t, 2)
	own := ports[1]
	w.addr = fmt.Sprintf("127.0.0.1:%d", ports[0])
	w.own = fmt.Sprintf("127.0.0.1:%d", own)
	if s.services == "" {
		s.services = services
	}
	w.configure(s.top, fmt.Sprintf(s.services, w.echo.addr.Addr(), w.echo.addr.Port(), own))
	return w
}

// configure writes the configuration.
func (w *world) configure(top, services string) {
	w.t.Helper()
	text := fmt.Sprintf("listen: %q\ncertificates: [{certificate: server.pem, key: server.key}]\nclient_ca: ca.pem\ncrl: ca.crl\naudit: {file: audit.jsonl}\n%s\n%s",
		w.addr, top, services)
	gatewaytest.Write(w.t, w.dir, "gateway.yaml", []byte(text))
}

// change replaces text in the configuration.
func (w *world) change(old, new string) {
	w.t.Helper()
	path := filepath.Join(w.dir, "gateway.yaml")
	text, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(text), old) {
		w.t.Fatalf("the configuration has no %q: %v", old, err)
	}
	gatewaytest.Write(w.t, w.dir, "gateway.yaml", []byte(strings.ReplaceAll(string(text), old, new)))
}

func (w *world) start() { w.startWith(context.Background()) }

func (w *world) startWith(ctx context.Context) {
	w.t.Helper()
	gw, err := New(Options{
		Load:     func() (*gwconfig.Config, error) { return gwconfig.Load(filepath.Join(w.dir, "gateway.yaml")) },
		Log:      slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Version:  "test",
		Resolver: w.names,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.gw, w.ended = gw, make(chan error, 1)
	go func() { w.ended <- gw.Run(ctx) }()
	w.t.Cleanup(w.end)
}

// end stops the gateway, with nothing left of it.
func (w *world) end() {
	if w.gw == nil {
		return
	}
	w.gw.Stop(0)
	if err := w.stopped(); err != nil {
		w.t.Errorf("the gateway has ended with %v", err)
	}
	if w.t.Failed() {
		w.t.Logf("log:\n%s", w.log)
	}
}

func (w *world) stopped() error {
	w.gw = nil
	select {
	case err := <-w.ended:
		return err
	case <-time.After(patience):
		w.t.Fatal("the gateway does not end")
		return nil
	}
}

func (w *world) client(email string) tls.Certificate { return w.ca.Client(email) }

// tlsConfig is a client's.
func (w *world) tlsConfig(cert tls.Certificate, name string, protocols ...string) *tls.Config {
	config := &tls.Config{RootCAs: w.serverCA.Pool(), ServerName: name, NextProtos: protocols, MinVersion: tls.VersionTLS13}
	if cert.Leaf != nil {
		// Whatever authorities the gateway names.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	}
	return config
}

// dial makes a connection by the name of a service. In TLS 1.3 a refusal comes with the
// first read.
func (w *world) dial(cert tls.Certificate, name string, protocols ...string) *tls.Conn {
	w.t.Helper()
	conn, err := tls.Dial("tcp", w.addr, w.tlsConfig(cert, name, protocols...))
	if err != nil {
		w.t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(patience))
	w.t.Cleanup(func() { conn.Close() })
	return conn
}

// mux makes a session as our own clients do.
func (w *world) mux(cert tls.Certificate, name string) *wire.Session {
	w.t.Helper()
	conn := w.dial(cert, name, wire.ALPN)
	conn.SetDeadline(time.Time{})
	s, err := wire.Client(conn)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { s.Close() })
	return s
}

// ask opens a stream and asks for something. The stream is nil where the answer is not OK.
func (w *world) ask(s *wire.Session, q wire.Request) (*wire.Stream, wire.Answer) {
	w.t.Helper()
	stream, a, err := ask(s, q)
	if err != nil {
		w.t.Fatal(err)
	}
	if stream != nil {
		stream.SetDeadline(time.Now().Add(patience))
		w.t.Cleanup(func() { stream.Close() })
	}
	return stream, a
}

func ask(s *wire.Session, q wire.Request) (*wire.Stream, wire.Answer, error) {
	ys, err := s.Open()
	if err != nil {
		return nil, wire.Answer{}, err
	}
	if err := wire.WriteRequest(ys, q); err != nil {
		return nil, wire.Answer{}, err
	}
	ys.SetReadDeadline(time.Now().Add(patience))
	a, err := wire.ReadAnswer(ys)
	ys.SetReadDeadline(time.Time{})
	stream := s.NewStream(ys)
	if err != nil || a.Status != wire.OK {
		stream.Close()
		return nil, a, err
	}
	return stream, a, nil
}

// flowTo is a request for a destination.
func (w *world) flowTo(host string) wire.Request {
	return wire.Request{Kind: wire.KindFlow, Host: host, Port: w.echo.addr.Port(), Flow: "flow-1", Program: "/bin/test"}
}

// echoes sends a line and wants it back.
func (w *world) echoes(c io.ReadWriter, line string) {
	w.t.Helper()
	if _, err := io.WriteString(c, line); err != nil {
		w.t.Fatal(err)
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != line {
		w.t.Fatalf("got %q, %v, want %q", got, err, line)
	}
}

// record is a line of the audit file.
type record struct {
	V           int      `json:"v"`
	Event       string   `json:"event"`
	Instance    string   `json:"instance"`
	Flow        uint64   `json:"flow"`
	FlowID      string   `json:"flow_id"`
	Connection  uint64   `json:"connection"`
	Generation  uint64   `json:"generation"`
	Client      string   `json:"client"`
	Carrier     string   `json:"carrier"`
	Serial      string   `json:"serial"`
	Emails      []string `json:"emails"`
	Program     string   `json:"program"`
	Host        string   `json:"host"`
	Port        uint16   `json:"port"`
	Service     string   `json:"service"`
	Rule        string   `json:"rule"`
	Permissive  bool     `json:"permissive"`
	Target      string   `json:"target"`
	Dialled     string   `json:"dialled"`
	Reason      string   `json:"reason"`
	Error       string   `json:"error"`
	ClientEnd   string   `json:"client_end"`
	BackendEnd  string   `json:"backend_end"`
	BytesUp     int64    `json:"bytes_up"`
	BytesDown   int64    `json:"bytes_down"`
	DurationMS  float64  `json:"duration_ms"`
	Fingerprint string   `json:"fingerprint"`
}

// records reads the audit file.
func (w *world) records() []record {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(w.dir, "audit.jsonl"))
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

// await waits for a record that fits.
func (w *world) await(what string, fits func(record) bool) record {
	w.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(2 * time.Millisecond) {
		for _, r := range w.records() {
			if fits(r) {
				return r
			}
		}
	}
	w.t.Fatalf("no record of %s: %+v", what, w.records())
	return record{}
}

func (w *world) awaitEvent(event, reason string) record {
	w.t.Helper()
	return w.await(event+" "+reason, func(r record) bool { return r.Event == event && r.Reason == reason })
}

// backend is a server behind the gateway.
type backend struct {
	*net.TCPListener
	addr netip.AddrPort

	mu    sync.Mutex
	conns map[*net.TCPConn]bool
	count int
}

func newBackend(t testing.TB, serve func(*net.TCPConn)) *backend {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{TCPListener: l.(*net.TCPListener), addr: l.Addr().(*net.TCPAddr).AddrPort(), conns: map[*net.TCPConn]bool{}}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := b.AcceptTCP()
			if err != nil {
				return
			}
			b.mu.Lock()
			b.conns[c] = true
			b.count++
			b.mu.Unlock()
			serving.Go(func() {
				defer func() {
					b.mu.Lock()
					delete(b.conns, c)
					b.mu.Unlock()
					c.Close()
				}()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		b.mu.Lock()
		for c := range b.conns {
			c.Close()
		}
		b.mu.Unlock()
		serving.Wait()
	})
	return b
}

// accepted is how many connections there ever were.
func (b *backend) accepted() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.count
}

// names is a resolver. An entry with several values beginning with "|" gives one after
// the other, the last for ever.
type names struct {
	mu    sync.Mutex
	zone  map[string][]string
	asked []string
}

func (n *names) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	host = strings.TrimSuffix(host, ".") // no search list
	n.asked = append(n.asked, host)
	values := n.zone[host]
	if len(values) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	if next, ok := strings.CutPrefix(values[0], "|"); ok {
		if len(values) > 1 {
			n.zone[host] = values[1:]
		}
		values = []string{next}
	}
	var addrs []netip.Addr
	for _, v := range values {
		addrs = append(addrs, netip.MustParseAddr(v))
	}
	return addrs, nil
}

// transcript is what the gateway logs.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.Write(p)
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

// awaitLog waits for a line of the gateway's log.
func (w *world) awaitLog(text string) {
	w.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(2 * time.Millisecond) {
		if strings.Contains(w.log.String(), text) {
			return
		}
	}
	w.t.Fatalf("the log has no %q:\n%s", text, w.log)
}

// refusal reads what a server says to a client that it does not want, after the
// handshake as the client sees it.
func refusalOf(conn *tls.Conn) error {
	_, err := conn.Read(make([]byte, 1))
	return err
}

// answerOf reads an answer of HTTP: the status line and the fields.
func answerOf(t testing.TB, r *bufio.Reader) string {
	t.Helper()
	var text strings.Builder
	for {
		line, err := r.ReadString('\n')
		text.WriteString(line)
		if line == "\r\n" {
			return text.String()
		}
		if err != nil {
			if errors.Is(err, io.EOF) && text.Len() > 0 {
				return text.String()
			}
			t.Fatalf("answer %q: %v", text.String(), err)
		}
	}
}
