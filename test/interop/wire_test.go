package interop

// Item 1 of the issue: telnet reaches a real telnetd on a host that refuses everything
// but SSH, and nothing else of the client's is on the wire: no byte of the conversation
// in clear, no question for a name, no datagram.

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"sshbroker/test/netns"
)

// telnetRule tunnels telnet whatever the host is called.
func (w *world) telnetRule() string {
	return "<profiles>" + w.profile("srv") + `</profiles>
<filter-engine><rule host=".*" ports="23" action="TUNNEL" profile-id="srv"/></filter-engine>`
}

// talk has a conversation with a telnetd and returns what was said in it, and how the
// program ended.
func (w *world) talk(t *testing.T, d *netns.Telnetd, c netns.Cmd) (said []string, r netns.Result) {
	t.Helper()
	typed := "TYPED-" + rand.Text()
	c.TTY = &terminal
	p := w.Client.Start(t, c)
	p.WaitFor(t, d.Marker)
	p.Type(t, typed+"\r")
	p.WaitFor(t, d.Answer+" "+typed)
	p.Type(t, "bye\r") // telnetd does not always pass the last answer on
	return []string{d.Marker, d.Answer, typed}, p.Wait(t)
}

// requireOnlySSH is requireOnly for the SSH server.
func (w *world) requireOnlySSH(t *testing.T, wire *netns.Wire) {
	t.Helper()
	requireOnly(t, wire, w.sshd.Addr4, w.sshd.Addr6)
}

// requireOnly fails the test if anything was on the wire but conversations with a
// server at these addresses and what the link itself needs: ARP, and neighbours and groups of IPv6.
func requireOnly(t *testing.T, wire *netns.Wire, server ...netip.AddrPort) {
	t.Helper()
	spoken := 0
	for _, p := range wire.Packets(t, nil) {
		switch {
		case !p.Src.IsValid(), p.Proto == 0: // ARP; a hop-by-hop header, which multicast listeners send
		case p.Proto == protoTCP && (slices.Contains(server, p.Src) || slices.Contains(server, p.Dst)):
			spoken++
		case p.Proto == protoICMPv6 && len(p.Payload) > 0 && p.Payload[0] >= 130:
		default:
			t.Errorf("on the wire: protocol %d, %v to %v, %q", p.Proto, p.Src, p.Dst, p.Payload)
		}
	}
	if spoken == 0 {
		t.Error("there was no conversation with the server: the capture proves nothing")
	}
}

