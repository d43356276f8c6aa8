package system

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// The pools of made-up addresses in these tests.
var (
	pool4 = netip.MustParsePrefix("198.18.0.0/15")
	pool6 = netip.MustParsePrefix("fd12:3456:789a::/64")
)

// namesConfig has rules by name, on a port each.
func (w *world) namesConfig(attributes string) string {
	return host.Config("<profiles>" + w.profile("good", w.SSHD.Addr4.Port()) + `</profiles>
<filter-engine ` + attributes + `>
  <rule host=".*\.corp\.test" pseudo-ip="YES" action="TUNNEL" profile-id="good"/>
  <rule host="tunnel\.test" ports="7002" action="TUNNEL" profile-id="good"/>
  <rule host="block\.test" ports="7002" action="BLOCK"/>
  <rule host="(both|hint)\.test" ports="7003" action="BLOCK"/>
</filter-engine>`)
}

// startNames starts what answers name queries.
func (w *world) startNames(t *testing.T, attributes string) {
	t.Helper()
	for _, port := range []uint16{7001, 7002, 7003} {
		w.came.listen(t, port)
	}
	w.StartCaptured(t)
	w.StartSystemBroker(t, w.namesConfig(attributes))
	w.Enable(t)
}

// requireUnheard fails the test if a query left the machine, or a pseudo name reached
// its name server, or anything at all went to a made-up address.
func (w *world) requireUnheard(t *testing.T) {
	t.Helper()
	for _, p := range w.wire.Packets(t, nil) {
		switch a := p.Dst.Addr(); {
		case p.Dst.Port() == 53 || bytes.Contains(p.Frame, []byte("\x04corp\x04test")):
			t.Errorf("a query left the machine for %v", p.Dst)
		case a.IsValid() && (pool4.Contains(a) || pool6.Contains(a)):
			t.Errorf("a packet left the machine for %v", p.Dst)
		}
	}
	for _, q := range w.dns.Asked() {
		if strings.Contains(q, "corp.test") {
			t.Errorf("the host's name server was asked %q", q)
		}
	}
}

