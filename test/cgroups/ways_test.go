package cgroups

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// Ports of the server, by what the rules of configureWays say of them.
const (
	tunneled = 7001
	direct   = 7002
	blocked  = 7003
	dead     = 7004 // by a profile whose server does not answer
	nobody   = 7005 // tunneled as well, and nobody listens
	webPort  = 7080
	deadSSH  = 7099 // nobody listens
)

// configureWays writes rules for a user that have every action.
func (w *world) configureWays(t *testing.T, u *netns.User) {
	t.Helper()
	ssh := fmt.Sprintf(`port="%d"`, w.ServerAddr().Port())
	silent := strings.Replace(w.Profile("dead", ""), ssh, fmt.Sprintf(`port="%d"`, deadSSH), 1)
	u.Write(t, ".ssh2/ssh-broker-config.xml", host.Config("<profiles>"+w.Profile("p", "")+silent+`</profiles>
<filter-engine>
  <rule ip-address=".*" ports="7001,7005,7080,23" action="TUNNEL" profile-id="p"/>
  <rule ip-address=".*" ports="7002" action="DIRECT"/>
  <rule ip-address=".*" ports="7003" action="BLOCK"/>
  <rule ip-address=".*" ports="7004" action="TUNNEL" profile-id="dead"/>
</filter-engine>`), 0o600)
}

// TestPrograms sends what programs say through the tunnel, by both families.
func TestPrograms(t *testing.T) {
	w := newCaptured(t)
	s := w.onServer(t, tunneled)
	page := "page-" + s.marker
	for _, a := range both(w.Server) {
		l := w.Server.Listen(t, "tcp", netip.AddrPortFrom(a, webPort).String())
		w.listeners = append(w.listeners, l)
		go http.Serve(l, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprintf(rw, "%s %s\n", page, r.RemoteAddr) }))
	}
	w.configureWays(t, w.Alice)
	for _, backend := range []string{"cgroup", "auto"} {
		t.Run(backend, func(t *testing.T) {
			run := func(args ...string) string {
				t.Helper()
				return expect(t, w.Run(t, w.Alice, append([]string{w.Capture, "--backend", backend}, args...)...), 0).Stdout
			}
			for _, a := range both(w.Server) {
				s.requireFrom(t, run("bash", "-c", dial(a, tunneled)), a)
				if got := run("curl", "-sS", "http://"+netip.AddrPortFrom(a, webPort).String()+"/"); !strings.Contains(got, page+" "+hostOf(a)) {
					t.Errorf("curl: %q", got)
				}
				s.requireFrom(t, run("/usr/bin/python3", "-c", `import socket, sys
c = socket.create_connection((sys.argv[1], int(sys.argv[2])))
c.sendall(b"end\n")
print(c.makefile().read())`, a.String(), fmt.Sprint(tunneled)), a)
				telnet := w.Cmd(w.Alice, w.Capture, "--backend", backend, "telnet", a.String(), fmt.Sprint(tunneled))
				telnet.TTY = &pty.Winsize{Rows: 24, Cols: 80}
				p := w.Client.Start(t, telnet)
				p.WaitFor(t, "from")
				p.Type(t, "typed in telnet\r")
				p.WaitFor(t, s.marker+" typed in telnet")
				p.Type(t, "end\r")
				s.requireFrom(t, p.Wait(t).Stdout, a)
			}
			if got := run("sed", "-n", "s/^0:://p", "/proc/self/cgroup"); !strings.HasPrefix(got, fmt.Sprintf("/ssh-capture/%d-", w.Alice.UID)) {
				t.Errorf("it runs in %s", got)
			}
		})
	}
	w.clear(t, s.marker, false)
	w.clear(t, "typed in telnet", false)
	for _, r := range records(t, w.Alice, 16) {
		if r.Backend != "cgroup" || r.Action != "TUNNEL" || r.Reason != "carried" || r.Rule != 1 || r.UID != w.Alice.UID || r.PID == 0 || r.Program == "" || r.BytesDown == 0 {
			t.Errorf("recorded %+v", r)
		}
	}
	// The positive control: without a capture it is seen.
	s.requireFrom(t, expect(t, w.Run(t, w.Alice, "bash", "-c", dial(w.Server.Addr4, tunneled)), 0).Stdout, w.Client.Addr4)
	w.clear(t, s.marker, true)
	w.finish(t)
}

func both(m *netns.Machine) []netip.Addr { return []netip.Addr{m.Addr4, m.Addr6} }

// hostOf is an address as it begins in a text with a port.
func hostOf(a netip.Addr) string {
	return strings.TrimSuffix(net.JoinHostPort(a.String(), ""), ":")
}

