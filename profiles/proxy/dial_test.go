package proxy_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sshbroker/profiles"
	"sshbroker/profiles/proxy"
	"sshbroker/profiles/tuntest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// speaker is a server that speaks first, as SSH servers do.
func speaker(t *testing.T) string {
	return listen(t, func(c net.Conn) {
		fmt.Fprint(c, "hello\n")
		io.Copy(c, c)
	})
}

// listen serves on loopback until the test ends.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(c) }()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

func dial(t *testing.T, ctx context.Context, rules, address string) (net.Conn, error) {
	t.Helper()
	set, err := proxy.Parse(rules)
	if err != nil {
		t.Fatal(err)
	}
	return proxy.Dialer{Dial: (&net.Dialer{}).DialContext}.DialContext(ctx, set, "tcp", address)
}

// converse proves that a connection goes to a speaker and lost nothing of what it said.
func converse(c net.Conn) error {
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReader(c)
	if line, err := r.ReadString('\n'); line != "hello\n" {
		return fmt.Errorf("first words %q, %v", line, err)
	}
	if _, err := fmt.Fprint(c, "echo\n"); err != nil {
		return err
	}
	if line, err := r.ReadString('\n'); line != "echo\n" {
		return fmt.Errorf("echo %q, %v", line, err)
	}
	if _, ok := c.(*net.TCPConn); !ok {
		return fmt.Errorf("the connection is a %T: what is done to sockets is not done to it", c)
	}
	return nil
}

// Every kind of proxy, by a real server of it, to an address and to a name.
func TestRealProxies(t *testing.T) {
	target := speaker(t)
	_, port, _ := net.SplitHostPort(target)
	for _, tt := range []struct {
		name  string
		rules func(t *testing.T) string
		want  string // of the error; "" for none
	}{
		{"socks4", func(t *testing.T) string { return "socks4://" + tuntest.StartDante(t) + "/" }, ""},
		{"socks4a", func(t *testing.T) string { return "socks4a://bob@" + tuntest.StartDynamic(t) + "/" }, ""},
		{"socks5 of dante", func(t *testing.T) string { return "socks5://" + tuntest.StartDante(t) + "/" }, ""},
		{"socks5 of microsocks", func(t *testing.T) string { return "socks5://" + tuntest.StartMicrosocks(t, "", "") + "/" }, ""},
		{"socks5 with a password", func(t *testing.T) string {
			return "socks5://ann:se%3bcret@" + tuntest.StartMicrosocks(t, "ann", "se;cret") + "/"
		}, ""},
		{"socks5 with a wrong password", func(t *testing.T) string {
			return "socks5://ann:wrong@" + tuntest.StartMicrosocks(t, "ann", "se;cret") + "/"
		}, "authentication"},
		{"http-connect", func(t *testing.T) string { return "http-connect://" + tuntest.StartTinyproxy(t, "", "") + "/" }, ""},
		{"http-connect with Basic", func(t *testing.T) string {
			return "http-connect://ann:secret@" + tuntest.StartTinyproxy(t, "ann", "secret") + "/"
		}, ""},
		{"http-connect without Basic", func(t *testing.T) string {
			return "http-connect://" + tuntest.StartTinyproxy(t, "ann", "secret") + "/"
		}, "it wants a user and a password"},
		{"http-connect with a wrong password", func(t *testing.T) string {
			return "http-connect://ann:wrong@" + tuntest.StartTinyproxy(t, "ann", "secret") + "/"
		}, "does not take the user and the password"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rules := tt.rules(t)
			for _, address := range []string{target, net.JoinHostPort("localhost", port)} {
				c, err := dial(t, t.Context(), rules, address)
				switch {
				case tt.want == "" && err == nil:
					err = converse(c)
					if err != nil {
						t.Errorf("%s: %v", address, err)
					}
				case tt.want == "":
					t.Errorf("%s: %v", address, err)
				case err == nil:
					c.Close()
					t.Errorf("%s: connected", address)
				case !errors.Is(err, profiles.ErrConnect) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "wrong@"):
					t.Errorf("%s: %v", address, err)
				}
			}
		})
	}
}

// A closed port behind each kind of proxy is an error that names the proxy and the
// server, and is never the destination's own refusal.
func TestServerNotReached(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	for _, rules := range []string{"socks4://" + tuntest.StartDante(t) + "/", "socks5://" + tuntest.StartMicrosocks(t, "", "") + "/",
		"http-connect://" + tuntest.StartTinyproxy(t, "", "") + "/", "socks5://" + closed + "/"} {
		_, err := dial(t, t.Context(), rules, closed)
		if !errors.Is(err, profiles.ErrConnect) || errors.Is(err, profiles.ErrRefused) ||
			!strings.Contains(err.Error(), "proxy "+strings.TrimSuffix(rules, "/")) {
			t.Errorf("%s: %v", rules, err)
		}
	}
}

// answer is a proxy that reads the beginning of a request and answers at its will.
func answer(t *testing.T, say func(net.Conn)) string {
	return listen(t, func(c net.Conn) {
		buf := make([]byte, 512)
		c.Read(buf)
		say(c)
	})
}