// TestResolversOfTheHost asks for pseudo names, and others, as programs do: with glibc's
// resolver, Go's and dig's, over UDP and TCP, IPv4 and IPv6, at the server that
// resolv.conf names and at others.
func TestResolversOfTheHost(t *testing.T) {
	for _, program := range []string{"dig", "curl"} {
		netns.RequireProgram(t, program, map[string]string{"dig": "dnsutils", "curl": "curl"}[program])
	}
	for _, mode := range []struct {
		name, attributes, www6 string
	}{{name: "IPv4 pool"}, {"both pools", `ip6-generate-start="` + pool6.Addr().String() + `"`, "fd12:3456:789a::1"}} {
		t.Run(mode.name, func(t *testing.T) {
			w := newWorld(t)
			w.startNames(t, mode.attributes)
			said := func(u *netns.User, args ...string) string {
				t.Helper()
				r := w.Run(t, u, args...)
				return strings.TrimSuffix(r.Stdout, "\n")
			}
			const www = "198.18.0.1"
			both := www
			if mode.www6 != "" {
				both += " " + mode.www6
			}
			addresses := func(name string) string {
				t.Helper()
				var list []string
				for line := range strings.Lines(said(w.Alice, "getent", "ahosts", name)) {
					if f := strings.Fields(line); !slices.Contains(list, f[0]) {
						list = append(list, f[0])
					}
				}
				slices.Sort(list)
				return strings.Join(list, " ")
			}
			for name, want := range map[string]string{"www.corp.test": both, "WWW.corp.test": both, "both.test": "10.99.1.2 fd99:1::2",
				"six.test": "fd99:1::2", "server": "10.99.1.2 fd99:1::2", "nosuch.test": "", "localhost": "127.0.0.1 ::1"} {
				if got := addresses(name); got != want {
					t.Errorf("getaddrinfo of %s: %q, want %q", name, got, want)
				}
			}
			for _, u := range []*netns.User{w.Alice, w.Bob, w.Carol} { // a pseudo name is the same for all
				if got := said(u, "getent", "ahostsv4", "www.corp.test"); !strings.HasPrefix(got, www+" ") {
					t.Errorf("%s: www.corp.test is %q", u.Name, got)
				}
			}

			// Names travel to the server as they are, whoever resolves and connects.
			w.throughTunnel(t, w.try(t, w.Alice, "", "www.corp.test:7001"), w.Service) // Go
			w.came.take(7001)
			for _, flag := range []string{"-4", "-6"} { // glibc
				r := w.Run(t, w.Carol, "curl", "-sS", flag, "--max-time", "20", "http://mail.corp.test:7001/")
				came := w.came.take(7001)
				if want := flag == "-4" || mode.www6 != ""; want != (len(came) == 1) || want && came[0].account != int(w.Service.UID) {
					t.Errorf("curl %s: arrived as %+v: %v", flag, came, r)
				}
			}
			records := host.AwaitRecords(t, w.AuditFile(), 2)
			if a, c := records[0], records[1]; a.Target != "www.corp.test:7001" || a.UID != w.Alice.UID || c.Target != "mail.corp.test:7001" || c.UID != w.Carol.UID ||
				!slices.Equal(a.Names, []string{"www.corp.test"}) || a.Rule != 1 {
				t.Errorf("recorded %+v", records)
			}

			dig := func(args ...string) string {
				t.Helper()
				return said(w.Alice, append([]string{"dig", "+short", "+tries=1", "+time=20"}, args...)...)
			}
			for _, server := range []string{"@127.0.0.53", "@127.0.0.1", "@10.99.1.2", "@192.0.2.53", "@::1", "@fd99:1::2", "@2001:db8::53"} {
				for _, transport := range []string{"+notcp", "+tcp"} {
					for question, want := range map[string]string{
						"www.corp.test A": www, "www.corp.test AAAA": mode.www6, "www.corp.test HTTPS": "", "www.corp.test SVCB": "", "www.corp.test TXT": "", "www.corp.test MX": "",
						"tunnel.test A": "10.99.1.2", "six.test AAAA": "fd99:1::2", "localhost A": "127.0.0.1", "_dns.resolver.arpa SVCB": "",
					} {
						if got := dig(append([]string{server, transport}, strings.Fields(question)...)...); got != want {
							t.Errorf("%s %s %s: %q, want %q", server, transport, question, got, want)
						}
					}
				}
			}
			// Other types of a name that is there are empty, not a name that is not there.
			for _, typ := range []string{"AAAA", "HTTPS", "SVCB", "MX", "ANY"} {
				if got := said(w.Alice, "dig", "+tries=1", "+time=20", "+tcp", "www.corp.test", typ); !strings.Contains(got, "status: NOERROR") {
					t.Errorf("dig www.corp.test %s: %s", typ, got)
				}
			}
			// One who asked is told the name behind the address.
			if got := dig("-x", www); got != "www.corp.test." {
				t.Errorf("the name of %s: %q", www, got)
			}
			w.requireUnheard(t)
			w.finish(t)
		})
	}
}

