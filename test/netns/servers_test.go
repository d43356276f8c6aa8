package netns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// telnet runs the real telnet client, as Alice on a terminal, types word and
// takes leave. It returns what appeared on the terminal.
func telnet(t *testing.T, m *Machine, d *Telnetd, word, host string, port uint16) string {
	t.Helper()
	path := RequireProgram(t, "inetutils-telnet", "inetutils-telnet")
	p := m.Start(t, Cmd{
		Args: []string{path, host, fmt.Sprint(port)}, User: m.net.Alice, TTY: &pty.Winsize{Rows: 24, Cols: 80},
	})
	p.WaitFor(t, d.Marker)
	p.Type(t, word+"\r")
	p.WaitFor(t, d.Answer+" "+word)
	p.Type(t, "bye\r")
	r := p.Wait(t)
	if r.Code != 1 && r.Code != 0 || !strings.Contains(r.Stdout, "Connection closed by foreign host") {
		t.Errorf("telnet: %s", r)
	}
	return r.Stdout
}

func TestTelnetInClearIsSeen(t *testing.T) {
	n := New(t)
	d := n.Server.StartTelnetd(t, 23)
	for _, host := range []string{"10.99.1.2", "fd99:1::2"} {
		wire := n.Client.Capture(t, "to-server")
		telnet(t, n.Client, d, "Xylophone", host, 23)
		for _, text := range []string{d.Marker, d.Answer + " Xylophone", "Xylophone\r"} {
			if !wire.Contains(t, []byte(text)) {
				t.Errorf("by %s: %q was said and is not seen", host, text)
			}
		}
		// What was typed went a byte a packet, and only the stream has it.
		typed := slices.ContainsFunc(wire.Streams(t), func(s Stream) bool {
			return s.Dst.Port() == 23 && strings.Contains(string(s.Bytes), "Xylophone")
		})
		if !typed {
			t.Errorf("by %s: the stream to the server lacks what was typed", host)
		}
		if got := len(wire.Packets(t, NewConnections)); got != 1 {
			t.Errorf("by %s: %d connections were opened", host, got)
		}
	}
}

// TestTelnetThroughSSH is the topology's purpose, done with ssh -L.
//
//	client: telnet -> ssh -L ── port 22 only ── sshd -> telnetd :server
func TestTelnetThroughSSH(t *testing.T) {
	n := New(t)
	before := n.Snapshot(t)
	d := n.Server.StartTelnetd(t, 23)
	sshd := n.Server.StartSSHD(t, SSHDOptions{})
	sshd.Trust(t, n.Alice)
	n.Server.AllowOnly(t, Reset, 22)
	for _, address := range []string{"10.99.1.2:23", "[fd99:1::2]:23"} {
		if c, err := n.Client.Dial("tcp", address); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("directly to %s: %v", address, err)
			if err == nil {
				c.Close()
			}
		}
	}
	wire := n.Client.Capture(t, "to-server")
	forward := sshd.Forward(t, n.Client, n.Alice, "127.0.0.1:2323", "127.0.0.1:23")
	telnet(t, n.Client, d, "Xylophone", "127.0.0.1", 2323)
	for _, text := range []string{d.Marker, d.Answer, "Xylophone"} {
		if wire.Contains(t, []byte(text)) {
			t.Errorf("%q passed in clear", text)
		}
	}
	for _, p := range wire.Packets(t, NewConnections) {
		if p.Dst.Port() != 22 || !p.Outgoing {
			t.Errorf("a connection to %s (outgoing: %t)", p.Dst, p.Outgoing)
		}
	}
	if len(wire.Packets(t, NewConnections)) != 1 || !wire.Contains(t, []byte("SSH-2.0-OpenSSH")) {
		t.Error("the tunnel itself was not seen")
	}

	forward.Kill(t)
	sshd.Kill(t)
	d.Stop()
	n.Server.AllowAll(t)
	n.RequireRestored(t, before, patience)
}

