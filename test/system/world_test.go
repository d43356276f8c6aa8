package system

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sshbroker/capture/origin"
	"sshbroker/capture/service"
	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// settle is how long things may take that happen by themselves.
const settle = 30 * time.Second

// world is the host, with a name server of its own, a watch on its one way out, and
// destinations on the server that tell who came.
type world struct {
	*host.Host
	dns  *netns.DNS
	wire *netns.Wire
	came *destinations

	before netns.Snapshot
	own    []*netns.User // with brokers of their own
}

// names that the host's name server knows, and the server too, which opens them.
var zone = map[string][]string{
	"tunnel.test":  {"10.99.1.2"},
	"direct.test":  {"10.99.1.2"},
	"block.test":   {"10.99.1.2"},
	"special.test": {"10.99.1.2"},
	"six.test":     {"fd99:1::2"},
	"both.test":    {"10.99.1.2", "fd99:1::2"},
	"hint.test":    {"10.99.1.2", "hint 10.99.1.2", "hint fd99:1::2"},
}

// pseudoNames are known on the server alone.
var pseudoNames = []string{"www.corp.test", "mail.corp.test"}

// resolver is where the host's name server listens, as systemd-resolved does.
var resolver = netip.MustParseAddr("127.0.0.53")

// newWorld has the machines furnished; nothing of ours runs yet. It leaves out what
// belongs to the furniture when it compares at the end.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Host: host.New(t)}
	w.dns = w.Client.StartDNS(t, resolver, zone)
	w.Client.Replace(t, "/etc/resolv.conf", fmt.Sprintf("nameserver %v\noptions timeout:5 attempts:1\n", resolver))
	hosts := "127.0.0.1 localhost\n::1 localhost\n10.99.1.2 server " + strings.Join(pseudoNames, " ")
	for name, addrs := range zone {
		for _, a := range addrs {
			if !strings.HasPrefix(a, "hint ") {
				hosts += "\n" + a + " " + name
			}
		}
	}
	w.Server.Replace(t, "/etc/hosts", hosts+"\n")
	w.came = newDestinations(t, w.Server)
	w.wire = w.Client.Capture(t, "to-server")
	w.before = w.Snapshot(t)
	return w
}

// profile is a profile element of the system's for a port of the server.
func (w *world) profile(id string, port uint16) string {
	return fmt.Sprintf(`<profile id="%s" host="%s" port="%d">
  <server-authentication-methods><auth-server-publickey policy="strict"/></server-authentication-methods></profile>`, id, w.Server.Addr4, port)
}

// startOwnBroker starts a user's own broker.
func (w *world) startOwnBroker(t *testing.T, u *netns.User, config string) {
	t.Helper()
	w.StartBroker(t, u, config)
	w.own = append(w.own, u)
}

// hasBroker tells whether a user has an own broker.
func (w *world) hasBroker(u *netns.User) bool { return slices.Contains(w.own, u) }

// finish stops everything as an administrator would and requires that nothing is left.
func (w *world) finish(t *testing.T) {
	t.Helper()
	if r := w.Run(t, nil, w.Ctl, "connector", "disable"); r.Code != 0 {
		t.Errorf("connector disable: %v", r)
	}
	for _, u := range w.own {
		w.StopBroker(t, u)
	}
	w.StopSystemBroker(t)
	w.Release(t)
	w.StopCaptured(t)
	w.came.close()
	w.RequireRestored(t, w.before, settle)
	left, err := filepath.Glob(filepath.Join(w.Dir, "captured*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range left {
		info, err := os.Lstat(path)
		if err == nil && info.Mode().Type() == os.ModeSocket {
			t.Errorf("%s is still there", path)
		}
	}
}

// destinations are ports of the server that send back what they get, as testprog's
// -echo wants it, and know who came.
type destinations struct {
	m    *netns.Machine
	diag *origin.Diag

	mu   sync.Mutex
	open map[uint16]net.Listener
	came map[uint16][]arrival
}

// arrival is a connection to a destination.
type arrival struct {
	from netip.Addr
	// account is whose process on the server made it, -1 where another machine did.
	account int
}

func newDestinations(t *testing.T, m *netns.Machine) *destinations {
	t.Helper()
	d := &destinations{m: m, open: map[uint16]net.Listener{}, came: map[uint16][]arrival{}}
	if err := m.Do(func() (err error) { d.diag, err = origin.OpenDiag(); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.diag.Close() })
	return d
}

// listen opens a port for both families, once.
func (d *destinations) listen(t *testing.T, port uint16) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open[port] != nil {
		return
	}
	l := d.m.Listen(t, "tcp", fmt.Sprintf(":%d", port))
	d.open[port] = l
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go d.serve(port, c)
		}
	}()
}