// TestHintsDoNotLeadPast: an address that a program learnt in whatever way from an
// answer is judged by the name that it asked for; by IPv6 as by IPv4.
func TestHintsDoNotLeadPast(t *testing.T) {
	w := newWorld(t)
	w.startNames(t, "")
	// The control: root's query goes to the host's name server, which has the hints.
	control := w.Run(t, nil, "dig", "+short", "+tries=1", "+time=20", "hint.test", "TYPE65")
	plain := w.Run(t, nil, "dig", "+short", "+tries=1", "+time=20", "hint.test", "HTTPS")
	if hints := plain.Stdout + control.Stdout; !strings.Contains(hints, "10.99.1.2") && !strings.Contains(strings.ReplaceAll(hints, " ", ""), "0A630102") {
		t.Fatalf("the control has no hints: %v %v", control, plain)
	}
	m, err := w.query(w.Carol, "udp", netip.AddrPortFrom(resolver, 53), "hint.test", dnsmessage.TypeHTTPS)
	if err != nil {
		t.Fatal(err)
	}
	if answer, err := m.Pack(); err != nil || !bytes.Contains(answer, []byte{10, 99, 1, 2}) {
		t.Errorf("the answer has no hints: %v, %v", m, err)
	}
	w.nowhere(t, w.try(t, w.Carol, "", "10.99.1.2:7003"), "ECONNREFUSED")
	w.nowhere(t, w.try(t, w.Carol, "", "[fd99:1::2]:7003"), "ECONNREFUSED")
	w.inClear(t, w.try(t, w.Bob, "", "10.99.1.2:7003"))
	w.Run(t, w.Bob, "getent", "ahosts", "both.test")
	for _, to := range []string{"both.test", "10.99.1.2", "fd99:1::2"} {
		w.nowhere(t, w.try(t, w.Bob, "", net.JoinHostPort(to, "7003")), "ECONNREFUSED")
	}
	w.requireUnheard(t)
	w.finish(t)
}

// TestMemoriesAreApart: one address has several names. Which rule counts depends on what
// programs of the same user asked for, whatever others ask.
func TestMemoriesAreApart(t *testing.T) {
	w := newWorld(t)
	w.startNames(t, "")
	const there = "10.99.1.2:7002"
	asks := map[string]func(u *netns.User, name string){
		"getaddrinfo": func(u *netns.User, name string) {
			if r := w.Run(t, u, "getent", "ahostsv4", name); r.Code != 0 {
				t.Errorf("%s asks for %s: %v", u.Name, name, r)
			}
		},
		"TCP": func(u *netns.User, name string) {
			if m, err := w.query(u, "tcp", netip.MustParseAddrPort("[fd99:1::2]:53"), name, dnsmessage.TypeA); err != nil || len(m.Answers) != 1 {
				t.Errorf("%s asks for %s: %v, %v", u.Name, name, m, err)
			}
		},
		"two servers from one port": func(u *netns.User, name string) {
			if err := w.askTwo(u, name); err != nil {
				t.Errorf("%s asks for %s: %v", u.Name, name, err)
			}
		},
	}
	for _, how := range []string{"getaddrinfo", "TCP", "two servers from one port"} {
		t.Run(how, func(t *testing.T) {
			if how != "getaddrinfo" { // begin without memories
				w.StopSystemBroker(t)
				w.StartSystemBroker(t, "")
			}
			ask := asks[how]
			for _, u := range []*netns.User{w.Alice, w.Bob, w.Carol} {
				w.inClear(t, w.try(t, u, "", there))
			}
			ask(w.Alice, "tunnel.test")
			w.throughTunnel(t, w.try(t, w.Alice, "", there), w.Service)
			w.inClear(t, w.try(t, w.Bob, "", there))
			ask(w.Bob, "block.test")
			w.nowhere(t, w.try(t, w.Bob, "", there), "ECONNREFUSED")
			w.throughTunnel(t, w.try(t, w.Alice, "", there), w.Service)
			w.inClear(t, w.try(t, w.Carol, "", there))
			ask(w.Carol, "direct.test")
			w.inClear(t, w.try(t, w.Carol, "", there))
			ask(w.Bob, "tunnel.test") // the rule for it comes first
			w.throughTunnel(t, w.try(t, w.Bob, "", there), w.Service)
			w.inClear(t, w.try(t, w.Carol, "", there))
		})
	}
	asked := len(w.dns.Asked())
	w.Run(t, nil, "getent", "ahostsv4", "special.test") // root's goes to the host's name server
	if now := w.dns.Asked(); len(now) == asked || now[asked] != "special.test A" {
		t.Errorf("root's query did not reach the name server: %q", now[asked:])
	}
	w.requireUnheard(t)
	w.finish(t)
}

