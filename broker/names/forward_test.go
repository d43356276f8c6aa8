package names

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// The answer is the resolver's, byte for byte, under the asker's id; its addresses are
// remembered under the name that was asked.
func TestForward(t *testing.T) {
	replies := make(chan []byte, 1)
	r := newResolver(t, func(q dnsmessage.Message, _ []byte, _ bool) []byte {
		if q.ID == 0x1234 {
			t.Error("the asker's id went to the resolver")
		}
		if len(q.Additionals) != 1 {
			t.Error("EDNS did not go to the resolver")
		}
		reply := respond(q, dnsmessage.RCodeSuccess,
			&dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName("edge.cdn.example.")}, a("192.0.2.1"), a("192.0.2.2"),
			&dnsmessage.AAAAResource{AAAA: addr("2001:db8::1").As16()})
		replies <- reply
		return reply
	})
	n := newNames(t, Config{ResolvFile: resolvFile(t, "", r)})
	got := n.handle(t.Context(), question(t, "WWW.Corp.", dnsmessage.TypeA, withEDNS(1232)), false)
	sent := <-replies
	if !bytes.Equal(got[2:], sent[2:]) || got[0] != 0x12 || got[1] != 0x34 {
		t.Errorf("got  %x\nsent %x", got, sent)
	}
	for _, s := range []string{"192.0.2.1", "192.0.2.2", "2001:db8::1"} {
		if got := fmt.Sprint(n.Lookup(addr(s))); got != "[www.corp]" {
			t.Errorf("%s: %s", s, got)
		}
	}
	if s := n.Stats(); s.Forwarded != 1 || s.Remembered != 3 {
		t.Errorf("%+v", s)
	}
}

func TestForwardedAnswers(t *testing.T) {
	name := dnsmessage.MustNewName("x.corp.")
	for _, tc := range []struct {
		title  string
		name   string
		typ    dnsmessage.Type
		answer func(q dnsmessage.Message) []byte
		want   string
		known  string // names behind 192.0.2.1
	}{
		{"no such name", "x.corp.", dnsmessage.TypeA, func(q dnsmessage.Message) []byte {
			return respond(q, dnsmessage.RCodeNameError)
		}, "NameError", "[]"},
		{"refused everywhere", "x.corp.", dnsmessage.TypeA, func(q dnsmessage.Message) []byte {
			return respond(q, dnsmessage.RCodeRefused)
		}, "Refused", "[]"},
		{"mail", "x.corp.", dnsmessage.TypeMX, func(q dnsmessage.Message) []byte {
			return respond(q, dnsmessage.RCodeSuccess, &dnsmessage.MXResource{MX: name})
		}, "Success TypeMX", "[]"},
		{"into the pool", "x.corp.", dnsmessage.TypeA, func(q dnsmessage.Message) []byte {
			return respond(q, dnsmessage.RCodeSuccess, a("192.0.2.1"), a("198.18.0.1"))
		}, "ServerFailure", "[]"},
		{"hints into the pool", "x.corp.", dnsmessage.TypeHTTPS, func(q dnsmessage.Message) []byte {
			return respond(q, dnsmessage.RCodeSuccess, &dnsmessage.HTTPSResource{SVCBResource: dnsmessage.SVCBResource{Priority: 1, Target: name,
				Params: []dnsmessage.SVCParam{{Key: dnsmessage.SVCParamIPv4Hint, Value: []byte{198, 18, 0, 1}}}}})
		}, "ServerFailure", "[]"},
		{"hints", "_8443._https.x.corp.", dnsmessage.TypeHTTPS, func(q dnsmessage.Message) []byte {
			return respond(q, dnsmessage.RCodeSuccess, &dnsmessage.HTTPSResource{SVCBResource: dnsmessage.SVCBResource{Priority: 1, Target: name,
				Params: []dnsmessage.SVCParam{{Key: dnsmessage.SVCParamIPv4Hint, Value: []byte{192, 0, 2, 9, 192, 0, 2, 1}}}}})
		}, "Success TypeHTTPS", "[x.corp]"},
		{"cannot be read", "x.corp.", dnsmessage.TypeA, func(q dnsmessage.Message) []byte {
			b := respond(q, dnsmessage.RCodeSuccess, a("192.0.2.1"))
			return b[:len(b)-2]
		}, "ServerFailure", "[]"},
		{"too long for the asker", "x.corp.", dnsmessage.TypeTXT, func(q dnsmessage.Message) []byte {
			return respond(q, dnsmessage.RCodeSuccess, &dnsmessage.TXTResource{TXT: []string{strings.Repeat("x", 250), strings.Repeat("y", 250)}})
		}, "truncated", "[]"},
	} {
		t.Run(tc.title, func(t *testing.T) {
			r := newResolver(t, func(q dnsmessage.Message, _ []byte, _ bool) []byte { return tc.answer(q) })
			n := newNames(t, Config{ResolvFile: resolvFile(t, "options attempts:1", r)})
			m := unpack(t, n.handle(t.Context(), question(t, tc.name, tc.typ), false))
			if got := show(m); got != tc.want && !(tc.want == "truncated" && m.Truncated && len(m.Answers) == 0) {
				t.Errorf("%s, want %s", got, tc.want)
			}
			if got := fmt.Sprint(n.Lookup(addr("192.0.2.1"))); got != tc.known {
				t.Errorf("known: %s, want %s", got, tc.known)
			}
		})
	}
}

