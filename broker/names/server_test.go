package names

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// serve runs n on loopback and returns its address, the same for UDP and TCP, and
// over IPv6 where there is any.
func serve(t *testing.T, n interface {
	Serve(context.Context, []net.PacketConn, []net.Listener) error
}, host string) string {
	t.Helper()
	var l net.Listener
	var c net.PacketConn
	for range 20 {
		var err error
		if l, err = net.Listen("tcp", net.JoinHostPort(host, "0")); err != nil {
			skip(t, err.Error())
		}
		if c, err = net.ListenPacket("udp", l.Addr().String()); err == nil {
			break
		}
		l.Close()
	}
	if c == nil {
		t.Fatal("no port free for both UDP and TCP")
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- n.Serve(ctx, []net.PacketConn{c}, []net.Listener{l}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func skip(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// goResolver is Go's own resolver, asking server over network.
func goResolver(network, server string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, server)
	}}
}

func TestServe(t *testing.T) {
	up := newResolver(t, func(q dnsmessage.Message, _ []byte, _ bool) []byte {
		if q.Questions[0].Type != dnsmessage.TypeA {
			return respond(q, dnsmessage.RCodeSuccess)
		}
		return respond(q, dnsmessage.RCodeSuccess, a("192.0.2.1"))
	})
	for _, host := range []string{"127.0.0.1", "::1"} {
		n := newNames(t, Config{ResolvFile: resolvFile(t, "", up), HostsFile: writeFile(t, "192.0.2.7 db.corp\n")})
		server := serve(t, n, host)
		for _, network := range []string{"udp", "tcp"} {
			r := goResolver(network, server)
			for name, want := range map[string]string{
				"one.far.": "198.18.0.1", "web.corp.": "192.0.2.1", "db.corp.": "192.0.2.7",
			} {
				got, err := r.LookupHost(t.Context(), name)
				if err != nil || strings.Join(got, " ") != want {
					t.Errorf("%s %s: %s is %v, %v; want %s", host, network, name, got, err, want)
				}
			}
			names, err := r.LookupAddr(t.Context(), "198.18.0.1")
			if err != nil || fmt.Sprint(names) != "[one.far.]" {
				t.Errorf("%s %s: %v, %v", host, network, names, err)
			}
			var dnsErr *net.DNSError
			if _, err := r.LookupHost(t.Context(), "a_b.-x.corp."); !errors.As(err, &dnsErr) {
				t.Errorf("%s %s: a name that cannot be used: %v", host, network, err)
			}
		}
		if got := fmt.Sprint(n.Lookup(addr("192.0.2.1"))); got != "[web.corp]" {
			t.Errorf("192.0.2.1 is %s", got)
		}
	}
}

func TestServeManyAtOnce(t *testing.T) {
	up := newResolver(t, func(q dnsmessage.Message, _ []byte, _ bool) []byte {
		if q.Questions[0].Type != dnsmessage.TypeA {
			return respond(q, dnsmessage.RCodeSuccess)
		}
		var i int
		fmt.Sscanf(q.Questions[0].Name.String(), "n%d.", &i)
		return respond(q, dnsmessage.RCodeSuccess, a(fmt.Sprintf("10.0.%d.%d", i>>8, i&255)))
	})
	journal := t.TempDir() + "/names"
	n := newNames(t, Config{ResolvFile: resolvFile(t, "", up), Journal: journal})
	server := serve(t, n, "127.0.0.1")
	const total, workers = 2000, 100
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			network := "udp"
			if w%10 == 0 {
				network = "tcp"
			}
			r := goResolver(network, server)
			for i := w; i < total; i += workers {
				name := fmt.Sprintf("n%d.corp", i)
				if i%2 == 0 {
					name = fmt.Sprintf("n%d.far", i)
				}
				got, err := r.LookupNetIP(t.Context(), "ip", name+".")
				if err != nil || len(got) != 1 {
					t.Errorf("%s: %v, %v", name, got, err)
					continue
				}
				if known := n.Lookup(got[0]); len(known) != 1 || known[0] != name {
					t.Errorf("%v is %v, want %s", got[0], known, name)
				}
			}
		})
	}
	wg.Wait()
	if s := n.Stats(); s.Assigned != total/2 || s.Remembered != total/2 || s.Dropped != 0 || s.Malformed != 0 {
		t.Errorf("%+v", s)
	}
}