// askTwo asks two servers from one socket, as musl does: the redirect gives the second
// query another source port.
func (w *world) askTwo(u *netns.User, name string) error {
	q := dnsmessage.Message{Header: dnsmessage.Header{RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name + "."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	return w.Client.As(u, func() error {
		c, err := net.ListenPacket("udp4", ":0")
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(settle))
		servers := []string{"192.0.2.53:53", "10.99.1.2:53"}
		for i, server := range servers {
			q.ID = uint16(i)
			msg, err := q.Pack()
			if err != nil {
				return err
			}
			if _, err := c.WriteTo(msg, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(server))); err != nil {
				return err
			}
		}
		for range servers {
			b := make([]byte, 4096)
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return err
			}
			var m dnsmessage.Message
			if err := m.Unpack(b[:n]); err != nil || len(m.Answers) != 1 || from.String() != servers[m.ID] {
				return fmt.Errorf("answer %v from %v: %v", m, from, err)
			}
		}
		return nil
	})
}

// TestPseudoNamesSurviveRestarts: what a program has been told goes on to mean the same
// when the system broker was killed meanwhile, and ssh-captured, and waits for both.
func TestPseudoNamesSurviveRestarts(t *testing.T) {
	w := newWorld(t)
	w.startNames(t, `ip6-generate-start="`+pool6.Addr().String()+`"`)
	address := func(u *netns.User, name string) string {
		t.Helper()
		r := w.Run(t, u, "getent", "ahostsv4", name)
		f := strings.Fields(r.Stdout)
		if len(f) == 0 {
			t.Fatalf("%s asks for %s: %v", u.Name, name, r)
		}
		return f[0]
	}
	www, mail := address(w.Alice, "www.corp.test"), address(w.Bob, "mail.corp.test")
	if www != "198.18.0.1" || mail != "198.18.0.2" {
		t.Errorf("www is %s, mail %s", www, mail)
	}
	for i, restart := range []func(){
		func() { w.KillSystemBroker(t); w.StartSystemBroker(t, "") },
		func() { w.StopSystemBroker(t); w.StartSystemBroker(t, "") },
		func() {
			w.KillCaptured(t, false)
			w.AwaitCaptured(t)
		},
		func() {
			w.KillCaptured(t, true)
			w.KillSystemBroker(t)
			w.StartCaptured(t)
			w.StartSystemBroker(t, "")
		},
	} {
		restart()
		w.throughTunnel(t, w.try(t, w.Carol, "", www+":7001"), w.Service) // as a program that kept it would
		w.throughTunnel(t, w.try(t, w.Alice, "", "[fd12:3456:789a::1]:7001"), w.Service)
		list := host.AwaitRecords(t, w.AuditFile(), 2*(i+1))
		for _, r := range list[2*i:] {
			if r.Target != "www.corp.test:7001" {
				t.Errorf("after restart %d: recorded %+v", i, r)
			}
		}
		if got := address(w.Bob, "www.corp.test"); got != www {
			t.Errorf("after restart %d: www is %s, was %s", i, got, www)
		}
		name := fmt.Sprintf("new%d.corp.test", i)
		if got, want := address(w.Carol, name), fmt.Sprintf("198.18.0.%d", i+3); got != want {
			t.Errorf("after restart %d: %s is %s, want %s", i, name, got, want)
		}
	}

	// While nobody decides, a flow to such an address waits, and then goes its way.
	w.KillSystemBroker(t)
	waiting := w.Client.Start(t, w.Cmd(w.Alice, w.Testprog, "connect", "-echo", "MARKER", www+":7001"))
	w.awaitWaiting(t, 1)
	w.came.take(7001)
	w.StartSystemBroker(t, "")
	if r := waiting.Wait(t); !strings.Contains(r.Stdout, " ok ") {
		t.Errorf("a flow that waited for the broker: %v", r)
	}
	if came := w.came.take(7001); len(came) != 1 || came[0].account != int(w.Service.UID) {
		t.Errorf("it arrived as %+v", came)
	}
	w.requireUnheard(t)
	w.finish(t)
}

