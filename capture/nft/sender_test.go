package nft

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
)

// marked is a resolver's sockets, which tell of each datagram its source and its mark.
type marked struct {
	t    *testing.T
	six  map[bool]*net.UDPConn
	port uint16
}

func (n *namespace) marked(t *testing.T) *marked {
	t.Helper()
	m := &marked{t: t, six: map[bool]*net.UDPConn{}}
	for _, six := range []bool{false, true} {
		n.do(func() {
			at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
			if six {
				at = netip.AddrPortFrom(netip.IPv6Loopback(), m.port)
			}
			c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { c.Close() })
			raw, _ := c.SyscallConn()
			cerr := raw.Control(func(fd uintptr) {
				err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(capture.MarkServer)),
					unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVMARK, 1))
			})
			if err = errors.Join(cerr, err); errors.Is(err, unix.ENOPROTOOPT) {
				t.Skip("the kernel tells no marks (5.19)")
			} else if err != nil {
				t.Error(err)
			}
			m.six[six], m.port = c, c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		})
	}
	if t.Failed() {
		t.FailNow()
	}
	return m
}

// next is the datagram that has arrived.
func (m *marked) next(six bool) (from netip.AddrPort, mark uint32) {
	m.t.Helper()
	oob := make([]byte, 64)
	m.six[six].SetReadDeadline(time.Now().Add(patience))
	_, n, _, from, err := m.six[six].ReadMsgUDPAddrPort(make([]byte, 100), oob)
	if err != nil {
		m.t.Fatal(err)
	}
	list, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(list) != 1 || list[0].Header.Level != unix.SOL_SOCKET || list[0].Header.Type != unix.SO_MARK {
		m.t.Fatalf("control messages %v, %v", list, err)
	}
	return from, binary.NativeEndian.Uint32(list[0].Data)
}

// datagrams makes a socket of uid's that is not connected.
func (n *namespace) datagrams(t *testing.T, uid int, six bool) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	var err error
	n.do(func() {
		_ = unix.Setfsuid(uid)
		defer func() { _ = unix.Setfsuid(0) }()
		c, err = net.ListenUDP(map[bool]string{false: "udp4", true: "udp6"}[six], nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestSenderOfQueries has each name query tell its sender's uid, whichever source port
// the redirect gives it, and beside rules that have marks of their own.
func TestSenderOfQueries(t *testing.T) {
	w := newWorld(t)
	resolver, other := w.marked(t), w.marked(t)
	table := w.open(t, OwnedPersistent)
	w.apply(t, table, HostSpec{Form: w.form, TCP: 1, System: &HostCapture{ID: "system", Queue: 10, DNSUDP: resolver.port, DNSTCP: 1,
		Spec: capture.Spec{Users: []capture.UIDRange{{Lo: 2000, Hi: 2999}, {Lo: 4000000000, Hi: 4000000000}}}}})
	const socketMark = 0x777
	for _, foreign := range []struct{ name, rules string }{
		{"alone", ""},
		// What wg-quick(8) loads: every datagram loses its mark on the way in.
		{"WireGuard", `table inet wg { chain pre { type filter hook prerouting priority -150; meta l4proto udp meta mark set ct mark
			}
			chain post { type filter hook postrouting priority -150; meta l4proto udp meta mark 0x777 ct mark set mark
			}
		}`},
		// Drops by a bit that many a uid has, as a node of Kubernetes does.
		{"bits", `table inet bits { chain in { type filter hook input priority 0; meta mark & 0x7d8 == 0x7d0 drop
			}
			chain out { type filter hook output priority -140; meta l4proto udp meta mark set 0x20
			}
		}`},
	} {
		w.nft(t, foreign.rules)
		for _, six := range []bool{false, true} {
			servers := []string{"203.0.113.1:53", "203.0.113.2:53", "127.0.0.53:53", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), resolver.port).String()}
			if six {
				servers = []string{"[2001:db8::1]:53", "[2001:db8::2]:53", "[::1]:53", netip.AddrPortFrom(netip.IPv6Loopback(), resolver.port).String()}
			}
			for _, uid := range []int{2000, 2001, 4000000000, 1000, 0} {
				rewritten := 0
				for round := range 4 {
					c := w.datagrams(t, uid, six)
					raw, _ := c.SyscallConn()
					if round%2 == 1 {
						_ = raw.Control(func(fd uintptr) {
							_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, socketMark)
							_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PRIORITY, 6)
						})
					}
					to := servers
					if uid < 2000 { // not captured
						to = servers[3:]
					}
					for i, server := range to {
						_, err := c.WriteToUDPAddrPort([]byte("query"), netip.MustParseAddrPort(server))
						if i == len(to)-1 && errors.Is(err, unix.EPERM) {
							continue // refused, as it goes straight to the resolver: its sender cannot be mistaken either
						}
						if err != nil {
							t.Fatalf("%s: %d to %s: %v", foreign.name, uid, server, err)
						}
						from, mark := resolver.next(six)
						if got, ok := capture.Sender(mark); got != uint32(uid) || !ok {
							t.Errorf("%s: %d to %s: mark %#x, that is %d", foreign.name, uid, server, mark, got)
						}
						if from.Port() != c.LocalAddr().(*net.UDPAddr).AddrPort().Port() {
							rewritten++
						}
					}
				}
				if uid >= 2000 && rewritten == 0 {
					t.Errorf("%s: no source port of %d was rewritten", foreign.name, uid)
				}
			}
		}
		if foreign.name != "alone" {
			continue
		}
		// Other datagrams keep the mark that they had.
		c := w.datagrams(t, 2000, false)
		raw, _ := c.SyscallConn()
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, socketMark) })
		if _, err := c.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), other.port)); err != nil {
			t.Fatal(err)
		}
		if _, mark := other.next(false); mark != socketMark {
			t.Errorf("another port: mark %#x", mark)
		}
	}

	// What our rules did not see is nobody's.
	w.nft(t, "delete table inet wg\ndelete table inet bits")
	if err := table.Delete(); err != nil {
		t.Fatal(err)
	}
	c := w.datagrams(t, 2000, false)
	if _, err := c.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), resolver.port)); err != nil {
		t.Fatal(err)
	}
	if _, mark := resolver.next(false); mark != 0 {
		t.Errorf("without a table: mark %#x", mark)
	} else if uid, ok := capture.Sender(mark); ok {
		t.Errorf("without a table it is %d's", uid)
	}
}