func TestHostileProxy(t *testing.T) {
	endless := func(piece string) func(net.Conn) {
		return func(c net.Conn) {
			for {
				if _, err := io.WriteString(c, piece); err != nil {
					return
				}
			}
		}
	}
	text := func(s string) func(net.Conn) { return func(c net.Conn) { io.WriteString(c, s) } }
	for _, tt := range []struct {
		kind string
		say  func(net.Conn)
		want string
	}{
		{"socks4", text(""), "without an answer"},
		{"socks4", text("\x00\x5a"), "without an answer"},
		{"socks4", text("HTTP/1.1 200 OK\r\n\r\n"), "not SOCKS4"},
		{"socks4", text("\x00\x5b\x00\x00\x00\x00\x00\x00"), "rejected"},
		{"socks4", text("\x00\x5d\x00\x00\x00\x00\x00\x00"), "another one"},
		{"socks4", text("\x00\x07\x00\x00\x00\x00\x00\x00"), "code 7"},
		{"socks5", text(""), "EOF"},
		{"socks5", text("\x04\x00"), "version"},
		{"socks5", text("\x05\xff"), "authentication"},
		{"socks5", endless("\x05\x00"), ""},
		{"http-connect", text(""), "without an answer"},
		{"http-connect", text("SSH-2.0-x\r\n\r\n"), "not HTTP"},
		{"http-connect", text("HTTP/1.1 407 \x1b[31mNo\r\nContent-Length: 99999999\r\n\r\n"), `wants a user and a password: "407 ?[31mNo"`},
		{"http-connect", text("HTTP/1.1 503 Full\r\n\r\nbody"), `said "503 Full"`},
		{"http-connect", text("HTTP/1.1 100 Go on\r\n\r\n"), "without an answer"},
		{"http-connect", text("HTTP/1.1 200 " + strings.Repeat("x", 5000) + "\r\nA: " + strings.Repeat("y", 12000)), "more than"},
		{"http-connect", endless("HTTP/1.1 200 OK\r\nX: y\r\n"), "more than"},
	} {
		_, err := dial(t, t.Context(), tt.kind+"://"+answer(t, tt.say)+"/", "192.0.2.1:22")
		if !errors.Is(err, profiles.ErrConnect) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "192.0.2.1:22") || len(err.Error()) > 600 {
			t.Errorf("%s: %v, want %q", tt.kind, err, tt.want)
		}
	}
}

// A proxy that says nothing holds nobody longer than the context.
func TestSilentProxy(t *testing.T) {
	for _, kind := range []string{"socks4", "socks4a", "socks5", "http-connect"} {
		asked := make(chan struct{}, 1)
		silent := listen(t, func(c net.Conn) {
			buf := make([]byte, 1)
			c.Read(buf)
			asked <- struct{}{}
			io.Copy(io.Discard, c)
		})
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() { <-asked; cancel(errors.New("had enough")) }()
		_, err := dial(t, ctx, kind+"://"+silent+"/", "192.0.2.1:22")
		if !errors.Is(err, profiles.ErrConnect) || !strings.Contains(err.Error(), "had enough") || !strings.Contains(err.Error(), kind+"://"+silent) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// What is said, byte by byte.
func TestOnTheWire(t *testing.T) {
	for _, tt := range []struct{ rules, address, want string }{
		{"socks4://%s/", "192.0.2.1:22", "\x04\x01\x00\x16\xc0\x00\x02\x01\x00"},
		{"socks4://bob@%s/", "192.0.2.1:22", "\x04\x01\x00\x16\xc0\x00\x02\x01bob\x00"},
		{"socks4://%s/", "known.example.com:22", "\x04\x01\x00\x16\xc0\x00\x02\x09\x00"},
		{"socks4a://%s/", "h.example.com:22", "\x04\x01\x00\x16\x00\x00\x00\x01\x00h.example.com\x00"},
		{"http-connect://%s/", "h.example.com:22", "CONNECT h.example.com:22 HTTP/1.1\r\nHost: h.example.com:22\r\n\r\n"},
		{"http-connect://a:b@%s/", "[fd00::1]:22", "CONNECT [fd00::1]:22 HTTP/1.1\r\nHost: [fd00::1]:22\r\nProxy-Authorization: Basic " +
			base64.StdEncoding.EncodeToString([]byte("a:b")) + "\r\n\r\n"},
	} {
		heard := make(chan string, 1)
		at := listen(t, func(c net.Conn) {
			buf := make([]byte, len(tt.want)+1)
			c.SetReadDeadline(time.Now().Add(5 * time.Second))
			n, _ := io.ReadFull(c, buf[:len(tt.want)])
			heard <- string(buf[:n])
		})
		set, err := proxy.Parse(fmt.Sprintf(tt.rules, at))
		if err != nil {
			t.Fatal(err)
		}
		d := proxy.Dialer{Dial: (&net.Dialer{}).DialContext, Lookup: func(_ context.Context, network, host string) ([]netip.Addr, error) {
			if network != "ip4" || host != "known.example.com" {
				return nil, errors.New("asked for " + network + " " + host)
			}
			return []netip.Addr{netip.MustParseAddr("192.0.2.9")}, nil
		}}
		if _, err := d.DialContext(t.Context(), set, "tcp", tt.address); err == nil {
			t.Error("connected")
		}
		if got := <-heard; got != tt.want {
			t.Errorf("%s: %q, want %q", tt.rules, got, tt.want)
		}
	}
}

// SOCKS4 says what it cannot do.
func TestSOCKS4Limits(t *testing.T) {
	at := answer(t, func(net.Conn) {})
	for address, want := range map[string]string{"[fd00::1]:22": "no IPv6 address; socks5 does", "h.invalid:22": "socks4a and socks5 have the proxy do it"} {
		if _, err := dial(t, t.Context(), "socks4://"+at+"/", address); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// No rule, and direct, use no proxy.
func TestStraight(t *testing.T) {
	target := speaker(t)
	for _, rules := range []string{"", "direct:///127.0.0.0/8;socks5://192.0.2.1/", "socks5://192.0.2.1/*.example.com"} {
		c, err := dial(t, t.Context(), rules, target)
		if err == nil {
			err = converse(c)
		}
		if err != nil {
			t.Errorf("%q: %v", rules, err)
		}
	}
}