func TestFirewall(t *testing.T) {
	n := New(t)
	n.Server.Listen(t, "tcp", ":80")
	dial := func(from *Machine, address string) error {
		c, err := from.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err
	}
	for _, test := range []struct {
		refusal Refusal
		want    error
	}{{Reset, unix.ECONNREFUSED}, {Unreachable, unix.EHOSTUNREACH}} {
		n.Server.AllowOnly(t, test.refusal, 22)
		for _, address := range []string{"10.99.1.2:80", "[fd99:1::2]:80"} {
			if err := dial(n.Client, address); !errors.Is(err, test.want) {
				t.Errorf("%s: %s: got %v, want %v", test.refusal, address, err, test.want)
			}
			if err := dial(n.Server, address); err != nil {
				t.Errorf("%s: %s from the server itself: %v", test.refusal, address, err)
			}
		}
	}
	n.Server.AllowOnly(t, Silence, 80)
	if err := dial(n.Client, "10.99.1.2:80"); err != nil {
		t.Errorf("to a port allowed: %v", err)
	}
	n.Server.AllowAll(t)
	if err := dial(n.Client, "[fd99:1::2]:80"); err != nil {
		t.Errorf("without a firewall: %v", err)
	}
}

// TestCut: what is cut off hits connections that are live, and other ports are not.
func TestCut(t *testing.T) {
	n := New(t)
	l, other := n.Server.Listen(t, "tcp", ":80"), n.Server.Listen(t, "tcp", ":81")
	pair := func(l net.Listener, address string) (near, far net.Conn) {
		t.Helper()
		near, err := n.Client.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { near.Close() })
		if far, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { far.Close() })
		return near, far
	}
	arrives := func(from, to net.Conn, within time.Duration) error {
		if _, err := from.Write([]byte{'.'}); err != nil {
			return err
		}
		to.SetReadDeadline(time.Now().Add(within))
		_, err := to.Read(make([]byte, 1))
		return err
	}
	near, far := pair(l, "10.99.1.2:80")
	beside, besideFar := pair(other, "10.99.1.2:81")
	n.Server.Cut(t, Silence, 80)
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		if err := arrives(way[0], way[1], 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("cut off in silence: %v", err)
		}
	}
	if err := arrives(beside, besideFar, patience); err != nil {
		t.Errorf("another port: %v", err)
	}
	n.Server.Mend(t)
	near.SetReadDeadline(time.Now().Add(patience))
	if _, err := near.Read(make([]byte, 1)); err != nil {
		t.Errorf("mended: %v", err)
	}
	n.Server.Cut(t, Reset, 80)
	near.Write([]byte{'.'})
	near.SetReadDeadline(time.Now().Add(patience))
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("cut off with resets: %v", err)
	}
}

func TestSSHD(t *testing.T) {
	n := NewBastion(t)
	run := func(s *SSHD, u *User, more ...string) Result {
		args := append(s.ClientArgs(u), s.Addr4.Addr().String())
		return n.Client.Run(t, Cmd{Args: append(args, more...), User: u})
	}
	t.Run("only those named are let in", func(t *testing.T) {
		s := n.Server.StartSSHD(t, SSHDOptions{Port: 2201, Users: []*User{n.Alice}})
		s.Trust(t, n.Alice)
		s.Trust(t, n.Bob)
		if r := run(s, n.Alice, "id -un; uname -n"); r.Stdout != n.Alice.Name+"\nserver\n" {
			t.Errorf("alice: %s", r)
		}
		if r := run(s, n.Bob, "id"); r.Code != 255 || !strings.Contains(r.Stderr, "Permission denied") {
			t.Errorf("bob: %s", r)
		}
	})
	t.Run("passwords", func(t *testing.T) {
		s := n.Server.StartSSHD(t, SSHDOptions{Port: 2202, Users: []*User{}, Passwords: true})
		s.Trust(t, n.Bob)
		ask := n.Bob.Write(t, "askpass", "#!/bin/sh\necho '"+n.Bob.Password+"'\n", 0o700)
		args := slices.DeleteFunc(s.ClientArgs(n.Bob), func(arg string) bool { return arg == "BatchMode=yes" })
		args = slices.Delete(args, slices.Index(args, "-o"), slices.Index(args, "-o")+1)
		r := n.Client.Run(t, Cmd{Args: append(args, "10.99.1.2", "id -un"), User: n.Bob,
			Env: []string{"SSH_ASKPASS=" + ask, "SSH_ASKPASS_REQUIRE=force"}})
		if r.Stdout != n.Bob.Name+"\n" {
			t.Errorf("bob by password: %s", r)
		}
	})
	t.Run("a host key that changed", func(t *testing.T) {
		s := n.Server.StartSSHD(t, SSHDOptions{Port: 2203})
		s.Trust(t, n.Alice)
		s.Kill(t)
		again := n.Server.StartSSHD(t, SSHDOptions{Port: 2203, HostKey: s.HostKeyFile})
		if r := run(again, n.Alice, "true"); r.Code != 0 {
			t.Errorf("the same key: %s", r)
		}
		again.Kill(t)
		if r := run(n.Server.StartSSHD(t, SSHDOptions{Port: 2203}), n.Alice, "true"); !strings.Contains(r.Stderr, "REMOTE HOST IDENTIFICATION HAS CHANGED") {
			t.Errorf("another key: %s", r)
		}
	})
	t.Run("forwarding to a name that only the server knows", func(t *testing.T) {
		s := n.Server.StartSSHD(t, SSHDOptions{Port: 2204})
		s.Trust(t, n.Alice)
		d := n.Inner.StartTelnetd(t, 23)
		s.Forward(t, n.Client, n.Alice, "127.0.0.1:2404", "db.internal:23")
		if said := telnet(t, n.Client, d, "Xylophone", "127.0.0.1", 2404); !strings.Contains(said, "This is inner") {
			t.Errorf("telnet reached somebody else:\n%s", said)
		}
	})
	t.Run("forwarding forbidden", func(t *testing.T) {
		s := n.Server.StartSSHD(t, SSHDOptions{Port: 2205, Forwarding: "no"})
		s.Trust(t, n.Alice)
		args := append(s.ClientArgs(n.Alice), "-W", "127.0.0.1:2205", "10.99.1.2")
		if r := n.Client.Run(t, Cmd{Args: args, User: n.Alice}); r.Code == 0 || !strings.Contains(r.Stderr, "administratively prohibited") {
			t.Errorf("forwarding: %s", r)
		}
	})
	t.Run("killed with its connections", func(t *testing.T) {
		s := n.Server.StartSSHD(t, SSHDOptions{Port: 2206})
		s.Trust(t, n.Alice)
		forward := s.Forward(t, n.Client, n.Alice, "127.0.0.1:2406", "127.0.0.1:9")
		if killed := n.Server.KillAll(t, "sshd"); killed < 2 {
			t.Errorf("%d processes were killed", killed)
		}
		if r := forward.Wait(t); r.Code != 255 {
			t.Errorf("the client: %s", r)
		}
		if n.Server.Listening(2206) {
			t.Error("somebody still listens")
		}
	})
}

