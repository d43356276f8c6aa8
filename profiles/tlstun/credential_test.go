package tlstun_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sshbroker/profiles"
	"sshbroker/profiles/tlstun/wire"
	"sshbroker/profiles/tuntest"
)

const patience = 20 * time.Second

// refused wants a connect to fail with class and words.
func refused(t *testing.T, name string, p *profiles.Profile, class error, words string) {
	t.Helper()
	tr, err := connector(t).Connect(t.Context(), p, nil, nil)
	if err == nil {
		tr.Close()
		t.Errorf("%s: connected", name)
		return
	}
	if !errors.Is(err, class) || !strings.Contains(err.Error(), words) {
		t.Errorf("%s: %v; want %v and %q", name, err, class, words)
	}
	for _, other := range []error{profiles.ErrConnect, profiles.ErrAuth, profiles.ErrHostKey, profiles.ErrSetup} {
		if other != class && errors.Is(err, other) {
			t.Errorf("%s: %v is of class %v too", name, err, other)
		}
	}
}

// with returns the profile with another certificate.
func with(p *profiles.Profile, certificate, key string) *profiles.Profile {
	q := *p
	q.TLS.Certificate, q.TLS.Key = certificate, key
	return &q
}

// TestOurCertificate: what is wrong with our certificate is told, before the server is
// asked where we can know, else in the words of its alert.
func TestOurCertificate(t *testing.T) {
	authority, other := tuntest.NewAuthority(t, "ours"), tuntest.NewAuthority(t, "theirs")
	revoked, revokedKey := authority.Issue(t, "revoked", nil)
	config := authority.Server(t, wire.ALPN)
	config.VerifyConnection = func(s tls.ConnectionState) error {
		if s.PeerCertificates[0].Subject.CommonName == "revoked" {
			return errors.New("revoked")
		}
		return nil
	}
	g := &tuntest.Gateway{TLS: config}
	p := tuntest.StartGateway(t, authority, g)
	issue := func(a *tuntest.Authority, name string, change func(*x509.Certificate)) *profiles.Profile {
		cert, key := a.Issue(t, name, change)
		return with(p, cert, key)
	}

	refused(t, "of another authority", issue(other, "other", nil), profiles.ErrAuth, "of an authority that the server does not know")
	refused(t, "revoked", with(p, revoked, revokedKey), profiles.ErrAuth, "revoked, or not admitted there")
	refused(t, "expired", issue(authority, "expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }),
		profiles.ErrSetup, "our certificate has expired, on ")
	refused(t, "not yet valid", issue(authority, "early", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }),
		profiles.ErrSetup, "not valid before")
	refused(t, "for servers", issue(authority, "server", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		profiles.ErrSetup, "lacks the extended key usage clientAuth")
	if n := g.Connections(); n != 0 {
		t.Errorf("the gateway has admitted %d of them", n)
	}
	none := with(p, "", "")
	refused(t, "none", none, profiles.ErrSetup, "give the profile certificate and key")

	// The server's clock is ahead.
	config.Time = func() time.Time { return time.Now().Add(13 * time.Hour) }
	refused(t, "expired there", p, profiles.ErrAuth, "expired, by the server's clock")
}

// TestFiles: files that cannot be used are named.
func TestFiles(t *testing.T) {
	authority := tuntest.NewAuthority(t, "ours")
	p := tuntest.StartGateway(t, authority, &tuntest.Gateway{})
	_, otherKey := authority.Issue(t, "other", nil)
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	open := file("open.key", "x")
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(p.TLS.Key)
	if err != nil {
		t.Fatal(err)
	}
	ca := func(files ...string) *profiles.Profile {
		q := *p
		q.TLS.CAFiles = files
		return &q
	}
	for name, c := range map[string]struct {
		p     *profiles.Profile
		words string
	}{
		"key of another":           {with(p, p.TLS.Certificate, otherKey), "private key does not match"},
		"no such certificate":      {with(p, "/nowhere/me.pem", p.TLS.Key), "/nowhere/me.pem"},
		"no such key":              {with(p, p.TLS.Certificate, "/nowhere/me.key"), "/nowhere/me.key"},
		"key open to others":       {with(p, p.TLS.Certificate, open), "others may read it"},
		"garbage for a key":        {with(p, p.TLS.Certificate, file("bad.key", "garbage")), "bad.key"},
		"key with a passphrase":    {with(p, p.TLS.Certificate, file("enc.key", strings.ReplaceAll(string(key), "PRIVATE KEY", "ENCRYPTED PRIVATE KEY"))), "has a passphrase"},
		"garbage for an authority": {ca(file("bad.pem", "garbage")), "no PEM certificate in it"},
		"half an authority":        {ca(authority.File, file("half.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")), "half.pem: certificate 1"},
		"no authority":             {ca(), "no authority to trust"},
		"a directory":              {ca(dir), "not a regular file"},
	} {
		refused(t, name, c.p, profiles.ErrSetup, c.words)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := mkfifo(fifo); err != nil {
		t.Fatal(err)
	}
	refused(t, "a pipe that nobody writes to", ca(fifo), profiles.ErrSetup, "not a regular file")
}

// TestServers: servers that are not the one that is meant, or none at all.
func TestServers(t *testing.T) {
	authority, other := tuntest.NewAuthority(t, "ours"), tuntest.NewAuthority(t, "theirs")
	at := func(address string) *profiles.Profile { return tuntest.TLSProfile(t, authority, address) }

	strange := tuntest.StartGateway(t, authority, &tuntest.Gateway{TLS: other.Server(t, wire.ALPN)})
	refused(t, "of another authority", strange, profiles.ErrHostKey, "comes from no authority that the profile trusts")

	named := *tuntest.StartGateway(t, authority, &tuntest.Gateway{})
	named.TLS.ServerName = "gateway.example.org"
	refused(t, "with another name", &named, profiles.ErrHostKey, "is for another name")

	old := authority.Server(t, wire.ALPN)
	cert, key := authority.Issue(t, "old-server", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	old.Certificates = []tls.Certificate{pair}
	refused(t, "expired", tuntest.StartGateway(t, authority, &tuntest.Gateway{TLS: old}), profiles.ErrHostKey, "has expired")

	refused(t, "without ALPN", tuntest.StartGateway(t, authority, &tuntest.Gateway{TLS: authority.Server(t)}), profiles.ErrSetup, "does not speak ssh-broker/1")
	refused(t, "with another ALPN", tuntest.StartGateway(t, authority, &tuntest.Gateway{TLS: authority.Server(t, "h2")}), profiles.ErrSetup, "does not speak ssh-broker/1")

	tls12 := authority.Server(t, wire.ALPN)
	tls12.MinVersion, tls12.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	refused(t, "of TLS 1.2", tuntest.StartGateway(t, authority, &tuntest.Gateway{TLS: tls12}), profiles.ErrSetup, "does not speak TLS 1.3")

	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	refused(t, "of HTTP", at(web.Listener.Addr().String()), profiles.ErrConnect, "does not speak TLS there, but HTTP")

	refused(t, "of nothing", at(serve(t, func(c net.Conn) { c.Read(make([]byte, 10)) })), profiles.ErrConnect, "closed during the handshake")
	refused(t, "of SSH", at(serve(t, func(c net.Conn) { io.WriteString(c, "SSH-2.0-OpenSSH_9.2p1\r\n"); c.Read(make([]byte, 10)) })), profiles.ErrConnect, "does not speak TLS there")

	stalled := at(serve(t, func(c net.Conn) { io.Copy(io.Discard, c) }))
	stalled.ConnectTimeout = 50 * time.Millisecond
	refused(t, "that says nothing", stalled, profiles.ErrConnect, "no connection within 50ms")

	// One that shakes hands and then says nothing.
	mute := at(serve(t, func(c net.Conn) {
		conn := tls.Server(c, authority.Server(t, wire.ALPN))
		conn.Handshake()
		io.Copy(io.Discard, c)
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := connector(t).Connect(ctx, mute, nil, nil); !errors.Is(err, profiles.ErrConnect) {
		t.Errorf("one that is mute: %v", err)
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	refused(t, "that is down", at(l.Addr().String()), profiles.ErrConnect, "connection refused")
}

// serve runs handle for each connection to a new listener.
func serve(t *testing.T, handle func(c net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var tasks sync.WaitGroup
	over := make(chan struct{})
	tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() {
				defer c.Close()
				tasks.Go(func() { <-over; c.Close() })
				handle(c)
			})
		}
	})
	t.Cleanup(func() { close(over); l.Close(); tasks.Wait() })
	return l.Addr().String()
}

// pool is one with a connector of this package.
func pool(t *testing.T) *profiles.Pool {
	c := connector(t)
	pl := profiles.NewPool(c, c.Log)
	t.Cleanup(func() { pl.Close() })
	return pl
}

// echoing opens a flow to an echo and shows that it works.
func echoing(t *testing.T, pl *profiles.Pool, p *profiles.Profile, dst profiles.Destination) profiles.Stream {
	t.Helper()
	s, err := pl.Open(t.Context(), p, dst, nil)
	if err != nil {
		t.Fatal(err)
	}
	works(t, s)
	return s
}

func works(t *testing.T, s profiles.Stream) {
	t.Helper()
	s.SetDeadline(time.Now().Add(patience))
	got := make([]byte, 4)
	if _, err := io.WriteString(s, "ping"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, got); err != nil || string(got) != "ping" {
		t.Fatalf("%q, %v", got, err)
	}
}

func echo(t *testing.T) profiles.Destination {
	addr := serve(t, func(c net.Conn) { io.Copy(c, c) })
	at, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return profiles.Destination{Host: at.IP.String(), Port: uint16(at.Port)}
}

// TestRenewedCertificate: new flows show the new certificate on a new connection, and the
// open ones stay where they are. A pair that does not fit yet changes nothing.
func TestRenewedCertificate(t *testing.T) {
	authority := tuntest.NewAuthority(t, "ours")
	config := authority.Server(t, wire.ALPN)
	var mu sync.Mutex
	var shown []string
	config.VerifyConnection = func(s tls.ConnectionState) error {
		mu.Lock()
		defer mu.Unlock()
		shown = append(shown, s.PeerCertificates[0].SerialNumber.String())
		return nil
	}
	g := &tuntest.Gateway{TLS: config}
	p := tuntest.StartGateway(t, authority, g)
	p.IdleTimeout = -1
	pl, dst := pool(t), echo(t)
	old := echoing(t, pl, p, dst)

	half, key := authority.Issue(t, "next", nil)
	replace(t, half, p.TLS.Certificate) // the key comes later
	time.Sleep(100 * time.Millisecond)  // nothing is to happen
	echoing(t, pl, p, dst).Close()
	if n := g.Connections(); n != 1 {
		t.Fatalf("%d connections with half a change", n)
	}
	replace(t, key, p.TLS.Key)
	for end := time.Now().Add(patience); g.Connections() == 1; {
		echoing(t, pl, p, dst).Close()
		if time.Now().After(end) {
			t.Fatal("new flows stay on the old connection")
		}
	}
	fresh := echoing(t, pl, p, dst)
	works(t, old)
	if list := pl.List(); len(list) != 2 || !list[0].Connected || !list[1].Connected {
		t.Errorf("listed %+v", list)
	}
	mu.Lock()
	if len(shown) != 2 || shown[0] == shown[1] {
		t.Errorf("certificates shown: %v", shown)
	}
	mu.Unlock()

	// Touched, or written again as it is, it is no other certificate.
	now := time.Now()
	if err := os.Chtimes(p.TLS.Certificate, now, now); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	echoing(t, pl, p, dst).Close()
	if n := g.Connections(); n != 2 {
		t.Errorf("%d connections after a touch", n)
	}
	old.Close()
	for end := time.Now().Add(patience); len(pl.List()) > 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the old connection outlives its flows: %+v", pl.List())
		}
	}
	works(t, fresh)
}

// replace puts a file in the place of another, at once.
func replace(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// TestCertificateEnds: a connection does not outlive our certificate.
func TestCertificateEnds(t *testing.T) {
	authority := tuntest.NewAuthority(t, "ours")
	p := tuntest.StartGateway(t, authority, &tuntest.Gateway{})
	cert, key := authority.Issue(t, "short", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(2 * time.Second) })
	tr, err := connector(t).Connect(t.Context(), with(p, cert, key), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	s, err := tr.Open(t.Context(), echo(t))
	if err != nil {
		t.Fatal(err)
	}
	works(t, s)
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, profiles.ErrLost) || !strings.Contains(err.Error(), "our certificate has expired") {
		t.Errorf("read: %v", err)
	}
	if d := tr.(profiles.Describer).Describe(); !strings.Contains(d.User, "CN=short") || d.Expires.IsZero() || d.ServerVersion != "TLS 1.3 ssh-broker/1" ||
		!strings.Contains(d.HostKey, "CN=server") || !strings.Contains(d.HostKey, "SHA256:") || d.Cipher == "" || d.Sent == 0 || d.Received == 0 {
		t.Errorf("%+v", d)
	}
}
