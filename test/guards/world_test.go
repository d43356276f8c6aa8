package guards

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sshbroker/capture/service"
	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// patience is how long things may take that happen by themselves.
const patience = 20 * time.Second

// The places of the server. What goes to a protected one must not be seen on the wire,
// wherever foreign rules send it.
const (
	byRule    = "10.99.1.2:7001"    // TUNNEL by the rules of the host
	byRule6   = "[fd99:1::2]:7001"  // the same
	byCgroup  = "10.99.1.2:7002"    // TUNNEL by Bob's rules, in a cgroup capture of his
	compiled  = "10.99.1.2:7005"    // DIRECT, which the kernel decides
	elsewhere = "10.99.1.3"         // where foreign rules divert to
	hijacker  = "127.0.0.1:7099"    // a program on the client that foreign rules redirect to
	secret    = "PROTECTED-PAYLOAD" // in all that is sent by protected flows
	direct    = "10.99.1.1 "        // begins the remote address of what came in clear
)

// world is a host with rules for everybody, and Bob's capture on it.
type world struct {
	*host.Host
	t       *testing.T // of the whole world, for what outlives a subtest
	program string     // the dialer
	wire    *netns.Wire
	bobs    *netns.Process // Bob's broker

	alice   *dialer // of whom the host's rules take what goes to byRule
	bob     *dialer // in his capture; nil while there is none
	enabled bool
}

func newWorld(t *testing.T, args ...string) *world {
	t.Helper()
	netns.RequireProgram(t, "nft", "nftables")
	w := &world{Host: host.New(t), t: t}
	w.sh(t, w.Server, "ip addr add "+elsewhere+"/24 dev to-client")
	for _, address := range []string{byRule, byRule6, byCgroup, compiled, elsewhere + ":7001", elsewhere + ":7002", elsewhere + ":7005"} {
		answer(w.Server.Listen(t, "tcp", address))
	}
	answer(w.Client.Listen(t, "tcp", hijacker))
	answer(w.Client.Listen(t, "tcp", "[::1]:7099"))
	w.copyProgram(t)
	w.wire = w.Client.Capture(t, "to-server")

	w.StartCaptured(t, args...)
	w.StartSystemBroker(t, host.Config("<profiles>"+w.Profile("p", w.Service.Name)+`</profiles>
<filter-engine>
  <rule ip-address="10.99.1.2/32" ports="7001" action="TUNNEL" profile-id="p"/>
  <rule ip-address="fd99:1::2/128" ports="7001" action="TUNNEL" profile-id="p"/>
  <rule ip-address="10.99.1.2/32" ports="7005" action="DIRECT"/>
</filter-engine>`))
	w.Bob.Write(t, ".ssh2/ssh-broker-config.xml", host.Config("<profiles>"+w.Profile("p", w.Bob.Name)+`</profiles>
<filter-engine>
  <rule ip-address="10.99.1.2/32" ports="7002" action="TUNNEL" profile-id="p"/>
</filter-engine>`), 0o600)
	c := w.Cmd(w.Bob, w.Broker, "--foreground")
	c.Limit = -1
	w.bobs = w.Client.Start(t, c)
	w.Await(t, "a broker of Bob's that carries", func(st service.Status) bool { return len(st.Carriers) == 1 })
	w.alice = w.startDialer(t, w.Cmd(w.Alice))
	return w
}

// copyProgram puts this program where users can run it.
func (w *world) copyProgram(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	if err == nil {
		w.program = filepath.Join(w.Dir, "dialer")
		var b []byte
		if b, err = os.ReadFile(self); err == nil {
			err = os.WriteFile(w.program, b, 0o755)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// answer answers each line with both addresses and the line.
func answer(l net.Listener) {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for in := bufio.NewReader(c); ; {
					line, err := in.ReadString('\n')
					if err != nil {
						return
					}
					remote, _, _ := net.SplitHostPort(c.RemoteAddr().String())
					if _, err := io.WriteString(c, fmt.Sprintf("%s %s %s", c.LocalAddr(), remote, line)); err != nil {
						return
					}
				}
			}()
		}
	}()
}

// sh runs a script as root on a machine.
func (w *world) sh(t *testing.T, m *netns.Machine, script string) string {
	t.Helper()
	r := m.Run(t, netns.Cmd{Args: []string{"bash", "-e", "-c", script}})
	if r.Code != 0 {
		t.Fatalf("%s: %s: %v", m.Name, script, r)
	}
	return r.Stdout
}

// on puts everything in force that is ours.
func (w *world) on(t *testing.T) {
	t.Helper()
	if !w.enabled {
		w.Enable(t)
		w.enabled = true
	}
	if w.bob == nil {
		w.bob = w.startDialer(t, w.Cmd(w.Bob, w.Capture, "--backend=cgroup"))
	}
}

// off takes all that out of the kernel, so that what is loaded next comes before ours.
func (w *world) off(t *testing.T) {
	t.Helper()
	if w.bob != nil {
		w.bob.stop(t)
		w.bob = nil
		w.Await(t, "no capture of Bob's", func(st service.Status) bool { return len(st.Captures) <= 1 })
	}
	if r := w.Run(t, nil, w.Ctl, "connector", "disable"); r.Code != 0 {
		t.Fatalf("connector disable: %v", r)
	}
	w.enabled = false
	poll(t, "our table to go", func() bool {
		return !strings.Contains(w.sh(t, w.Client, "nft list tables"), "ssh_captured")
	})
}

// poll waits for what has no event.
func poll(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
		<-time.After(2 * time.Millisecond)
	}
}

// mark is a moment on the wire.
func (w *world) mark(t *testing.T) int { return len(w.wire.Packets(t, nil)) }

// unseen fails the test if since then anything left the client but to the SSH server,
// or the secret was to be seen.
func (w *world) unseen(t *testing.T, since int) {
	t.Helper()
	for _, p := range w.wire.Packets(t, nil)[since:] {
		if p.Outgoing && netns.NewConnections(p) && p.Dst.Port() != w.ServerAddr().Port() {
			t.Errorf("LEAK: a SYN left, %v to %v", p.Src, p.Dst)
		}
		if bytes.Contains(p.Frame, []byte(secret)) {
			t.Errorf("LEAK: payload in clear, %v to %v", p.Src, p.Dst)
		}
	}
}

// syns are the first packets of connections that left since then.
func (w *world) syns(t *testing.T, since int) (list []netns.Packet) {
	t.Helper()
	for _, p := range w.wire.Packets(t, nil)[since:] {
		if p.Outgoing && netns.NewConnections(p) {
			list = append(list, p)
		}
	}
	return list
}

// protected begins one connection of each kind that is protected.
func (w *world) protected(t *testing.T) []*flow {
	t.Helper()
	return []*flow{w.alice.dial(t, byRule), w.alice.dial(t, byRule6), w.bob.dial(t, byCgroup)}
}

// through fails the test unless the connection came through the tunnel, and works.
func (w *world) through(t *testing.T, f *flow) {
	t.Helper()
	if got := f.answer(t); got != "connected" {
		t.Errorf("to %s: %s", f.to, got)
		return
	}
	w.speaks(t, f)
}

// speaks fails the test unless a connection works and comes from the SSH server.
func (w *world) speaks(t *testing.T, f *flow) {
	t.Helper()
	from := "10.99.1.2"
	if f.to == byRule6 {
		from = "fd99:1::2"
	}
	if got, want := f.say(t, secret), fmt.Sprintf("%s %s %s", f.to, from, secret); got != want {
		t.Errorf("to %s: it says %q, want %q", f.to, got, want)
	}
}
