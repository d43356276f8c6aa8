package sshtun_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"sshbroker/profiles"
	"sshbroker/profiles/sshtun"
	"sshbroker/profiles/tuntest"
)

// A server behind a proxy is checked and logged in to like every other; the proxy is
// named where it fails, its password never.
func TestThroughProxy(t *testing.T) {
	sshd := tuntest.StartOpenSSH(t).Profile
	target := listenRaw(t, func(c net.Conn) { io.Copy(c, c) })
	for kind, ruleset := range map[string]string{
		"socks5":       "socks5://ann:secret@" + tuntest.StartMicrosocks(t, "ann", "secret") + "/",
		"http-connect": "http-connect://" + tuntest.StartTinyproxy(t, "", "") + "/",
	} {
		t.Run(kind, func(t *testing.T) {
			p := *sshd
			p.Proxy = ruleset
			tr, err := connect(t, &p, nil)
			if err != nil {
				t.Fatal(err)
			}
			s, err := tr.Open(t.Context(), profiles.Destination{Host: "127.0.0.1", Port: target})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			fmt.Fprint(s, "hello")
			if got, err := io.ReadAll(io.LimitReader(s, 5)); string(got) != "hello" {
				t.Errorf("%q, %v", got, err)
			}
			p.KnownHosts = []string{"/none"}
			if _, err := connect(t, &p, nil); !errors.Is(err, profiles.ErrHostKey) {
				t.Errorf("unknown key: %v", err)
			}
			p.Port = 1
			if _, err := connect(t, &p, nil); !errors.Is(err, profiles.ErrConnect) || !strings.Contains(err.Error(), "proxy "+kind+"://127.0.0.1:") || strings.Contains(err.Error(), "secret") {
				t.Errorf("closed port: %v", err)
			}
		})
	}
}

// A proxy that says nothing takes no longer than tcp-connect-timeout.
func TestSilentProxy(t *testing.T) {
	port := listenRaw(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	p := tuntest.ProfileFor("192.0.2.1:22", "tester", "/none", "/none")
	p.Proxy = fmt.Sprintf("socks5://127.0.0.1:%d/", port)
	p.ConnectTimeout = 50 * time.Millisecond
	_, err := connect(t, p, nil)
	if !errors.Is(err, profiles.ErrConnect) || !strings.Contains(err.Error(), "proxy socks5://127.0.0.1") || !strings.Contains(err.Error(), "no connection within 50ms") {
		t.Error(err)
	}
}

// A ruleset that cannot be read, as the environment's may be, connects nowhere.
func TestUnusableProxy(t *testing.T) {
	for _, change := range []func(*profiles.Profile){
		func(p *profiles.Profile) { p.Proxy = "nonsense" },
		func(p *profiles.Profile) { p.HTTPSProxy = "https://p:1" },
	} {
		p := tuntest.ProfileFor("192.0.2.1:22", "tester", "/none", "/none")
		change(p)
		if _, err := connect(t, p, nil); !errors.Is(err, profiles.ErrSetup) {
			t.Error(err)
		}
	}
}

// address-family restricts what this host opens, be it to a server or to a proxy.
func TestAddressFamily(t *testing.T) {
	for family, want := range map[profiles.AddressFamily]string{profiles.AnyFamily: "tcp", profiles.OnlyIPv4: "tcp4", profiles.OnlyIPv6: "tcp6"} {
		for proxy, address := range map[string]string{"": "h.example:22", "socks5://p.example/": "p.example:1080"} {
			dialled := ""
			c := &sshtun.Connector{Log: connector(t).Log, Dial: func(_ context.Context, network, to string) (net.Conn, error) {
				dialled = network + " " + to
				return nil, errors.New("not today")
			}}
			p := tuntest.ProfileFor("h.example:22", "tester", "/none", "/none")
			p.AddressFamily, p.Proxy = family, proxy
			if _, err := c.Connect(t.Context(), p, nil, nil); !errors.Is(err, profiles.ErrConnect) || dialled != want+" "+address {
				t.Errorf("family %d: dialled %q, %v", family, dialled, err)
			}
		}
	}
	p := tuntest.StartOpenSSH(t).Profile
	p.AddressFamily = profiles.OnlyIPv6
	if _, err := connect(t, p, nil); !errors.Is(err, profiles.ErrConnect) {
		t.Errorf("an IPv4 address with IPv6 only: %v", err)
	}
}
