package tlstun_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sshbroker/profiles"
	"sshbroker/profiles/sshtun"
	"sshbroker/profiles/tlstun"
	"sshbroker/profiles/tlstun/wire"
	"sshbroker/profiles/tuntest"
)

func mkfifo(name string) error { return syscall.Mkfifo(name, 0o600) }

// TestRefusals: what the gateway says becomes the class that the broker knows, with its
// words and its rule.
func TestRefusals(t *testing.T) {
	authority := tuntest.NewAuthority(t, "ours")
	var mu sync.Mutex
	var answer wire.Answer
	var asked wire.Request
	p := tuntest.StartGateway(t, authority, &tuntest.Gateway{Decide: func(_ context.Context, r wire.Request) wire.Answer {
		mu.Lock()
		defer mu.Unlock()
		asked = r
		return answer
	}})
	p.TLS.Service = "db"
	tr, err := connector(t).Connect(t.Context(), p, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	dst := profiles.Destination{Host: "db.example.org", Port: 5432, Origin: netip.MustParseAddrPort("10.0.0.1:1"), Flow: "ABC", Program: "/usr/bin/psql"}
	for status, class := range map[wire.Status]error{
		wire.Refused: profiles.ErrRefused, wire.Prohibited: profiles.ErrProhibited, wire.NameNotFound: profiles.ErrNameNotFound,
		wire.Unreachable: profiles.ErrOpen, wire.TimedOut: profiles.ErrOpen, wire.Limited: profiles.ErrOpen,
		wire.BadRequest: profiles.ErrOpen, wire.Failed: profiles.ErrOpen,
	} {
		mu.Lock()
		answer = wire.Answer{Status: status, Detail: "in words", Rule: "db/allow[1]"}
		mu.Unlock()
		_, err := tr.Open(t.Context(), dst)
		if !errors.Is(err, class) || !strings.Contains(fmt.Sprint(err), status.String()+": in words (rule db/allow[1])") {
			t.Errorf("%s: %v; want %v", status, err, class)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	want := wire.Request{Kind: wire.KindFlow, Host: "db.example.org", Port: 5432, Service: "db", Flow: "ABC", Program: "/usr/bin/psql"}
	if asked != want {
		t.Errorf("asked %+v; want %+v", asked, want)
	}
}

// TestServices: the gateway's list comes as it was given.
func TestServices(t *testing.T) {
	list := []wire.Service{{Name: "db", Kind: "tcp", Target: "10.0.0.1:5432", Port: 15432, Overridable: true}, {Name: "web", Kind: "http-connect", Hosts: []string{"*.example.org"}}}
	p := tuntest.StartGateway(t, tuntest.NewAuthority(t, "ours"), &tuntest.Gateway{Services: list})
	tr, err := connector(t).Connect(t.Context(), p, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	got, err := tr.(tlstun.Services).Services(t.Context())
	if err != nil || !reflect.DeepEqual(got, list) {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestOpenTimeout: a gateway that does not answer costs the flow, not the connection, and
// an answer that comes later leaves nothing open.
func TestOpenTimeout(t *testing.T) {
	authority := tuntest.NewAuthority(t, "ours")
	release := make(chan struct{})
	p := tuntest.StartGateway(t, authority, &tuntest.Gateway{Decide: func(ctx context.Context, r wire.Request) wire.Answer {
		if r.Flow == "late" {
			<-release
		}
		return wire.Answer{}
	}})
	p.OpenTimeout = 50 * time.Millisecond
	tr, err := connector(t).Connect(t.Context(), p, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	ended := make(chan struct{})
	addr := serve(t, func(c net.Conn) { io.Copy(io.Discard, c); close(ended) })
	at := netip.MustParseAddrPort(addr)
	_, err = tr.Open(t.Context(), profiles.Destination{Host: at.Addr().String(), Port: at.Port(), Flow: "late"})
	if !errors.Is(err, profiles.ErrOpen) || !strings.Contains(err.Error(), "no answer from the gateway within 50ms") {
		t.Errorf("open: %v", err)
	}
	close(release)
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the destination still has a connection")
	}
	s, err := tr.Open(t.Context(), echo(t))
	if err != nil {
		t.Fatal(err)
	}
	works(t, s)
}

// TestEndedByPolicy: the gateway's reason arrives.
func TestEndedByPolicy(t *testing.T) {
	g := &tuntest.Gateway{}
	p := tuntest.StartGateway(t, tuntest.NewAuthority(t, "ours"), g)
	pl := pool(t)
	s := echoing(t, pl, p, echo(t))
	g.EndFlows("no longer allowed by db/allow[1]")
	_, err := s.Read(make([]byte, 1))
	if !errors.Is(err, profiles.ErrReset) || !errors.Is(err, profiles.ErrEnded) || !strings.Contains(err.Error(), `"no longer allowed by db/allow[1]"`) {
		t.Errorf("read: %v", err)
	}
}

// TestGoAway: a gateway that goes away gets no new flows, and the open ones stay.
func TestGoAway(t *testing.T) {
	g := &tuntest.Gateway{}
	p := tuntest.StartGateway(t, tuntest.NewAuthority(t, "ours"), g)
	pl, dst := pool(t), echo(t)
	old := echoing(t, pl, p, dst)
	g.GoAway()
	works(t, old) // and so the word has come
	fresh := echoing(t, pl, p, dst)
	if n := g.Connections(); n != 2 {
		t.Errorf("%d connections", n)
	}
	works(t, old)
	works(t, fresh)
}

// TestGatewayKilled: of a thousand flows in the middle of their work each ends with
// ErrLost, none in order, and new ones find the gateway that stands in.
func TestGatewayKilled(t *testing.T) {
	const flows = 1000
	authority := tuntest.NewAuthority(t, "ours")
	first, second := &tuntest.Gateway{}, &tuntest.Gateway{}
	p := tuntest.StartGateway(t, authority, first)
	spare := tuntest.StartGateway(t, authority, second)
	p.More = []profiles.Server{{Host: spare.Host, Port: spare.Port}}
	pl, dst := pool(t), echo(t)
	ends := make(chan error, flows)
	var ready sync.WaitGroup
	begin := make(chan struct{}) // opening among floods takes long
	for range flows {
		s := echoing(t, pl, p, dst)
		s.SetDeadline(time.Time{})
		ready.Add(1)
		go func() {
			go func() {
				<-begin
				for {
					if _, err := s.Write(make([]byte, 1000)); err != nil {
						return
					}
				}
			}()
			io.ReadFull(s, make([]byte, 1000))
			ready.Done()
			_, err := io.Copy(io.Discard, struct{ io.Reader }{s})
			s.Close()
			ends <- err
		}()
	}
	close(begin)
	ready.Wait()
	first.Cut()
	for range flows {
		select {
		case err := <-ends:
			if !errors.Is(err, profiles.ErrLost) {
				t.Fatalf("a flow ended with %v", err)
			}
		case <-time.After(patience):
			t.Fatal("a flow did not end")
		}
	}
	var s profiles.Stream
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) { // it rests after a loss
		if s, err = pl.Open(t.Context(), p, dst, nil); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	works(t, s)
	if second.Connections() != 1 {
		t.Errorf("the spare has %d connections", second.Connections())
	}
}

// both is a connector for either kind.
type both struct {
	ssh *sshtun.Connector
	tls *tlstun.Connector
}

func (b both) Connect(ctx context.Context, p *profiles.Profile, via profiles.DialFunc, ask profiles.Prompter) (profiles.Transport, error) {
	if p.Protocol == profiles.TLS {
		return b.tls.Connect(ctx, p, via, ask)
	}
	return b.ssh.Connect(ctx, p, via, ask)
}

// TestChains: each kind of tunnel leads through each.
func TestChains(t *testing.T) {
	authority := tuntest.NewAuthority(t, "ours")
	gateway, inner := tuntest.StartGateway(t, authority, &tuntest.Gateway{}), tuntest.StartGateway(t, authority, &tuntest.Gateway{})
	proxy := tuntest.StartProxy(t, authority, &tuntest.Proxy{})
	_, ssh := tuntest.StartServer(t, nil)
	c := both{&sshtun.Connector{Log: connector(t).Log}, connector(t)}
	pl := profiles.NewPool(c, c.tls.Log)
	defer pl.Close()
	through := func(p, gw *profiles.Profile) *profiles.Profile {
		q := *p
		q.Gateway = gw
		return &q
	}
	for name, p := range map[string]*profiles.Profile{
		"TLS in SSH":     through(gateway, ssh),
		"SSH in TLS":     through(ssh, gateway),
		"TLS in TLS":     through(inner, gateway),
		"CONNECT in TLS": through(proxy, gateway),
		"TLS in CONNECT": through(gateway, proxy),
	} {
		t.Run(name, func(t *testing.T) { echoing(t, pl, p, echo(t)).Close() })
	}
	socks := *gateway
	socks.Proxy = "socks5://" + tuntest.StartMicrosocks(t, "", "") + "/"
	t.Run("TLS by SOCKS", func(t *testing.T) { echoing(t, pl, &socks, echo(t)).Close() })
}

// TestProxyAnswers: each answer of a proxy becomes the class that it belongs to.
func TestProxyAnswers(t *testing.T) {
	authority := tuntest.NewAuthority(t, "ours")
	var mu sync.Mutex
	var answer string
	p := tuntest.StartProxy(t, authority, &tuntest.Proxy{Answer: func(r *http.Request, conn net.Conn) bool {
		mu.Lock()
		defer mu.Unlock()
		io.WriteString(conn, answer)
		return true
	}})
	tr, err := connector(t).Connect(t.Context(), p, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	for _, c := range []struct {
		answer string
		class  error
		words  string
	}{
		{"HTTP/1.1 403 Forbidden\r\n\r\n", profiles.ErrProhibited, "403 Forbidden"},
		{"HTTP/1.1 405 No\r\n\r\n", profiles.ErrProhibited, "405"},
		{"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\n\r\n", profiles.ErrAuth, "wants a user and a password"},
		{"HTTP/1.1 502 Bad\r\n\r\n", profiles.ErrOpen, "502 Bad"},
		{"HTTP/1.1 504 Late\r\n\r\n", profiles.ErrOpen, "504 Late"},
		{"HTTP/1.1 503 X\r\nX-Squid-Error: ERR_CONNECT_FAIL 111\r\n\r\n", profiles.ErrRefused, "503 X"},
		{"HTTP/1.1 503 X\r\nX-Squid-Error: ERR_DNS_FAIL 0\r\n\r\n", profiles.ErrNameNotFound, "503 X"},
		{"HTTP/1.1 502 X\r\nProxy-Status: a, b; error=connection_refused; details=\"no; luck, here\"\r\n\r\n", profiles.ErrRefused, "connection_refused; no; luck, here"},
		{"HTTP/1.1 502 X\r\nProxy-Status: a;error=dns_error\r\n\r\n", profiles.ErrNameNotFound, "dns_error"},
		{"HTTP/1.1 502 X\r\nProxy-Status: a;error=destination_ip_prohibited\r\n\r\n", profiles.ErrProhibited, "destination_ip_prohibited"},
		{"HTTP/1.1 504 X\r\nProxy-Status: a;error=connection_timeout\r\n\r\n", profiles.ErrOpen, "connection_timeout"},
		{"SSH-2.0-x\r\n\r\n", profiles.ErrOpen, "its answer is not HTTP"},
		{"HTTP/1.1 200", profiles.ErrOpen, "closed without an answer"},
		{"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 20<<10), profiles.ErrOpen, "bytes of header"},
		{strings.Repeat("HTTP/1.1 103 Wait\r\n\r\n", 9), profiles.ErrOpen, "does not come to an answer"},
		{"", profiles.ErrOpen, "closed without an answer"},
	} {
		mu.Lock()
		answer = c.answer
		mu.Unlock()
		_, err := tr.Open(t.Context(), profiles.Destination{Host: "a.example", Port: 1})
		if !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%.60q: %v; want %v, %q", c.answer, err, c.class, c.words)
		}
	}
	// What comes right behind the header is the flow's, whatever the header says of a body.
	mu.Lock()
	answer = "HTTP/1.1 102 Wait\r\n\r\nHTTP/1.1 201 Fine\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n220 ready\r\n"
	mu.Unlock()
	s, err := tr.Open(t.Context(), profiles.Destination{Host: "a.example", Port: 1})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(s); string(got) != "220 ready\r\n" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if d := tr.(profiles.Describer).Describe(); !strings.Contains(d.Note, "no end of one direction") {
		t.Errorf("note %q", d.Note)
	}
	for _, host := range []string{"a\r\nX: y", "", "-x", "a b"} {
		if _, err := tr.Open(t.Context(), profiles.Destination{Host: host, Port: 1}); !errors.Is(err, profiles.ErrOpen) {
			t.Errorf("host %q: %v", host, err)
		}
	}
}

// TestProxyAccount: user and password are those of the profile, as a real proxy takes them.
func TestProxyAccount(t *testing.T) {
	authority := tuntest.NewAuthority(t, "ours")
	p := tuntest.StartTLSProxy(t, authority, "alice", "wonderland")
	echoing(t, pool(t), p, echo(t)).Close()
	for password, words := range map[string]string{"wrong": "does not take the user and the password", "": "wants a user and a password"} {
		q := *p
		q.PasswordText = password
		if password == "" {
			q.User = ""
		}
		_, err := pool(t).Open(t.Context(), &q, echo(t), nil)
		if !errors.Is(err, profiles.ErrAuth) || !strings.Contains(err.Error(), words) {
			t.Errorf("password %q: %v", password, err)
		}
		if strings.Contains(fmt.Sprint(err), "wonder") || password != "" && strings.Contains(fmt.Sprint(err), password) {
			t.Errorf("a password in %v", err)
		}
	}
	refused(t, "user without password", func() *profiles.Profile { q := *p; q.PasswordText = ""; return &q }(), profiles.ErrSetup, "no password")
}

// TestProxyRefusesCertificate: the alert comes with the first answer only.
func TestProxyRefusesCertificate(t *testing.T) {
	authority, other := tuntest.NewAuthority(t, "ours"), tuntest.NewAuthority(t, "theirs")
	p := tuntest.StartProxy(t, authority, &tuntest.Proxy{})
	cert, key := other.Issue(t, "client", nil)
	_, err := pool(t).Open(t.Context(), with(p, cert, key), echo(t), nil)
	if !errors.Is(err, profiles.ErrAuth) || !strings.Contains(err.Error(), "authority that the server does not know") {
		t.Errorf("open: %v", err)
	}
	_, err = pool(t).Open(t.Context(), with(p, "", ""), echo(t), nil)
	if !errors.Is(err, profiles.ErrAuth) || !strings.Contains(err.Error(), "missing") {
		t.Errorf("open without certificate: %v", err)
	}
}

// TestProxyGone: where the proxy cannot be reached any more the one that stands in gets
// new flows, and open ones stay.
func TestProxyGone(t *testing.T) {
	authority := tuntest.NewAuthority(t, "ours")
	spare := tuntest.StartProxy(t, authority, &tuntest.Proxy{})
	stopped := make(chan struct{})
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	behind := tuntest.StartProxy(t, authority, &tuntest.Proxy{})
	go func() { // forwards until it is closed
		defer close(stopped)
		for {
			c, err := front.Accept()
			if err != nil {
				return
			}
			d, err := net.Dial("tcp", net.JoinHostPort(behind.Host, fmt.Sprint(behind.Port)))
			if err != nil {
				c.Close()
				continue
			}
			go func() { io.Copy(c, d); c.Close() }()
			go func() { io.Copy(d, c); d.Close() }()
		}
	}()
	p := *behind
	at := front.Addr().(*net.TCPAddr)
	p.Port = uint16(at.Port)
	p.More = []profiles.Server{{Host: spare.Host, Port: spare.Port}}
	pl, dst := pool(t), echo(t)
	old := echoing(t, pl, &p, dst)
	front.Close()
	<-stopped
	fresh := echoing(t, pl, &p, dst)
	works(t, old)
	works(t, fresh)
	if at := fresh.(interface{ Server() profiles.Server }).Server(); at.Port != spare.Port {
		t.Errorf("carried by %s", at)
	}
	old.Close()
}

// FuzzProxyStatus: what is found stands in the header.
func FuzzProxyStatus(f *testing.F) {
	f.Add(`a, b; error=connection_refused; details="no; \"luck\", here"`)
	f.Add(`a;error="dns_error`)
	f.Fuzz(func(t *testing.T, header string) {
		reason, details := tlstun.ProxyStatus(header)
		if len(reason)+len(details) > len(header) {
			t.Fatalf("%q, %q of %q", reason, details, header)
		}
	})
}
