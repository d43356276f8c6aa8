package policy

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// The standard resolver, and a server for it that says what it was asked: the name as it
// stands, and nothing of a search list. What is short goes through unchanged as well.
func TestStandardResolver(t *testing.T) {
	server := newServer(t)
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", server.addr)
	}}
	spec := collection(Pattern{Hostnames: hostnames("*.test", "db-without-domain"), CIDRs: cidrs("192.0.2.0/24")})
	route, v := decide(t, spec, "DB.Test", 80, r)
	if !v.Allowed() {
		t.Fatal(v)
	}
	equal(t, "addresses", dialled(route), []string{"192.0.2.1:80"})
	for _, name := range []string{"missing.test", "db-without-domain"} {
		if _, v := decide(t, spec, name, 80, r); v.Reason != NameNotFound {
			t.Errorf("%s: %v", name, v)
		}
	}
	asked := server.names()
	equal(t, "asked", asked, []string{"db-without-domain.", "db.test.", "missing.test."})
}

// server answers A questions for db.test with one address inside and one outside.
type server struct {
	addr  string
	mu    sync.Mutex
	asked []string
}

func newServer(t *testing.T) *server {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: conn.LocalAddr().String()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.serve(conn)
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return s
}

func (s *server) serve(conn net.PacketConn) {
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		q := m.Questions[0]
		s.mu.Lock()
		s.asked = append(s.asked, q.Name.String())
		s.mu.Unlock()
		m.Response, m.RCode, m.Additionals = true, dnsmessage.RCodeNameError, nil
		if q.Name.String() == "db.test." {
			m.RCode = dnsmessage.RCodeSuccess
			if q.Type == dnsmessage.TypeA {
				header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}
				m.Answers = []dnsmessage.Resource{
					{Header: header, Body: &dnsmessage.AResource{A: [4]byte{10, 0, 0, 1}}},
					{Header: header, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}}},
				}
			}
		}
		if reply, err := m.Pack(); err == nil {
			_, _ = conn.WriteTo(reply, from)
		}
	}
}

// names are all that were asked for, in order of the alphabet.
func (s *server) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Compact(slices.Sorted(slices.Values(s.asked)))
}
