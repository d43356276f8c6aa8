package comparison

import (
	_ "embed"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

func TestMain(m *testing.M) { sut.Main(m, nil) }

//go:embed probe.py
var probe string

// Ports of the inner machine.
const (
	greetingPort = 7010 // speaks first
	halfPort     = 7011 // answers once it has read to the end
	resetPort    = 7012 // resets after the first byte
	closedPort   = 7013
	ownPort      = 7014 // tells how its connection ends
)

// theGreeting is what shows that one has reached the service.
const theGreeting = "welcome"

// large is how much goes each way in the case of half-closes, as in probe.py.
const large = 300_000

// unreachable is what the bastion says is not to be reached.
var unreachable = netip.MustParseAddr("10.99.3.1")

// world is one client with one way to a network that its bastion alone reaches.
type world struct {
	*netns.Net
	sut.Programs
	sshd   *netns.SSHD
	asked  *netns.DNS  // the client's name server, which knows nothing
	ends   chan string // how connections to ownPort ended
	python string
	script string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Net: netns.NewBastion(t), Programs: sut.Build(t), ends: make(chan string, 1)}
	// The system's own: one of another place may be a script, and not be everybody's.
	netns.RequireProgram(t, "/usr/bin/python3", "python3")
	var err error
	if w.python, err = filepath.EvalSymlinks("/usr/bin/python3"); err != nil {
		t.Fatal(err)
	}
	w.script = filepath.Join(w.Net.Dir, "probe.py")
	if err := os.WriteFile(w.script, []byte(probe), 0o644); err != nil {
		t.Fatal(err)
	}
	w.sshd = w.Server.StartSSHD(t, netns.SSHDOptions{})
	w.sshd.Trust(t, w.Alice)
	w.Server.Output(t, nil, "ip", "route", "add", "unreachable", unreachable.String()+"/32")
	// The client's queries go to a server that does not know the name, the bastion's own
	// to one that does.
	w.asked = w.Server.StartDNS(t, w.Server.Addr4, nil)
	w.Server.StartDNS(t, netip.MustParseAddr("127.0.0.1"), map[string][]string{"db.internal": {w.Inner.Addr4.String()}})
	w.Client.Replace(t, "/etc/resolv.conf", fmt.Sprintf("nameserver %s\noptions timeout:2 attempts:1\n", w.Server.Addr4))

	w.serve(t, greetingPort, func(c *net.TCPConn) { fmt.Fprintln(c, theGreeting) })
	w.serve(t, halfPort, func(c *net.TCPConn) {
		if n, err := io.Copy(io.Discard, c); err == nil && n == large {
			_, _ = c.Write(make([]byte, large)) // the program counts
		}
	})
	w.serve(t, resetPort, func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0)
	})
	w.serve(t, ownPort, func(c *net.TCPConn) {
		first := make([]byte, 1)
		_, _ = c.Read(first)
		_, _ = c.Write(first)
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err := c.Read(first)
		switch {
		case strings.Contains(fmt.Sprint(err), syscall.ECONNRESET.Error()):
			w.ends <- "a reset"
		case err == io.EOF:
			w.ends <- "an orderly end"
		default:
			w.ends <- "nothing"
		}
	})
	return w
}

// serve serves at a port of the inner machine, by both families.
func (w *world) serve(t *testing.T, port uint16, serve func(*net.TCPConn)) {
	t.Helper()
	for _, addr := range []netip.Addr{w.Inner.Addr4, w.Inner.Addr6} {
		l := w.Inner.Listen(t, "tcp", netip.AddrPortFrom(addr, port).String())
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					serve(c.(*net.TCPConn))
				}()
			}
		}()
	}
}

// inClear tells what a wire has seen of the client's that was to be in the tunnel.
func (w *world) inClear(t *testing.T, wire *netns.Wire) bool {
	t.Helper()
	tunnel := []netip.Addr{w.Server.Addr4, w.Server.Addr6}
	return len(wire.Packets(t, func(p netns.Packet) bool {
		return p.Src.Addr() == w.Client.Addr4 && p.Dst.Addr() != tunnel[0] && p.Proto != 0 ||
			p.Src.Addr() == w.Client.Addr6 && p.Dst.Addr() != tunnel[1] && !p.Dst.Addr().IsMulticast() && p.Proto != protoICMPv6
	})) > 0
}

const protoICMPv6 = 58
