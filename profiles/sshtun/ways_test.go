package sshtun_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
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

// A chain of servers, each with a key of its own: errors say which of them it was.
func TestChain(t *testing.T) {
	far := tuntest.StartOpenSSH(t).Profile
	_, middle := tuntest.StartServer(t, nil)
	_, near := tuntest.StartServer(t, nil)
	target := listenRaw(t, func(c net.Conn) { io.Copy(c, c) })
	chain := func(change func(near, middle, far *profiles.Profile)) *profiles.Profile {
		a, b, c := *near, *middle, *far
		a.ID, b.ID, c.ID = "near", "middle", "far"
		if change != nil {
			change(&a, &b, &c)
		}
		b.Gateway, c.Gateway = &a, &b
		return &c
	}
	open := func(p *profiles.Profile) (profiles.Stream, error) {
		pool := profiles.NewPool(connector(t), connector(t).Log)
		t.Cleanup(func() { pool.Close() })
		return pool.Open(t.Context(), p, profiles.Destination{Host: "127.0.0.1", Port: target}, nil)
	}
	s, err := open(chain(nil))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	fmt.Fprint(s, "hello")
	if got, err := io.ReadAll(io.LimitReader(s, 5)); string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	for _, tt := range []struct {
		name   string
		change func(near, middle, far *profiles.Profile)
		class  error
		want   string
	}{
		{"wrong key of the first", func(near, _, _ *profiles.Profile) { near.KnownHosts = far.KnownHosts }, profiles.ErrHostKey, `profile "near": host key`},
		{"wrong key of the second", func(_, middle, _ *profiles.Profile) { middle.KnownHosts = far.KnownHosts }, profiles.ErrHostKey, `profile "middle": host key`},
		{"wrong key of the last", func(_, _, far *profiles.Profile) { far.KnownHosts = near.KnownHosts }, profiles.ErrHostKey, `profile "far": host key`},
		{"login at the second", func(_, middle, _ *profiles.Profile) { middle.Identities = far.Identities }, profiles.ErrAuth, `profile "middle": authentication`},
		{"second is down", func(_, middle, _ *profiles.Profile) { middle.Port = 1 }, profiles.ErrConnect, `profile "near": open 127.0.0.1:1: refused`},
		{"first is down", func(near, _, _ *profiles.Profile) { near.Port = 1 }, profiles.ErrConnect, `profile "near": dial`},
		{"a proxy beside a gateway is not used", func(near, middle, far *profiles.Profile) {
			middle.Proxy, far.Proxy = "socks5://192.0.2.1/", "socks5://192.0.2.1/"
		}, nil, ""},
	} {
		s, err := open(chain(tt.change))
		switch {
		case err == nil:
			s.Close()
			if tt.class != nil {
				t.Errorf("%s: opened", tt.name)
			}
		case !errors.Is(err, tt.class) || !strings.Contains(err.Error(), tt.want):
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// A ProxyCommand carries the connection, and ends with it.
func TestProxyCommand(t *testing.T) {
	nc, err := exec.LookPath("socat")
	tuntest.Need(t, err == nil, "needs socat (Debian package socat)")
	p := tuntest.StartOpenSSH(t).Profile
	target := listenRaw(t, func(c net.Conn) { io.Copy(c, c) })
	pid := filepath.Join(t.TempDir(), "pid")
	p.ProxyCommand = fmt.Sprintf("sh -c 'echo $$ >%s; exec %s - TCP:%s:%d'", pid, nc, p.Host, p.Port)
	tr, err := connect(t, p, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := tr.Open(t.Context(), profiles.Destination{Host: "127.0.0.1", Port: target})
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("data"), 1<<20)
	go func() { s.Write(data); s.CloseWrite() }()
	if got, err := io.ReadAll(s); !bytes.Equal(got, data) {
		t.Errorf("%d bytes of %d, %v", len(got), len(data), err)
	}
	s.Close()
	tr.Close()
	text, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	number, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	eventually(t, "the end of the command", func() bool { return syscall.Kill(number, 0) == syscall.ESRCH })
}

// A command that fails says why; one that does not end is ended.
func TestProxyCommandFails(t *testing.T) {
	p := tuntest.ProfileFor("192.0.2.1:22", "tester", "/none", "/none")
	for line, want := range map[string]string{
		"sh -c 'echo no way >&2; exit 3'":              `ProxyCommand ended: exit status 3: "no way"`,
		"/no/such/program":                             "not found",
		"sh -c 'echo x >&2; yes y | head -c 2000 >&2'": "ProxyCommand ended",
		"sleep 1000":                        "no connection within",
		"sh -c 'trap \"\" HUP; sleep 1000'": "no connection within",
	} {
		p.ProxyCommand, p.ConnectTimeout = line, 10*time.Second
		if strings.HasPrefix(want, "no connection") {
			p.ConnectTimeout = 50 * time.Millisecond
		}
		if _, err := connect(t, p, nil); !errors.Is(err, profiles.ErrConnect) || !strings.Contains(err.Error(), want) || len(err.Error()) > 2000 {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
}

// startMaster runs the system's ssh as a ControlMaster to a server, until the test ends.
func startMaster(t *testing.T, sshd *profiles.Profile) (socket string, end func()) {
	t.Helper()
	program, err := exec.LookPath("ssh")
	tuntest.Need(t, err == nil, "needs ssh (Debian package openssh-client)")
	dir, err := os.MkdirTemp("", "mux") // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	cmd := exec.Command(program, "-N", "-M", "-S", socket, "-F", "none", "-p", fmt.Sprint(sshd.Port), "-i", sshd.Identities[0],
		"-o", "IdentitiesOnly=yes", "-o", "UserKnownHostsFile="+sshd.KnownHosts[0], "-l", sshd.User, sshd.Host)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	end = func() { once.Do(func() { cmd.Process.Kill(); cmd.Wait() }) }
	t.Cleanup(end)
	eventually(t, "the control socket", func() bool { _, err := os.Stat(socket); return err == nil })
	return socket, end
}

// The connection of a running ssh is used: no login of ours, the same streams.
func TestControlMaster(t *testing.T) {
	server := tuntest.StartOpenSSH(t)
	socket, end := startMaster(t, server.Profile)
	target := listenRaw(t, func(c net.Conn) { io.Copy(c, c); c.(*net.TCPConn).CloseWrite() })
	p := *server.Profile
	p.ControlPath, p.Identities, p.KnownHosts = socket, []string{"/none"}, []string{"/none"}
	p.KeepaliveInterval = 20 * time.Millisecond
	tr, err := connect(t, &p, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		tr.(profiles.Prober).Probe(time.Millisecond) // which is not put to ssh: it would hang up
		s, err := tr.Open(t.Context(), profiles.Destination{Host: "127.0.0.1", Port: target})
		if err != nil {
			t.Fatal(err)
		}
		data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		go func() { s.Write(data); s.CloseWrite() }()
		if got, err := io.ReadAll(s); !bytes.Equal(got, data) {
			t.Errorf("%d bytes of %d, %v", len(got), len(data), err)
		}
		s.Close()
	}
	if _, err := tr.Open(t.Context(), profiles.Destination{Host: "127.0.0.1", Port: 1}); !errors.Is(err, profiles.ErrRefused) {
		t.Errorf("a closed port: %v", err)
	}
	if n := strings.Count(server.Log(), "Accepted publickey"); n != 1 {
		t.Errorf("%d logins, want ssh's alone", n)
	}
	end()
	<-tr.Done()
	if _, err := connect(t, &p, nil); !errors.Is(err, profiles.ErrHostKey) {
		t.Errorf("without ssh we connect ourselves, with our own ideas of trust: %v", err)
	}
	for _, path := range []string{"/none", filepath.Dir(socket)} {
		p = *server.Profile
		p.ControlPath = path
		if _, err := connect(t, &p, nil); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	p.ControlPath = filepath.Join(filepath.Dir(socket), "silent")
	l, err := net.Listen("unix", p.ControlPath)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		c, err := l.Accept()
		if err == nil {
			c.Close()
		}
	}()
	defer l.Close()
	if _, err := connect(t, &p, nil); err != nil {
		t.Errorf("a socket that is no ssh's: %v", err)
	}
}