const (
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

func requireAbsent(t *testing.T, wire *netns.Wire, texts []string) {
	t.Helper()
	for _, text := range texts {
		if wire.Contains(t, []byte(text)) {
			t.Errorf("%q was on the wire in clear", text)
		}
	}
}

// TestTelnetByRuleIsOnlySSHOnTheWire asks for the host by each kind of name it has. The
// control has the same conversation under a DIRECT rule and finds every word of it.
func TestTelnetByRuleIsOnlySSHOnTheWire(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	telnetd := w.Server.StartTelnetd(t, 23)
	targets := []struct{ name, host, asked string }{
		// The hosts file has a name for each; that is not what was asked for.
		{"IPv4 address", "10.99.1.2", "10.99.1.2"},
		{"IPv6 address", "fd99:1::2", "fd99:1::2"},
		{"name", "server", "server"},
		{"name in capitals", "SERVER", "server"},
	}
	before := w.settled(t)
	for _, tc := range targets {
		refused := w.Client.Run(t, netns.Cmd{Args: []string{w.Testprog, "connect", netJoin(tc.host, 23)}, User: w.Alice})
		if !strings.Contains(refused.Stdout, "ECONNREFUSED") {
			t.Fatalf("%s: the server is to refuse all but SSH: %v", tc.name, refused)
		}
	}
	w.configure(t, w.telnetRule())
	wire := w.Client.Capture(t, "to-server")
	var endCaptured, endDirect []int
	for i, tc := range targets {
		said, r := w.talk(t, telnetd, w.capture("telnet", tc.host))
		endCaptured = append(endCaptured, r.Code)
		requireAbsent(t, wire, said)
		rec := w.awaitRecords(t, i+1)[i]
		if rec.Reason != "carried" || rec.Action != "TUNNEL" || rec.Rule != 1 || rec.Target != netJoin(tc.asked, 23) {
			t.Errorf("%s: recorded %+v", tc.name, rec)
		}
	}
	w.requireOnlySSH(t, wire)

	w.configure(t, `<filter-engine><rule ip-address=".*" action="DIRECT"/></filter-engine>`)
	expect(t, w.ctl(t, "reload"), 0)
	w.Server.AllowAll(t)
	for _, tc := range targets {
		said, r := w.talk(t, telnetd, w.capture("telnet", tc.host))
		endDirect = append(endDirect, r.Code)
		for _, text := range said {
			if !wire.Contains(t, []byte(text)) {
				t.Errorf("%s: %q of the control conversation is not on the wire: the capture proves nothing", tc.name, text)
			}
		}
	}
	if !slices.Equal(endCaptured, endDirect) {
		t.Errorf("telnet ended with %v through tunnels and %v direct", endCaptured, endDirect)
	}
	w.Server.AllowOnly(t, netns.Reset, w.sshd.Addr4.Port())
	w.stopBroker(t, w.Alice)
	w.RequireRestored(t, before, settle)
}

// TestTelnetViaIsOnlySSHOnTheWire goes to a host that the client has no route to and,
// in the last case, no name for. The control is the wire behind the bastion.
func TestTelnetViaIsOnlySSHOnTheWire(t *testing.T) {
	w := newBastionWorld(t, netns.SSHDOptions{})
	telnetd := w.Inner.StartTelnetd(t, 23)
	before := w.settled(t)
	near, far := w.Client.Capture(t, "to-server"), w.Inner.Capture(t, "to-server")
	for i, host := range []string{"10.99.2.2", "fd99:2::2", "db.internal"} {
		said, _ := w.talk(t, telnetd, w.capture("--via", w.via(w.Alice), "telnet", host))
		requireAbsent(t, near, said)
		for _, text := range said {
			if !far.Contains(t, []byte(text)) {
				t.Errorf("%s: %q did not reach the far side in clear: the capture proves nothing", host, text)
			}
		}
		if rec := w.awaitRecords(t, i+1)[i]; rec.Reason != "carried" || rec.Target != netJoin(host, 23) {
			t.Errorf("%s: recorded %+v", host, rec)
		}
	}
	w.requireOnlySSH(t, near)
	if near.Contains(t, []byte("internal")) {
		t.Error("the name asked for was on the wire in clear")
	}
	w.stopBroker(t, w.Alice)
	w.RequireRestored(t, before, settle)
}

// TestViaSendsNoQueryForAName asks in every form that programs have. The control asks
// outside a capture.
func TestViaSendsNoQueryForAName(t *testing.T) {
	netns.RequireProgram(t, "dig", "dnsutils")
	w := newWorld(t, netns.SSHDOptions{})
	dns := w.Server.StartDNS(t, w.Server.Addr4, map[string][]string{"control.example": {"192.0.2.7"}})
	dns6 := w.Server.StartDNS(t, w.Server.Addr6, nil)
	w.Server.AllowAll(t)
	w.Client.Replace(t, "/etc/resolv.conf", "search search.example\nnameserver "+w.Server.Addr4.String()+
		"\nnameserver "+w.Server.Addr6.String()+"\noptions timeout:1 attempts:1\n")
	defer w.finish(t, w.settled(t))
	wire := w.Client.Capture(t, "to-server")

	const word = "unheard"
	script := `
for name in ` + word + ` ` + word + `.example ` + word + `.local ` + word + `.example.; do
	getent ahosts $name; getent ahostsv4 $name; getent ahostsv6 $name; getent hosts $name
	python3 -c 'import socket, sys; print(socket.getaddrinfo(sys.argv[1], 80))' $name
	curl -s --max-time 5 http://$name/
	telnet $name 23
	for server in 10.99.1.2 fd99:1::2 127.0.0.1 127.0.0.53 192.0.2.53; do
		dig +tries=1 +time=2 @$server $name A
		dig +tries=1 +time=2 +tcp @$server $name AAAA
	done
	for type in TXT MX SRV NS SOA HTTPS SVCB ANY CNAME PTR NAPTR CAA; do dig +tries=1 +time=2 @10.99.1.2 $name $type; done
	dig +tries=1 +time=2 +trace $name
	dig +tries=1 +time=2 +search $name
done
dig +tries=1 +time=2 -x 10.99.2.2; dig +tries=1 +time=2 -x fd99:2::2
getent hosts 10.99.2.2 fd99:2::2
python3 - <<'END'
import socket
query = b'\0\1\1\0\0\1\0\0\0\0\0\0\7` + word + `\7example\0\0\1\0\1'
for family, address in ((socket.AF_INET, '10.99.1.2'), (socket.AF_INET6, 'fd99:1::2'), (socket.AF_INET, '224.0.0.251'),
        (socket.AF_INET, '224.0.0.252'), (socket.AF_INET6, 'ff02::fb'), (socket.AF_INET6, 'ff02::1:3'), (socket.AF_INET, '255.255.255.255')):
    for port in 53, 5353, 5355, 853, 443, 137:
        s = socket.socket(family, socket.SOCK_DGRAM)
        if address == '255.255.255.255':
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        try:
            s.sendto(query, (address, port))
            print(address, port, 'sent')
        except OSError as e:
            print(address, port, e)
END
exit 7
`
	r := expect(t, w.Client.Run(t, w.capture("--via", w.via(w.Alice), "sh", "-c", script)), 7)
	if answers := strings.Count(r.Stdout, "status: NOERROR"); answers < 60 {
		t.Errorf("%d queries were answered, by the broker, want 80 or so: %v", answers, r)
	}
	w.requireOnlySSH(t, wire)
	if wire.Contains(t, []byte(word)) {
		t.Errorf("%q was on the wire in clear", word)
	}
	if asked := append(dns.Asked(), dns6.Asked()...); len(asked) > 0 {
		t.Errorf("the name servers were asked %q", asked)
	}

	control := w.Client.Run(t, netns.Cmd{Args: []string{"getent", "ahostsv4", "control.example"}, User: w.Alice})
	if !strings.Contains(expect(t, control, 0).Stdout, "192.0.2.7") || !wire.Contains(t, []byte("\acontrol\aexample")) {
		t.Errorf("the control query is not on the wire, so the capture proves nothing: %v", control)
	}
}

// TestViaSendsNoDatagram is about programs that would speak QUIC: each datagram fails
// at once, so that they turn to TCP. The control sends the same outside.
func TestViaSendsNoDatagram(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	defer w.finish(t, w.settled(t))
	wire := w.Client.Capture(t, "to-server")
	const script = `
import select, socket, sys, time
word = sys.argv[1].encode()
for family, address in ((socket.AF_INET, '10.99.1.2'), (socket.AF_INET6, 'fd99:1::2'), (socket.AF_INET, '192.0.2.1')):
    for port in 443, 8443, 123, 3478:
        for connected in True, False:
            s = socket.socket(family, socket.SOCK_DGRAM)
            s.settimeout(float(sys.argv[2]))
            begin, outcome = time.monotonic(), 'sent'
            try:
                if connected:
                    s.connect((address, port))
                    s.send(word)
                    s.recv(1)
                else:
                    s.sendto(word, (address, port))
            except OSError as e:
                outcome = type(e).__name__
            print(address, port, connected, outcome, '%d' % (1000 * (time.monotonic() - begin)))
`
	word := "DATAGRAM-" + rand.Text()
	run := func(c netns.Cmd, patience string) string {
		t.Helper()
		c.Args = append(c.Args, "python3", "-c", script, word, patience)
		return expect(t, w.Client.Run(t, c), 0).Stdout
	}
	out := run(w.capture("--via", w.via(w.Alice)), "5")
	if n := strings.Count(out, "\n"); n != 24 {
		t.Fatalf("%d datagrams tried, want 24:\n%s", n, out)
	}
	for line := range strings.Lines(out) {
		var address, connected, outcome string
		var port, ms int
		if _, err := fmt.Sscan(line, &address, &port, &connected, &outcome, &ms); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if outcome == "sent" || outcome == "TimeoutError" || ms > 200 {
			t.Errorf("a datagram was not refused at once: %s", line)
		}
	}
	if wire.Contains(t, []byte(word)) {
		t.Error("a datagram left the client")
	}
	w.requireOnlySSH(t, wire)

	run(netns.Cmd{User: w.Alice}, "0.01")
	if sent := wire.Packets(t, func(p netns.Packet) bool { return p.Proto == protoUDP && p.Dst.Port() == 443 }); len(sent) == 0 || !wire.Contains(t, []byte(word)) {
		t.Error("the control datagrams are not on the wire: the capture proves nothing")
	}
}

// TestDirectRuleRefusesNothingThatIsTCP belongs to the controls above: what a capture
// lets through it lets through in both families, so that silence on the wire above is
// the tunnel's doing.
func TestDirectRuleRefusesNothingThatIsTCP(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	w.Server.AllowAll(t)
	defer w.finish(t, w.settled(t))
	w.configure(t, `<filter-engine><rule ip-address=".*" action="DIRECT"/></filter-engine>`)
	wire := w.Client.Capture(t, "to-server")
	for _, address := range []string{"10.99.1.2", "fd99:1::2"} {
		word := "WORD-" + rand.Text()
		received := make(chan string, 1)
		l := w.Server.Listen(t, "tcp", netJoin(address, 7777))
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(settle))
			b := make([]byte, len(word))
			n, _ := c.Read(b)
			received <- string(b[:n])
		}()
		script := `exec 3<>/dev/tcp/` + address + `/7777; printf %s ` + word + ` >&3; cat <&3`
		expect(t, w.Client.Run(t, w.capture("bash", "-c", script)), 0)
		if got := <-received; got != word || !wire.Contains(t, []byte(word)) {
			t.Errorf("%s: the server got %q, want %q, seen on the wire", address, got, word)
		}
		l.Close()
	}
}

// settled is the state to come back to. The directory of the broker's socket is there
// already: it stays, as /run/user/UID would.
func (w *world) settled(t *testing.T) netns.Snapshot {
	t.Helper()
	expect(t, w.ctl(t, "start"), 0)
	w.stopBroker(t, w.Alice)
	return w.Snapshot(t)
}

// netJoin writes an address or name with a port.
func netJoin(host string, port uint16) string {
	if strings.Contains(host, ":") {
		return fmt.Sprintf("[%s]:%d", host, port)
	}
	return fmt.Sprintf("%s:%d", host, port)
}
