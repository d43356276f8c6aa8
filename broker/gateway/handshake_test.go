package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"sshbroker/broker/gateway/gatewaytest"
	"sshbroker/profiles/tlstun/wire"
)

// Every certificate that is not one to be taken is refused with an alert, a log line and
// a count, and reaches nothing.
func TestRefusedHandshakes(t *testing.T) {
	w := prepare(t, setup{})
	template := func(change func(*x509.Certificate)) tls.Certificate {
		c := gatewaytest.ClientTemplate("anna@example.com")
		change(c)
		return w.ca.Sign(c)
	}
	revoked := w.client("anna@example.com")
	gatewaytest.Write(t, w.dir, "ca.crl", w.ca.List(nil, revoked.Leaf))
	w.start()
	now := time.Now()
	for _, tc := range []struct {
		outcome string
		cert    tls.Certificate
		name    string
		protos  []string
		alert   string
	}{
		{"no-certificate", tls.Certificate{}, "echo.test", nil, "certificate required"},
		{"unknown-authority", gatewaytest.NewAuthority(t, "other", nil).Client("anna@example.com"), "echo.test", nil, "unknown certificate authority"},
		{"unknown-authority", gatewaytest.NewAuthority(t, "clients", nil).Client("anna@example.com"), "echo.test", nil, "unknown certificate authority"},
		{"expired", template(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Second) }), "echo.test", nil, "expired certificate"},
		{"not-yet-valid", template(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(time.Hour), now.Add(2*time.Hour) }), "echo.test", nil, "expired certificate"},
		{"wrong-usage", template(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "echo.test", nil, "bad certificate"},
		{"wrong-usage", template(func(c *x509.Certificate) { c.ExtKeyUsage = nil }), "echo.test", nil, "bad certificate"},
		{"wrong-usage", template(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }), "echo.test", nil, "bad certificate"},
		{"revoked", revoked, "echo.test", nil, "bad certificate"},
		{"revoked", revoked, "gw.test", []string{wire.ALPN}, "bad certificate"},
		{"no-identity", template(func(c *x509.Certificate) { c.EmailAddresses, c.URIs = nil, nil }), "echo.test", nil, "bad certificate"},
		{"no-role", w.client("anna@elsewhere.example"), "echo.test", nil, "bad certificate"},
		{"no-role", w.client("anna@elsewhere.example"), "gw.test", []string{wire.ALPN}, "bad certificate"},
		{"no-role", w.client("anna@example.com"), "admins.test", nil, "bad certificate"},
		{"no-protocol", w.client("anna@example.com"), "web.test", []string{"h2"}, "no application protocol"},
	} {
		t.Run(tc.outcome, func(t *testing.T) {
			name := `ssh_gateway_handshakes_total{outcome="` + tc.outcome + `"}`
			count := w.metric(name)
			config := w.tlsConfig(tc.cert, tc.name, tc.protos...)
			conn, err := tls.Dial("tcp", w.addr, config)
			if err == nil {
				conn.SetDeadline(time.Now().Add(patience))
				io.WriteString(conn, strings.Repeat("said before the refusal was read ", 100))
				err = refusalOf(conn)
				conn.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.alert) {
				t.Errorf("the client sees %v, want %q", err, tc.alert)
			}
			if err := w.eventually(func() bool { return w.metric(name) == count+1 }); err != nil {
				t.Errorf("counted %v, want %v", w.metric(name), count+1)
			}
			w.awaitLog("outcome=" + tc.outcome)
		})
	}
	if n := w.echo.accepted(); n != 0 {
		t.Errorf("the backend was connected to %d times", n)
	}
	for _, r := range w.records() {
		if r.Event != "start" {
			t.Errorf("a record %+v", r)
		}
	}
}

// TLS 1.2 is not spoken, nor is anything but TLS.
func TestOldAndForeignProtocols(t *testing.T) {
	w := newWorld(t, setup{})
	config := w.tlsConfig(w.client("anna@example.com"), "echo.test")
	config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, err := tls.Dial("tcp", w.addr, config); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("TLS 1.2: %v", err)
	}
	w.awaitLog("outcome=tls-version")
	for _, text := range []string{"GET / HTTP/1.1\r\n\r\n", "SSH-2.0-x\r\n", "\x00\x00\x00\x00\x00\x00\x00"} {
		c, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, text)
		c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, c)
		c.Close()
	}
	w.awaitLog("outcome=not-tls")
}

// A client that stalls is not waited for longer than the limit says.
func TestStalledHandshake(t *testing.T) {
	w := newWorld(t, setup{top: "limits: {handshake_timeout: 1s}"})
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	io.Copy(io.Discard, c) // until the gateway closes it
	w.awaitLog("outcome=timeout")
	// Nor for a request behind the handshake.
	conn := w.dial(w.client("anna@example.com"), "web.test")
	io.WriteString(conn, "CONNECT ")
	if text, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 408 ") || strings.Contains(string(text), "127.0.0.1") {
		t.Errorf("a stalled request: %q, %v", text, err)
	}
	w.awaitEvent("refused", "bad-request")
	ys, err := w.mux(w.client("anna@example.com"), "gw.test").Open()
	if err != nil {
		t.Fatal(err)
	}
	ys.SetDeadline(time.Now().Add(patience))
	ys.Write([]byte{0})
	if a, err := wire.ReadAnswer(ys); err != nil || a.Status != wire.BadRequest {
		t.Errorf("a stalled stream: %+v, %v", a, err)
	}
}