// Wrong answers, which another process may send, are not taken.
func TestForwardIgnoresForgeries(t *testing.T) {
	r := newResolver(t, sayNothing)
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r.addr = conn.LocalAddr().(*net.UDPAddr).AddrPort()
	go func() {
		buf := make([]byte, 2000)
		k, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var q dnsmessage.Message
		q.Unpack(buf[:k])
		bad := q
		bad.ID++
		conn.WriteTo(respond(bad, dnsmessage.RCodeSuccess, a("192.0.2.66")), from)
		bad = q
		bad.Questions = []dnsmessage.Question{{Name: dnsmessage.MustNewName("other.corp."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}
		conn.WriteTo(respond(bad, dnsmessage.RCodeSuccess, a("192.0.2.66")), from)
		conn.WriteTo(buf[:k], from) // the query itself
		conn.WriteTo([]byte("rubbish"), from)
		conn.WriteTo(respond(q, dnsmessage.RCodeSuccess, a("192.0.2.1")), from)
	}()
	n := newNames(t, Config{ResolvFile: resolvFile(t, "", r)})
	if got := ask(t, n, "x.corp.", dnsmessage.TypeA); got != "Success 192.0.2.1" {
		t.Error(got)
	}
}

func sayNothing(dnsmessage.Message, []byte, bool) []byte { return nil }

func TestForwardNextServer(t *testing.T) {
	ok := func(q dnsmessage.Message, _ []byte, _ bool) []byte {
		return respond(q, dnsmessage.RCodeSuccess, a("192.0.2.1"))
	}
	gone, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := &resolver{addr: gone.LocalAddr().(*net.UDPAddr).AddrPort()}
	gone.Close() // a port that answers with ICMP
	for _, tc := range []struct {
		name  string
		first *resolver
		least time.Duration
	}{
		{"silent", newResolver(t, sayNothing), 900 * time.Millisecond},
		{"port closed", closed, 0},
		{"server failure", newResolver(t, func(q dnsmessage.Message, _ []byte, _ bool) []byte {
			return respond(q, dnsmessage.RCodeServerFailure)
		}), 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			second := newResolver(t, ok)
			n := newNames(t, Config{ResolvFile: resolvFile(t, "options timeout:1", tc.first, second)})
			for i := range 3 {
				start := time.Now()
				if got := ask(t, n, "x.corp.", dnsmessage.TypeA); got != "Success 192.0.2.1" {
					t.Fatal(got)
				}
				took := time.Since(start)
				if i == 0 && took < tc.least {
					t.Errorf("the first server had only %v", took)
				}
				if i > 0 && took > 900*time.Millisecond {
					t.Errorf("query %d waited for the dead server again: %v", i, took)
				}
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		n := newNames(t, Config{ResolvFile: resolvFile(t, "options timeout:1 attempts:1", closed)})
		if got := ask(t, n, "x.corp.", dnsmessage.TypeA); got != "ServerFailure" || n.Stats().Failed != 1 {
			t.Error(got)
		}
	})
}

func TestForwardTruncated(t *testing.T) {
	r := newResolver(t, func(q dnsmessage.Message, _ []byte, tcp bool) []byte {
		if tcp {
			return respond(q, dnsmessage.RCodeSuccess, a("192.0.2.1"), a("192.0.2.2"))
		}
		b := respond(q, dnsmessage.RCodeSuccess, a("192.0.2.1"))
		b[2] |= 2
		return b
	})
	n := newNames(t, Config{ResolvFile: resolvFile(t, "", r)})
	m := unpack(t, n.handle(t.Context(), question(t, "x.corp.", dnsmessage.TypeA), false))
	if !m.Truncated || show(m) != "Success 192.0.2.1" || r.tcp.Load() != 0 {
		t.Errorf("over UDP: %s %+v", show(m), m.Header)
	}
	m = unpack(t, n.handle(t.Context(), question(t, "x.corp.", dnsmessage.TypeA), true))
	if m.Truncated || show(m) != "Success 192.0.2.1 192.0.2.2" || r.tcp.Load() != 1 {
		t.Errorf("over TCP: %s %+v", show(m), m.Header)
	}
	if n.Lookup(addr("192.0.2.2")) == nil {
		t.Error("the rest of the answer was not learnt")
	}
}

// A changed resolv.conf counts from the next query on.
func TestResolvConfChanges(t *testing.T) {
	answer := func(s string) func(q dnsmessage.Message, _ []byte, _ bool) []byte {
		return func(q dnsmessage.Message, _ []byte, _ bool) []byte { return respond(q, dnsmessage.RCodeSuccess, a(s)) }
	}
	one, two := newResolver(t, answer("192.0.2.1")), newResolver(t, answer("192.0.2.2"))
	path := resolvFile(t, "", one)
	n := newNames(t, Config{ResolvFile: path})
	if got := ask(t, n, "x.corp.", dnsmessage.TypeA); got != "Success 192.0.2.1" {
		t.Error(got)
	}
	next, err := os.ReadFile(resolvFile(t, "# changed", two))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, next, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, n, "x.corp.", dnsmessage.TypeA); got != "Success 192.0.2.2" {
		t.Error(got)
	}
	if got := fmt.Sprint(n.Lookup(addr("192.0.2.1"))); got != "[x.corp]" {
		t.Errorf("the former address: %s", got)
	}
}

// With every name pseudo nothing reaches a resolver.
func TestAllPseudoAsksNobody(t *testing.T) {
	r := newResolver(t, func(q dnsmessage.Message, _ []byte, _ bool) []byte {
		t.Errorf("the resolver was asked %v", q.Questions)
		return nil
	})
	n := newNames(t, Config{AllPseudo: true, ResolvFile: resolvFile(t, "options timeout:1 attempts:1", r)})
	for _, name := range []string{"a.", "a.corp.", ".", "_s._tcp.corp.", "1.2.3.4.in-addr.arpa.", "x.local.", "-bad."} {
		for _, typ := range []dnsmessage.Type{1, 2, 5, 6, 12, 15, 16, 28, 33, 64, 65, 255, 257, 1000} {
			n.handle(t.Context(), question(t, name, typ), false)
		}
	}
	if n.Stats().Forwarded+n.Stats().Failed != 0 {
		t.Errorf("%+v", n.Stats())
	}
}

// Waiting for a resolver that is silent neither grows without bound nor outlives the
// capture.
func TestForwardIsBoundedAndEnds(t *testing.T) {
	silent := make(chan struct{}, 100_000)
	r := newResolver(t, func(dnsmessage.Message, []byte, bool) []byte {
		silent <- struct{}{}
		return nil
	})
	n := newNames(t, Config{ResolvFile: resolvFile(t, "options timeout:10", r)})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 3 * maxUpstream {
		wg.Go(func() { n.handle(ctx, question(t, "x.corp.", dnsmessage.TypeA), false) })
	}
	for range maxUpstream {
		<-silent
	}
	if len(n.up.slots) != maxUpstream {
		t.Errorf("%d at the resolver, want %d", len(n.up.slots), maxUpstream)
	}
	if got := ask(t, n, "pseudo.far.", dnsmessage.TypeA); got != "Success 198.18.0.1" {
		t.Errorf("what needs no resolver waits: %s", got)
	}
	cancel()
	wg.Wait()
	if len(n.up.slots) != 0 {
		t.Errorf("%d slots are still taken", len(n.up.slots))
	}
}