// TestUnknownPoolAddresses: a made-up address that means nothing is refused to
// everybody, and nothing leaves for it, of no protocol; also while no system broker
// runs, but for users whose flows it decides: theirs wait, as it may be known to it.
func TestUnknownPoolAddresses(t *testing.T) {
	w := newWorld(t)
	w.startNames(t, `ip6-generate-start="`+pool6.Addr().String()+`"`)
	daemon := &netns.User{Name: "www-data", UID: 33, GID: 33, Home: "/"}
	targets := []string{"198.18.77.77:7001", "198.19.255.254:22", "[fd12:3456:789a::77]:7001"}
	refused := func(u *netns.User) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), settle)
		defer cancel()
		for _, nonblocking := range []string{"-nonblock=false", "-nonblock"} {
			p := w.Client.Start(t, w.Cmd(u, append([]string{w.Testprog, "connect", nonblocking}, targets...)...))
			select {
			case <-p.Done():
			case <-ctx.Done():
				t.Fatalf("%s is not refused", name(u))
			}
			if r := p.Wait(t); strings.Count(r.Stdout, " EHOSTUNREACH ") != len(targets) {
				t.Errorf("%s: %v", name(u), r)
			}
		}
		for _, to := range targets {
			if err := w.sendUDP(u, to); err != nil && !isRefusal(err) {
				t.Errorf("%s: a datagram to %s: %v", name(u), to, err)
			}
		}
	}
	for _, u := range []*netns.User{w.Alice, nil, daemon, w.Service} {
		refused(u)
	}
	for i, r := range host.AwaitRecords(t, w.AuditFile(), 6) {
		if r.Reason != "bad-name" || r.UID != w.Alice.UID {
			t.Errorf("record %d is %+v", i, r)
		}
	}
	w.KillSystemBroker(t)
	for _, u := range []*netns.User{nil, daemon, w.Service} {
		refused(u)
	}
	waiting := w.Client.Start(t, w.Cmd(w.Bob, w.Testprog, "connect", targets[0], targets[2]))
	w.awaitWaiting(t, 2)
	w.StartSystemBroker(t, "")
	if r := waiting.Wait(t); strings.Count(r.Stdout, " EHOSTUNREACH ") != 2 {
		t.Errorf("once there is a broker: %v", r)
	}
	w.KillSystemBroker(t)
	w.KillCaptured(t, true) // the table is still there
	for _, u := range []*netns.User{nil, daemon} {
		refused(u)
	}
	w.StartCaptured(t)
	w.requireUnheard(t)

	// The control: without our table such packets do leave.
	w.Release(t)
	if err := w.sendUDP(nil, targets[0]); err != nil {
		t.Error(err)
	}
	if left := w.wire.Packets(t, func(p netns.Packet) bool { return p.Dst.String() == targets[0] }); len(left) != 1 {
		t.Errorf("the control: %d packets left", len(left))
	}
	w.finish(t)
}

// sendUDP sends a datagram and hears what comes back at once.
func (w *world) sendUDP(u *netns.User, to string) error {
	send := func() error {
		c, err := net.Dial("udp", to)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("datagram"))
		return err
	}
	if u == nil {
		return w.Client.Do(send)
	}
	return w.Client.As(u, send)
}

// isRefusal tells whether an error is one that a rule answered with.
func isRefusal(err error) bool {
	for _, errno := range []syscall.Errno{syscall.EPERM, syscall.EHOSTUNREACH} {
		if strings.Contains(err.Error(), errno.Error()) {
			return true
		}
	}
	return false
}