func TestServeRubbish(t *testing.T) {
	n := newNames(t, Config{})
	server := serve(t, n, "127.0.0.1")
	c, err := net.Dial("udp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, b := range [][]byte{{}, {0}, make([]byte, 11), make([]byte, 60_000), []byte(strings.Repeat("\xff", 500))} {
		c.Write(b)
	}
	c.Write(question(t, "one.far.", dnsmessage.TypeA))
	c.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 1000)
	for {
		k, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if m := unpack(t, buf[:k]); m.ID == 0x1234 { // what is before it answers the zeroes
			if show(m) != "Success 198.18.0.1" {
				t.Errorf("%s", show(m))
			}
			break
		}
	}
	// Connections that say nothing, or too little, hold nobody up, and there is a bound.
	var idle []net.Conn
	for range maxConnections {
		c, err := net.Dial("tcp", server)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte{1})
		idle = append(idle, c)
	}
	for len(n.connections) < maxConnections {
		time.Sleep(time.Millisecond)
	}
	over, err := net.Dial("tcp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	over.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := over.Read(buf); err == nil || isTimeout(err) {
		t.Errorf("one connection too many: %v", err)
	}
	for _, c := range idle[:4] { // Go's resolver makes a connection for each query
		c.Close()
	}
	for len(n.connections) > maxConnections-4 {
		time.Sleep(time.Millisecond)
	}
	if got, err := goResolver("tcp", server).LookupHost(t.Context(), "one.far."); err != nil || len(got) != 1 {
		t.Errorf("after some have gone: %v, %v", got, err)
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// Several queries on one connection, as glibc sends them.
func TestServePipelined(t *testing.T) {
	n := newNames(t, Config{})
	c, err := net.Dial("tcp", serve(t, n, "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	for _, typ := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeA} {
		writeFramed(c, question(t, "one.far.", typ))
	}
	for _, want := range []string{"Success 198.18.0.1", "Success", "Success 198.18.0.1"} {
		b, err := readFramed(c)
		if err != nil {
			t.Fatal(err)
		}
		if got := show(unpack(t, b)); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestServeNothing(t *testing.T) {
	if err := newNames(t, Config{}).Serve(t.Context(), nil, nil); err == nil {
		t.Error("no sockets, no error")
	}
}

func TestDig(t *testing.T) {
	dig, err := exec.LookPath("dig")
	if err != nil {
		skip(t, "no dig: install bind9-dnsutils")
	}
	n := newNames(t, Config{})
	host, port, _ := net.SplitHostPort(serve(t, n, "127.0.0.1"))
	for _, tc := range []struct{ args, want string }{
		{"one.far A +short", "198.18.0.1"},
		{"one.far A +short +tcp", "198.18.0.1"},
		{"one.far A +short +noedns", "198.18.0.1"},
		{"one.far AAAA +short", ""},
		{"-x 198.18.0.1 +short", "one.far."},
		{"localhost AAAA +short", "::1"},
		{"one.far HTTPS", "status: NOERROR"},
		{"-q -x.far A", "status: REFUSED"},
		{"-q one.far -t AXFR +noall +answer", "; Transfer failed."},
	} {
		out, err := exec.Command(dig, append([]string{"@" + host, "-p", port, "+tries=1", "+time=5"}, strings.Fields(tc.args)...)...).CombinedOutput()
		text := strings.TrimSpace(string(out))
		short := strings.Contains(tc.args, "+short")
		if short && (text != tc.want || err != nil) || !short && !strings.Contains(text, tc.want) || strings.Contains(text, "Warning") || strings.Contains(text, "malformed") {
			t.Errorf("dig %s: %v\n%s", tc.args, err, text)
		}
	}
}