func (d *destinations) serve(port uint16, c net.Conn) {
	defer c.Close()
	there, here := addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())
	a := arrival{from: there.Addr(), account: -1}
	if there.Addr() == here.Addr() {
		if sock, err := d.diag.Lookup(there, here); err == nil {
			a.account = int(sock.UID)
		}
	}
	d.mu.Lock()
	d.came[port] = append(d.came[port], a)
	d.mu.Unlock()
	r := bufio.NewReader(c)
	if line, err := r.ReadString('\n'); err == nil && line == "echo\n" {
		io.Copy(c, r)
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	p := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap().WithZone(""), p.Port())
}

// close listens no more.
func (d *destinations) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.open {
		l.Close()
	}
}

// take returns who came to a port since it was last asked.
func (d *destinations) take(port uint16) []arrival {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer delete(d.came, port)
	return d.came[port]
}

// outcome is what became of one connection.
type outcome struct {
	errno string // of connect(2), "ok" for none
	dst   netip.AddrPort
	syns  int  // that left the client for that port
	clear bool // its text was on the wire in clear
	came  []arrival
	took  time.Duration
}

// try has a program of a user's, nil for root, connect to host:port, and where it is
// let in send a text that is nowhere else. "" is testprog.
func (w *world) try(t *testing.T, u *netns.User, program, to string) outcome {
	t.Helper()
	if program == "" {
		program = w.Testprog
	}
	return w.tryBy(t, u, []string{program}, to)
}

// tryBy does it by a command line that ends with testprog.
func (w *world) tryBy(t *testing.T, u *netns.User, command []string, to string) outcome {
	t.Helper()
	_, portText, err := net.SplitHostPort(to)
	if err != nil {
		t.Fatal(err)
	}
	var port uint16
	fmt.Sscan(portText, &port)
	syns := func() int {
		return len(w.wire.Packets(t, func(p netns.Packet) bool { return netns.NewConnections(p) && p.Outgoing && p.Dst.Port() == port }))
	}
	text := "MARKER-" + rand.Text()
	w.came.take(port)
	before := syns()
	r := w.Run(t, u, append(command, "connect", "-echo", text, to)...)
	f := strings.Fields(r.Stdout)
	if r.Code != 0 || len(f) != 4 {
		t.Fatalf("%s to %s: %v", name(u), to, r)
	}
	o := outcome{errno: f[1], syns: syns() - before, clear: w.wire.Contains(t, []byte(text)), came: w.came.take(port)}
	o.dst, _ = netip.ParseAddrPort(f[0])
	var ms float64
	fmt.Sscan(f[2], &ms)
	o.took = time.Duration(ms * float64(time.Millisecond))
	if o.errno == "ok" && f[3] != "ok" {
		t.Errorf("%s to %s: connected, then %s", name(u), to, f[3])
	}
	return o
}

func name(u *netns.User) string {
	if u == nil {
		return "root"
	}
	return u.Name
}

// inClear fails the test unless o went out in clear and arrived once.
func (w *world) inClear(t *testing.T, o outcome) {
	t.Helper()
	if o.errno != "ok" || !o.clear || o.syns != 1 || len(o.came) != 1 || o.came[0].account != -1 {
		t.Errorf("not in clear: %+v", o)
	}
}

// throughTunnel fails the test unless o arrived from the server itself, by a login as u.
func (w *world) throughTunnel(t *testing.T, o outcome, u *netns.User) {
	t.Helper()
	if o.errno != "ok" || o.clear || o.syns != 0 || len(o.came) != 1 || o.came[0].account != int(u.UID) {
		t.Errorf("not through the tunnel as %s, uid %d: %+v", u.Name, u.UID, o)
	}
}

// nowhere fails the test unless connect() failed so and nothing left the client, nor arrived.
func (w *world) nowhere(t *testing.T, o outcome, errno string) {
	t.Helper()
	if o.errno != errno || o.clear || o.syns != 0 || len(o.came) != 0 {
		t.Errorf("want %s and nothing on the wire, got %+v", errno, o)
	}
}

// hits are the counts of the rules that the kernel carries out for the whole host.
func (w *world) hits(t *testing.T) map[string]uint64 {
	t.Helper()
	counts := map[string]uint64{}
	for _, c := range w.Status(t).Captures {
		if c.ID == service.System {
			for _, h := range c.Hits {
				counts[fmt.Sprintf("%s %d", h.Outcome, h.Rule)] = h.Count
			}
		}
	}
	return counts
}

// awaitWaiting waits until so many SYNs are held.
func (w *world) awaitWaiting(t *testing.T, n int) {
	t.Helper()
	w.Await(t, fmt.Sprintf("%d SYNs that wait", n), func(st service.Status) bool { return st.Waiting == n })
}