// sessions keeps what servers hand out for resumption.
type sessions struct{ put int }

func (s *sessions) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (s *sessions) Put(_ string, c *tls.ClientSessionState) {
	if c != nil {
		s.put++
	}
}

// No identity can be resumed: there are no tickets, and one of an earlier server with
// the same certificate is worth nothing. A certificate that was revoked meanwhile is
// refused on the next connection of the same client.
func TestNoResumption(t *testing.T) {
	w := newWorld(t, setup{})
	cert := w.client("anna@example.com")
	config := w.tlsConfig(cert, "echo.test")
	kept := &sessions{}
	config.ClientSessionCache = kept
	first, err := tls.Dial("tcp", w.addr, config)
	if err != nil {
		t.Fatal(err)
	}
	w.echoes(first, "hello")
	first.Close()
	if kept.put != 0 {
		t.Errorf("the gateway gave %d tickets out", kept.put)
	}
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for i := range 2 {
		c, err := tls.Dial("tcp", w.addr, config)
		if err != nil {
			t.Fatal(err)
		}
		w.echoes(c, "hello")
		if c.ConnectionState().DidResume {
			t.Errorf("connection %d was resumed", i)
		}
		c.Close()
	}
	gatewaytest.Write(t, w.dir, "ca.crl", w.ca.List(nil, cert.Leaf))
	if err := w.gw.Reload(); err != nil {
		t.Fatal(err)
	}
	c, err := tls.Dial("tcp", w.addr, config)
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		err = refusalOf(c)
	}
	if err == nil || !strings.Contains(err.Error(), "bad certificate") {
		t.Errorf("revoked: %v", err)
	}
	w.awaitLog("outcome=revoked")
}

// A client that sends a ticket it got elsewhere, under the same name, is not let in by it.
func TestForeignTicket(t *testing.T) {
	w := newWorld(t, setup{})
	cert := w.client("anna@example.com")
	// A server with the gateway's own certificate that gives tickets out.
	pair, err := tls.LoadX509KeyPair(w.dir+"/server.pem", w.dir+"/server.key")
	if err != nil {
		t.Fatal(err)
	}
	other, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.ca.Pool()})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := other.Accept()
		if err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	config := w.tlsConfig(cert, "echo.test")
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	c, err := tls.Dial("tcp", other.Addr().String(), config)
	if err != nil {
		t.Fatal(err)
	}
	w.echoes(c, "hello")
	c.Close()
	<-done
	if s, ok := config.ClientSessionCache.Get("echo.test"); !ok || s == nil {
		t.Fatal("there is no ticket to try")
	}
	c, err = tls.Dial("tcp", w.addr, config)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w.echoes(c, "hello")
	if c.ConnectionState().DidResume {
		t.Error("a foreign ticket was taken")
	}
}

// ALPN decides what is spoken.
func TestProtocols(t *testing.T) {
	w := newWorld(t, setup{})
	cert := w.client("anna@example.com")
	for _, tc := range []struct {
		name   string
		offer  []string
		agreed string
	}{
		{"echo.test", nil, ""},
		{"echo.test", []string{"h2", "http/1.1"}, ""},
		{"echo.test", []string{"h2", wire.ALPN}, wire.ALPN},
		{"ECHO.test", []string{wire.ALPN}, wire.ALPN},
		{"web.test", nil, ""},
		{"web.test", []string{"h2", "http/1.1"}, "http/1.1"},
		{"gw.test", []string{wire.ALPN, "http/1.1"}, wire.ALPN},
		{"gw.test", []string{"http/1.1"}, "http/1.1"},
	} {
		c := w.dial(cert, tc.name, tc.offer...)
		if got := c.ConnectionState().NegotiatedProtocol; got != tc.agreed {
			t.Errorf("%s %v: %q, want %q", tc.name, tc.offer, got, tc.agreed)
		}
		c.Close()
	}
}

// Without a service for it, a name that nobody has gets the alert for that.
func TestUnknownName(t *testing.T) {
	w := prepare(t, setup{})
	w.change("http_connect: true", "target: {name: 127.0.0.1, port: 1}")
	w.change("      allow_patterns:\n        - hostnames: [\"*.test\"]\n          cidrs: [127.0.0.0/8]\n      exclude_patterns:\n        - hostnames: [secret.test]\n", "")
	w.start()
	cert := w.client("anna@example.com")
	if _, err := tls.Dial("tcp", w.addr, w.tlsConfig(cert, "gw.test")); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("got %v", err)
	}
	w.awaitLog("outcome=unknown-service")
}

// metricsText is what Prometheus would get.
func (w *world) metricsText() string {
	w.t.Helper()
	families, err := w.gw.metrics.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	return families
}

// metric is one value of it, 0 where it is not there.
func (w *world) metric(name string) float64 {
	w.t.Helper()
	lines := strings.Split(w.metricsText(), "\n")
	i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, name+" ") })
	if i < 0 {
		return 0
	}
	var v float64
	if _, err := fmt.Sscan(strings.TrimPrefix(lines[i], name+" "), &v); err != nil {
		w.t.Fatal(err)
	}
	return v
}