// TestPortsOfOtherQueries has a user's program ask from a port from which somebody else
// has just asked the same server, so that the kernel may take the one for the other: an
// account that is not captured, as the system broker itself is, or another user in a
// capture of its own.
func TestPortsOfOtherQueries(t *testing.T) {
	w := newWorld(t)
	w.startNames(t, "")
	w.startOwnBroker(t, w.Alice, w.alicesConfig())
	a := w.startAlicesCapture(t)
	daemon := &netns.User{Name: "www-data", UID: 33, GID: 33, Home: "/"}
	const port = 20053
	for i, server := range []string{"127.0.0.53:53", "10.99.1.2:53"} {
		local := netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port+10*i))
		at := netip.MustParseAddrPort(server)
		// The server that answers is not what this is about: the other one does not exist.
		if _, err := w.queryFrom(daemon, local, at, "special.test"); (err == nil) != (i == 0) {
			t.Fatalf("the control: %v", err)
		}
		w.queryFrom(w.Service, netip.AddrPortFrom(local.Addr(), local.Port()+1), at, "special.test")
		for _, from := range []uint16{local.Port(), local.Port() + 1} {
			for range 2 {
				m, err := w.queryFrom(w.Carol, netip.AddrPortFrom(local.Addr(), from), at, "www.corp.test")
				if err != nil || len(m.Answers) != 1 || m.Answers[0].Body.GoString() != (&dnsmessage.AResource{A: [4]byte{198, 18, 0, 1}}).GoString() {
					t.Errorf("Carol, from port %d to %v: %v, %v", from, at, m, err)
				}
			}
		}
		// Alice's program asks in her capture, then it is Bob's turn, and the reverse.
		ask := func(name string, from uint16) string {
			return strings.TrimSpace(a.do(t, fmt.Sprintf("dig +short +tries=1 +time=20 -b 0.0.0.0#%d @%v %s", from, at.Addr(), name)))
		}
		if got := ask("secret.corp.test", local.Port()+2); got != "198.51.100.1" {
			t.Errorf("Alice, to %v: %q", at, got)
		}
		m, err := w.queryFrom(w.Bob, netip.AddrPortFrom(local.Addr(), local.Port()+2), at, "secret.corp.test")
		if err != nil || len(m.Answers) != 1 || m.Answers[0].Body.GoString() == (&dnsmessage.AResource{A: [4]byte{198, 51, 100, 1}}).GoString() {
			t.Errorf("Bob, from Alice's port to %v: %v, %v", at, m, err)
		}
		if _, err := w.queryFrom(w.Bob, netip.AddrPortFrom(local.Addr(), local.Port()+3), at, "www.corp.test"); err != nil {
			t.Errorf("Bob, to %v: %v", at, err)
		}
		if got := ask("secret.corp.test", local.Port()+3); got != "198.51.100.1" {
			t.Errorf("Alice, from Bob's port to %v: %q", at, got)
		}
	}
	for _, q := range w.dns.Asked() {
		if strings.Contains(q, "corp.test") {
			t.Errorf("the host's name server was asked %q", q)
		}
	}
	a.typing.Close()
	a.Wait(t)
	w.finish(t)
}

// queryFrom asks a server over UDP from an address and port.
func (w *world) queryFrom(u *netns.User, local, to netip.AddrPort, name string) (m dnsmessage.Message, err error) {
	q := dnsmessage.Message{Header: dnsmessage.Header{ID: 9, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name + "."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	msg, err := q.Pack()
	if err != nil {
		return m, err
	}
	answer := make([]byte, 4096)
	err = w.Client.As(u, func() error {
		c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(local), net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write(msg); err != nil {
			return err
		}
		n, err := c.Read(answer)
		answer = answer[:max(n, 0)]
		return err
	})
	if err != nil {
		return m, err
	}
	return m, m.Unpack(answer)
}