func TestDropbear(t *testing.T) {
	n := New(t)
	s := n.Server.StartDropbear(t, 22)
	if !n.Server.Listening(22) {
		t.Error("it does not listen when it says so")
	}
	d := n.Server.StartTelnetd(t, 23)
	n.Alice.Write(t, ".ssh/known_hosts", s.KnownHosts(), 0o600)
	if r := n.Client.Run(t, Cmd{Args: append(s.ClientArgs(n.Alice), "10.99.1.2", "id -un; uname -n"), User: n.Alice}); r.Stdout != n.Alice.Name+"\nserver\n" {
		t.Errorf("a command: %s", r)
	}
	args := append(s.ClientArgs(n.Alice), "-N", "-L", "127.0.0.1:2323:127.0.0.1:23",
		"-o", "PermitLocalCommand=yes", "-o", "LocalCommand=echo ready", "10.99.1.2")
	n.Client.Start(t, Cmd{Args: args, User: n.Alice}).WaitFor(t, "ready")
	telnet(t, n.Client, d, "Xylophone", "127.0.0.1", 2323)
}

// TestSnapshot leaves one thing of each kind behind, sees it, and sees it gone.
func TestSnapshot(t *testing.T) {
	n := New(t)
	before := n.Snapshot(t)
	if diff := n.Snapshot(t).Diff(before); len(diff) > 0 {
		t.Fatalf("nothing happened, yet:\n%s", strings.Join(diff, "\n"))
	}
	cgroup := "/sys/fs/cgroup"
	if _, err := os.Stat(cgroup + "/unified"); err == nil {
		cgroup += "/unified"
	}
	cgroup += fmt.Sprintf("/ssh-capture-%d-test.scope", n.Alice.UID)
	start := func(t *testing.T, script string, files ...*os.File) func() {
		p := n.Client.Start(t, Cmd{Args: []string{"sh", "-c", script}, User: n.Alice, Files: files})
		p.WaitFor(t, "up")
		return func() { p.Kill(t) }
	}
	for _, test := range []struct {
		name string
		make func(*testing.T) (undo func())
		want string // the beginning of a line of the difference
	}{
		{"process", func(t *testing.T) func() { return start(t, "echo up; exec sleep 1000") }, "+ process "},
		{"orphan without the mark", func(t *testing.T) func() {
			start(t, "env -i setsid sleep 1001 & echo up")
			return func() { n.Client.KillAll(t, "sleep") }
		}, "+ process "},
		{"network namespace", func(t *testing.T) func() {
			return start(t, "exec unshare -Urn sh -c 'echo up; exec sleep 1000'")
		}, "+ network namespace "},
		{"network namespace held by a descriptor", func(t *testing.T) func() {
			// The child has left; the shell keeps what it was in.
			return start(t, "unshare -Urn sh -c 'echo; exec sleep 1000' | { read -r _; exec 9</proc/$(pgrep -u $(id -u) -f '^sleep 1000')/ns/net; pkill -u $(id -u) -f '^sleep 1000'; echo up; exec sleep 1002; }")
		}, "+ network namespace "},
		{"network namespace held by a socket", func(t *testing.T) func() {
			socket := socketElsewhere(t)
			defer socket.Close()
			return start(t, "echo up; exec sleep 1003", socket)
		}, "+ network namespace "},
		{"table", func(t *testing.T) func() {
			n.Client.nft(t, "table inet left_behind {\n chain c {\n }\n}\n")
			return func() { n.Client.nft(t, "delete table inet left_behind") }
		}, "+ nftables of client: table inet left_behind"},
		{"interface", func(t *testing.T) func() {
			n.Client.Output(t, nil, "ip", "link", "add", "left-behind", "type", "veth")
			return func() { n.Client.Output(t, nil, "ip", "link", "delete", "left-behind") }
		}, "+ interface left-behind of client"},
		{"route", func(t *testing.T) func() {
			n.Client.Output(t, nil, "ip", "route", "add", "192.0.2.0/24", "via", "10.99.1.2", "table", "77")
			return func() { n.Client.Output(t, nil, "ip", "route", "flush", "table", "77") }
		}, "+ route of client: "},
		{"policy rule", func(t *testing.T) func() {
			n.Client.Output(t, nil, "ip", "-6", "rule", "add", "fwmark", "5", "lookup", "main")
			return func() { n.Client.Output(t, nil, "ip", "-6", "rule", "delete", "fwmark", "5") }
		}, "+ policy rule of client, "},
		{"kernel parameter", func(t *testing.T) func() {
			n.Client.Sysctl(t, "net.ipv4.icmp_ratemask", "6160")
			return func() { n.Client.Sysctl(t, "net.ipv4.icmp_ratemask", "6168") }
		}, "+ /proc/sys/net/ipv4/icmp_ratemask of client: 6160"},
		{"TCP socket", func(t *testing.T) func() {
			l := n.Client.Listen(t, "tcp", "127.0.0.1:4000")
			return func() { l.Close() }
		}, "+ tcp socket 0100007F:0FA0 "},
		{"Unix socket", func(t *testing.T) func() {
			l := n.Client.Listen(t, "unix", "@left-behind")
			return func() { l.Close() }
		}, "+ unix socket @left-behind of client"},
		{"file", func(t *testing.T) func() {
			start(t, "mkdir -p /tmp/ssh-$USER; echo > /tmp/ssh-$USER/broker; echo up")
			return func() { os.RemoveAll("/tmp/ssh-" + n.Alice.Name) }
		}, "+ file /tmp/ssh-" + n.Alice.Name + "/broker"},
		{"cgroup", func(t *testing.T) func() {
			if err := os.Mkdir(cgroup, 0o755); err != nil {
				t.Skipf("no cgroup can be made: %v", err)
			}
			return func() { os.Remove(cgroup) }
		}, "+ cgroup " + cgroup},
	} {
		t.Run(test.name, func(t *testing.T) {
			undo := test.make(t)
			diff := n.Snapshot(t).Diff(before)
			if !slices.ContainsFunc(diff, func(line string) bool { return strings.HasPrefix(line, test.want) }) {
				t.Errorf("nothing that begins with %q:\n%s", test.want, strings.Join(diff, "\n"))
			}
			undo()
			n.RequireRestored(t, before, 10*time.Second)
		})
	}
}

// socketElsewhere returns a socket in a network namespace that nobody is in.
func socketElsewhere(t *testing.T) *os.File {
	t.Helper()
	type result struct {
		fd  int
		err error
	}
	made := make(chan result)
	onNewThread(func() {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{-1, err}
			return
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		made <- result{fd, err}
	})
	r := <-made
	if r.err != nil {
		t.Fatal(r.err)
	}
	return os.NewFile(uintptr(r.fd), "socket")
}
