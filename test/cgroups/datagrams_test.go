package cgroups

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"sshbroker/test/netns"
)

// ask sends a datagram, or an echo request of ICMP, and prints whether it came back or
// was refused, by send(2) or by what the kernel answered. To wait in vain is neither.
const ask = `import errno, socket, struct, sys
kind, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
v6 = ":" in host
family = socket.AF_INET6 if v6 else socket.AF_INET
try:
    if kind == "udp":
        s = socket.socket(family, socket.SOCK_DGRAM)
        message = b"hello"
    else:
        s = socket.socket(family, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP)
        message = struct.pack("!BBHHH", 128 if v6 else 8, 0, 0, 0, 1) + b"hello"
        s.setsockopt(*((socket.IPPROTO_IPV6, 25, 1) if v6 else (socket.IPPROTO_IP, 11, 1)))  # RECVERR, as ping does
    s.settimeout(60)
    s.connect((host, port))
    s.send(message)
    print("ok" if s.recv(100).endswith(b"hello") else "differs")
except OSError as e:
    print("refused" if e.errno in (errno.EPERM, errno.EHOSTUNREACH) else e)
`

// TestDatagrams: UDP and ICMP go out unless everything is for the tunnel; then they are
// refused at once.
func TestDatagrams(t *testing.T) {
	w := newWorld(t)
	const port = 7020
	for _, m := range []*netns.Machine{w.Server, w.Client} {
		m.Sysctl(t, "net.ipv4.ping_group_range", "0 2147483647")
	}
	w.before = w.Snapshot(t)
	for _, m := range []*netns.Machine{w.Server, w.Client} {
		for _, a := range both(m) {
			w.echoDatagrams(t, m, netip.AddrPortFrom(a, port))
		}
	}
	w.StartCaptured(t)
	w.configure(t, w.Alice, `<filter-engine><rule ip-address=".*" ports="7001" action="TUNNEL" profile-id="p"/></filter-engine>`)
	w.configure(t, w.Bob, `<filter-engine><rule ip-address=".*" action="TUNNEL" profile-id="p"/></filter-engine>`)
	for _, c := range []struct {
		name string
		cmd  netns.Cmd
		want string
	}{
		{"no capture", w.Cmd(w.Alice), "ok"},
		{"rules", w.capture(w.Alice), "ok"},
		{"via", w.capture(w.Alice, w.via(w.Alice)), "refused"},
		{"via, UDP allowed", w.capture(w.Alice, w.via(w.Alice), "--udp=direct"), "ok"},
		{"default TUNNEL", w.capture(w.Bob), "refused"},
		{"default TUNNEL, UDP allowed", w.capture(w.Bob, "--udp=direct"), "ok"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, kind := range []string{"udp", "icmp"} {
				for _, a := range both(w.Server) {
					to := netip.AddrPortFrom(a, port)
					before := len(w.wire.Packets(t, datagramsTo(a)))
					cmd := c.cmd
					cmd.Args = append(cmd.Args, "/usr/bin/python3", "-c", ask, kind, a.String(), fmt.Sprint(port))
					r := expect(t, w.Client.Run(t, cmd), 0)
					if got := strings.TrimSpace(r.Stdout); got != c.want {
						t.Errorf("%s to %v: %s, want %s", kind, to, got, c.want)
					}
					if sent := len(w.wire.Packets(t, datagramsTo(a))) - before; (sent > 0) != (c.want == "ok") {
						t.Errorf("%s to %v: %d packets on the wire, and the program says %q", kind, to, sent, r.Stdout)
					}
				}
				// The host itself is not meant.
				for _, a := range append(both(w.Client), netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()) {
					if kind == "udp" && a.IsLoopback() {
						continue // nobody listens there
					}
					cmd := c.cmd
					cmd.Args = append(cmd.Args, "/usr/bin/python3", "-c", ask, kind, a.String(), fmt.Sprint(port))
					if got := strings.TrimSpace(expect(t, w.Client.Run(t, cmd), 0).Stdout); got != "ok" {
						t.Errorf("%s to the host itself at %v: %s", kind, a, got)
					}
				}
			}
		})
	}
	w.finish(t)
}

// datagramsTo matches UDP and ICMP echo requests to an address.
func datagramsTo(a netip.Addr) func(netns.Packet) bool {
	return func(p netns.Packet) bool {
		return p.Dst.Addr() == a && (p.Proto == 17 || p.Proto == 1 && p.Payload[0] == 8 || p.Proto == 58 && p.Payload[0] == 128)
	}
}

// echoDatagrams sends back what comes.
func (w *world) echoDatagrams(t *testing.T, m *netns.Machine, at netip.AddrPort) {
	t.Helper()
	var c net.PacketConn
	if err := m.Do(func() (err error) { c, err = net.ListenPacket("udp", at.String()); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	w.listeners = append(w.listeners, c)
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			c.WriteTo(b[:n], from)
		}
	}()
}
