package nft

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
)

// namesOfAll is a host whose users' name queries go to these ports.
func (w *world) namesOfAll(udp, tcp uint16) HostSpec {
	return HostSpec{Form: w.form, TCP: 1, System: &HostCapture{ID: "system", Queue: 10, DNSUDP: udp, DNSTCP: tcp,
		Spec: capture.Spec{Users: []capture.UIDRange{{Lo: 2000, Hi: 2999}}}}}
}

// TestTakenPort has somebody else's socket on the ports of a resolver that is gone, at
// the same address or at every one: what is asked never arrives there, nor where there
// is no socket at all.
func TestTakenPort(t *testing.T) {
	w := newWorld(t)
	table := w.open(t, OwnedPersistent)
	d := w.dialer(t, "")
	for _, host := range []string{"127.0.0.1", "0.0.0.0", "[::1]", "[::]"} {
		udp := w.answer(t, "udp", host+":0", "thief")
		tcp := w.answer(t, "tcp", host+":0", "thief")
		w.apply(t, table, w.namesOfAll(udp, tcp))
		for _, addr := range []string{"10.9.0.2:53", "[fd09::2]:53"} {
			for _, network := range []string{"udp", "tcp"} {
				if got := d.dial(t, 2001, network, addr, 200*time.Millisecond); got != "timeout" {
					t.Errorf("%s: %s %s: %s", host, network, addr, got)
				}
			}
		}
	}
	w.apply(t, table, w.namesOfAll(w.both(t, "udp", "names"), w.both(t, "tcp", "names")))
	for _, addr := range []string{"10.9.0.2:53", "[fd09::2]:53"} {
		d.expect(t, 2001, "udp", addr, "names")
		d.expect(t, 2001, "tcp", addr, "names")
	}
}

// TestPortUsedAgain has programs connect from a port whose last connection the resolver
// has ended, and which the kernel remembers.
func TestPortUsedAgain(t *testing.T) {
	w := newWorld(t)
	l, err := listenOnce(t, w.namespace)
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	w.apply(t, w.open(t, OwnedPersistent), w.namesOfAll(1, port))
	var local net.Addr
	for range 3 {
		var got []byte
		var err error
		w.do(func() {
			_ = unix.Setfsuid(2001)
			defer func() { _ = unix.Setfsuid(0) }()
			dialer := net.Dialer{Timeout: patience, LocalAddr: local}
			var c net.Conn
			if c, err = dialer.Dial("tcp4", "10.9.0.2:53"); err != nil {
				return
			}
			defer c.Close()
			local = c.LocalAddr()
			if _, err = c.Write([]byte("?")); err == nil {
				got, err = io.ReadAll(c) // until the resolver has ended it
			}
		})
		if err != nil || string(got) != "names" {
			t.Fatalf("from %v: %q, %v", local, got, err)
		}
		mine := netip.MustParseAddrPort(local.String()).Port()
		poll(t, "the connection to linger", func() bool {
			out, err := w.run(t, "", "ss", "-Htn", "state", "time-wait", fmt.Sprintf("sport = :%d and dport = :%d", port, mine))
			return err == nil && out != ""
		})
	}
}

// listenOnce has a listener that ends each connection by itself, after one answer.
func listenOnce(t *testing.T, n *namespace) (l net.Listener, err error) {
	t.Helper()
	n.do(func() { l, err = marking(capture.MarkServer).Listen(t.Context(), "tcp4", "127.0.0.1:0") })
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1))
			_, _ = c.Write([]byte("names"))
			c.Close()
		}
	}()
	return l, nil
}
