package names

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// resolver is a fake upstream on loopback, with UDP and TCP on one port. answer gets
// the query and returns the bytes to send; nil sends nothing.
type resolver struct {
	addr     netip.AddrPort
	udp, tcp atomic.Int64 // queries
}

func newResolver(t testing.TB, answer func(q dnsmessage.Message, raw []byte, tcp bool) []byte) *resolver {
	t.Helper()
	r := new(resolver)
	var l net.Listener
	var c net.PacketConn
	for range 20 { // the port may be free for one and taken for the other
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if c, err = net.ListenPacket("udp", l.Addr().String()); err == nil {
			break
		}
		l.Close()
	}
	if c == nil {
		t.Fatal("no port free for both UDP and TCP")
	}
	r.addr = l.Addr().(*net.TCPAddr).AddrPort()
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 65535)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			var q dnsmessage.Message
			if err := q.Unpack(buf[:n]); err != nil {
				t.Errorf("the resolver was sent %x: %v", buf[:n], err)
				continue
			}
			r.udp.Add(1)
			if b := answer(q, buf[:n], false); b != nil {
				c.WriteTo(b, from)
			}
		}
	})
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				for {
					raw, err := readFramed(conn)
					if err != nil {
						return
					}
					var q dnsmessage.Message
					if err := q.Unpack(raw); err != nil {
						t.Errorf("the resolver was sent %x: %v", raw, err)
						return
					}
					r.tcp.Add(1)
					b := answer(q, raw, true)
					if b == nil {
						return
					}
					writeFramed(conn, b)
				}
			})
		}
	})
	t.Cleanup(func() {
		c.Close()
		l.Close()
		wg.Wait()
	})
	return r
}

// respond packs an answer to q.
func respond(q dnsmessage.Message, code dnsmessage.RCode, body ...dnsmessage.ResourceBody) []byte {
	m := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: q.ID, Response: true, RCode: code, RecursionDesired: true, RecursionAvailable: true, AuthenticData: true,
		},
		Questions: q.Questions,
	}
	for _, b := range body {
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 77}, Body: b,
		})
	}
	out, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return out
}

func a(s string) *dnsmessage.AResource {
	return &dnsmessage.AResource{A: netip.MustParseAddr(s).As4()}
}

func resolvFile(t testing.TB, options string, servers ...*resolver) string {
	text := options + "\n"
	for _, s := range servers {
		text += "nameserver " + s.addr.String() + "\n"
	}
	return writeFile(t, text)
}