// TestOutcomes: connect() tells what became of it, and nothing leaves in clear.
func TestOutcomes(t *testing.T) {
	w := newCaptured(t)
	w.onServer(t, tunneled)
	w.onServer(t, blocked)
	w.configureWays(t, w.Alice)
	for _, a := range both(w.Server) {
		for _, want := range []struct {
			port    uint16
			outcome string
			reason  string // in the record; "" where the kernel decides by itself
		}{
			{tunneled, "ok", "carried"},
			{nobody, "ECONNREFUSED", "refused-by-destination"},
			{blocked, "ECONNREFUSED", ""},
			{dead, "EHOSTUNREACH", "server-unreachable"},
		} {
			to, before := netip.AddrPortFrom(a, want.port), len(host.Records(t, host.UserAuditFile(w.Alice)))
			got, took := w.outcome(t, w.capture(w.Alice), to)
			if got != want.outcome || took > settle {
				t.Errorf("%v: %s after %v, want %s within %v", to, got, took, want.outcome, settle)
			}
			if n := w.syns(t, to); n != 0 {
				t.Errorf("%v: %d SYNs left the host", to, n)
			}
			if want.reason != "" {
				if r := records(t, w.Alice, before+1)[before]; r.Reason != want.reason {
					t.Errorf("%v: recorded %+v, want reason %s", to, r, want.reason)
				}
			}
		}
	}
	// Nothing is left to be recorded: what the kernel decided is not.
	if list := host.Records(t, host.UserAuditFile(w.Alice)); len(list) != 6 {
		t.Errorf("%d records, want 6: %+v", len(list), list)
	}
	if got, _ := w.outcome(t, w.Cmd(w.Alice), netip.AddrPortFrom(w.Server.Addr4, blocked)); got != "ok" || w.syns(t, netip.AddrPortFrom(w.Server.Addr4, blocked)) == 0 {
		t.Errorf("the control connects without a capture: %s", got)
	}
	w.finish(t)
}

// TestDirect: the program's own socket speaks to the server's, as without a capture.
func TestDirect(t *testing.T) {
	w := newCaptured(t)
	s := w.onServer(t, direct)
	w.configureWays(t, w.Alice)
	script := []string{"/usr/bin/python3", "-c", `import socket, sys
c = socket.create_connection((sys.argv[1], int(sys.argv[2])))
c.sendall(b"end\n")
name, peer = c.getsockname(), c.getpeername()
print(c.makefile().read(), end="")
for a in name, peer: print("[%s]:%d" % a[:2] if ":" in a[0] else "%s:%d" % a[:2])`}
	for i, a := range both(w.Server) {
		var syns [][]byte
		for _, c := range []netns.Cmd{w.Cmd(w.Alice), w.capture(w.Alice)} {
			c.Args = append(c.Args, append(script, a.String(), fmt.Sprint(direct))...)
			said := strings.Split(expect(t, w.Client.Run(t, c), 0).Stdout, "\n")
			if len(said) != 4 {
				t.Fatalf("python said %q", said)
			}
			from := s.caller(said[0] + "\n")
			if from.Addr() != both(w.Client)[i] || from.String() != said[1] || said[2] != netip.AddrPortFrom(a, direct).String() {
				t.Errorf("%v: the program's socket is %s, its peer %s; the server's peer %v", c.Args[0], said[1], said[2], from)
			}
			sent := w.wire.Packets(t, func(p netns.Packet) bool { return netns.NewConnections(p) && p.Src == from })
			if len(sent) != 1 {
				t.Fatalf("%d SYNs from %v", len(sent), from)
			}
			syns = append(syns, options(t, sent[0]))
		}
		if string(syns[0]) != string(syns[1]) {
			t.Errorf("%v: options of the SYN %x without a capture, %x with one", a, syns[0], syns[1])
		}
	}
	w.clear(t, s.marker, true)
	if list := host.Records(t, host.UserAuditFile(w.Alice)); len(list) != 0 {
		t.Errorf("recorded %+v, though the kernel decides", list)
	}
	w.finish(t)
}

// options are those of a TCP header, without the time stamps' values.
func options(t *testing.T, p netns.Packet) []byte {
	t.Helper()
	header := p.Frame[len(p.Frame)-len(p.Payload)-40:] // a SYN of Linux has 20 bytes of options
	o := slices.Clone(header[20:])
	for i := 0; i < len(o); {
		switch o[i] {
		case 0, 1: // end, no operation
			i++
		case 8: // time stamps, RFC 7323
			copy(o[i+2:], make([]byte, 8))
			fallthrough
		default:
			if i+1 >= len(o) || o[i+1] < 2 {
				t.Fatalf("options %x", o)
			}
			i += int(o[i+1])
		}
	}
	return o
}

// TestLoopback: the host's own is reached as without a capture, and judged under -l.
func TestLoopback(t *testing.T) {
	w := newCaptured(t)
	local := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback(), w.Client.Addr4, w.Client.Addr6}
	s := w.serve(t, w.Client, blocked, local...)
	w.configureWays(t, w.Alice)
	for _, a := range local {
		s.requireFrom(t, w.captured(t, w.Alice, "bash", "-c", dial(a, blocked)), a)
		if got, _ := w.outcome(t, w.capture(w.Alice, "-l"), netip.AddrPortFrom(a, blocked)); got != "ECONNREFUSED" {
			t.Errorf("-l: %v: %s", a, got)
		}
	}
	// A listener in the capture is reached from outside.
	in := w.start(t, w.capture(w.Alice, w.Testprog, "serve", "127.0.0.1:7010"))
	in.WaitFor(t, "listening")
	if got, _ := w.outcome(t, w.Cmd(w.Bob), netip.MustParseAddrPort("127.0.0.1:7010")); got != "ok" {
		t.Errorf("a captured server is reached with %s", got)
	}
	in.Signal(t, unix.SIGTERM)
	in.Wait(t)
	w.finish(t)
}
