package names

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// answerWith packs an answer that holds records, and addresses beside them.
func answerWith(t testing.TB, q dnsmessage.Message, answers, extras []dnsmessage.ResourceBody, edit ...func(*dnsmessage.Message)) []byte {
	t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: q.ID, Response: true}, Questions: q.Questions}
	h := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("edge.far."), Class: dnsmessage.ClassINET, TTL: 7}
	for _, b := range answers {
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: b})
	}
	m.Authorities = append(m.Authorities, dnsmessage.Resource{Header: h, Body: &dnsmessage.NSResource{NS: h.Name}})
	for _, b := range extras {
		m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: h, Body: b})
	}
	for _, f := range edit {
		f(&m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Addresses that nobody asked for do not reach the program, wherever EDNS stands.
func TestExtrasAreCut(t *testing.T) {
	mx := []dnsmessage.ResourceBody{&dnsmessage.MXResource{Pref: 5, MX: dnsmessage.MustNewName("mail.far.")}}
	aaaa := &dnsmessage.AAAAResource{AAAA: addr("2001:db8::9").As16()}
	for _, tc := range []struct {
		title  string
		extras []dnsmessage.ResourceBody
		edit   []func(*dnsmessage.Message)
		left   int
	}{
		{"none", nil, nil, 0},
		{"EDNS", nil, []func(*dnsmessage.Message){withEDNS(1400)}, 1},
		{"addresses", []dnsmessage.ResourceBody{a("192.0.2.9"), aaaa}, nil, 0},
		{"addresses, then EDNS", []dnsmessage.ResourceBody{a("192.0.2.9"), aaaa}, []func(*dnsmessage.Message){withEDNS(1400)}, 1},
		{"EDNS, then addresses", nil, []func(*dnsmessage.Message){withEDNS(1400), func(m *dnsmessage.Message) {
			m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: m.Authorities[0].Header, Body: aaaa})
		}}, 1},
	} {
		t.Run(tc.title, func(t *testing.T) {
			replies := make(chan []byte, 1)
			n := newNames(t, Config{ResolvFile: resolvFile(t, "", newResolver(t, func(q dnsmessage.Message, _ []byte, _ bool) []byte {
				reply := answerWith(t, q, mx, tc.extras, tc.edit...)
				replies <- reply
				return reply
			}))})
			answer := n.handle(t.Context(), question(t, "x.corp.", dnsmessage.TypeMX), false)
			m := unpack(t, answer)
			if show(m) != "Success TypeMX" || len(m.Authorities) != 1 || len(m.Additionals) != tc.left {
				t.Fatalf("%+v", m)
			}
			if tc.left == 1 && (m.Additionals[0].Header.Type != dnsmessage.TypeOPT || m.Additionals[0].Header.Class != 1400) {
				t.Errorf("left is %+v", m.Additionals[0])
			}
			if len(tc.extras) == 0 && len(tc.edit) < 2 && !bytes.Equal(answer[2:], (<-replies)[2:]) {
				t.Error("an answer without extras was changed")
			}
			if n.Stats().Remembered != 0 {
				t.Error("something was learnt")
			}
		})
	}
}

// A flow to an address out of a hint is one to the name that was asked, so that its
// rule holds; through aliases too, in alias mode and for other ports and types.
func TestHintsAreTheNames(t *testing.T) {
	target := dnsmessage.MustNewName("edge.cdn.example.")
	svc := func(priority uint16, params ...dnsmessage.SVCParam) dnsmessage.SVCBResource {
		return dnsmessage.SVCBResource{Priority: priority, Target: target, Params: params}
	}
	hint4 := dnsmessage.SVCParam{Key: dnsmessage.SVCParamIPv4Hint, Value: []byte{192, 0, 2, 1, 192, 0, 2, 2}}
	hint6 := dnsmessage.SVCParam{Key: dnsmessage.SVCParamIPv6Hint, Value: addr("2001:db8::1").AsSlice()}
	mapped := dnsmessage.SVCParam{Key: dnsmessage.SVCParamIPv6Hint, Value: addr("::ffff:192.0.2.3").AsSlice()}
	alpn := dnsmessage.SVCParam{Key: dnsmessage.SVCParamALPN, Value: []byte("\x02h3")}
	ech := dnsmessage.SVCParam{Key: dnsmessage.SVCParamECH, Value: []byte("secret")}
	cname := &dnsmessage.CNAMEResource{CNAME: target}
	for _, tc := range []struct {
		title, name string
		typ         dnsmessage.Type
		answers     []dnsmessage.ResourceBody
		known       string // 192.0.2.1, .2, .3, 2001:db8::1
	}{
		{"HTTPS", "x.corp.", dnsmessage.TypeHTTPS, []dnsmessage.ResourceBody{&dnsmessage.HTTPSResource{SVCBResource: svc(1, alpn, hint4, ech, hint6)}},
			"[x.corp] [x.corp] [] [x.corp]"},
		{"SVCB", "_dns.x.corp.", dnsmessage.TypeSVCB, []dnsmessage.ResourceBody{&dnsmessage.SVCBResource{Priority: 1, Target: target, Params: []dnsmessage.SVCParam{alpn, hint6}}},
			"[] [] [] [x.corp]"},
		{"another port", "_8443._https.X.corp.", dnsmessage.TypeHTTPS, []dnsmessage.ResourceBody{&dnsmessage.HTTPSResource{SVCBResource: svc(1, hint4)}},
			"[x.corp] [x.corp] [] []"},
		{"any", "_8443._https.x.corp.", dnsmessage.TypeALL, []dnsmessage.ResourceBody{&dnsmessage.HTTPSResource{SVCBResource: svc(1, mapped)}, a("192.0.2.2")},
			"[] [x.corp] [x.corp] []"},
		{"aliases", "x.corp.", dnsmessage.TypeHTTPS, []dnsmessage.ResourceBody{cname, &dnsmessage.HTTPSResource{SVCBResource: svc(0)},
			&dnsmessage.HTTPSResource{SVCBResource: svc(1, hint4)}, &dnsmessage.HTTPSResource{SVCBResource: svc(2, mapped)}},
			"[x.corp] [x.corp] [x.corp] []"},
		{"aliases of addresses", "x.corp.", dnsmessage.TypeA, []dnsmessage.ResourceBody{cname, cname, a("192.0.2.1")}, "[x.corp] [] [] []"},
	} {
		t.Run(tc.title, func(t *testing.T) {
			u := newUsers(t, Config{ResolvFile: resolvFile(t, "", newResolver(t, func(q dnsmessage.Message, _ []byte, _ bool) []byte {
				return answerWith(t, q, tc.answers, nil)
			}))})
			m := unpack(t, u.handle(t.Context(), u.asker(alice, true), question(t, tc.name, tc.typ), false))
			if len(m.Answers) != len(tc.answers) {
				t.Errorf("answered %s", show(m))
			}
			var known []any
			for _, s := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1"} {
				names := u.For(alice).Lookup(addr(s))
				known = append(known, names)
				if len(names) > 0 && !u.For(alice).Asked(addr(s), "x.corp") || u.For(bob).Lookup(addr(s)) != nil {
					t.Errorf("%s: not asked, or known to others", s)
				}
			}
			if got := fmt.Sprintln(known...); got != tc.known+"\n" {
				t.Errorf("known is %swant %s", got, tc.known)
			}
		})
	}
}

// Whatever stands in an HTTPS record: either the program does not see it, or every
// address that a program could read in it is remembered, and none is of the pool.
func FuzzHints(f *testing.F) {
	f.Add([]byte("\x00\x01\x00\x00\x04\x00\x08\xc0\x00\x02\x01\xc0\x00\x02\x02"))
	f.Add([]byte("\x00\x01\x01x\x00\x00\x01\x00\x03\x02h3\x00\x04\x00\x04\xc6\x12\x00\x01"))
	f.Add(append([]byte("\x00\x01\x00\x00\x06\x00\x10"), make([]byte, 16)...))
	f.Add([]byte("\x00\x00\xc0\x0c"))
	f.Add([]byte("\x00\x01\x00\x00\x04\x00\x05\x01\x02\x03\x04\x05"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 4000 {
			return
		}
		n := newNames(t, Config{MaxNames: 1 << 12})
		msg := question(t, "x.corp.", dnsmessage.TypeHTTPS, func(m *dnsmessage.Message) { m.Response = true })
		msg[7] = 1
		msg = append(msg, 0xc0, headerSize, 0, 65, 0, 1, 0, 0, 0, 9)
		msg = append(binary.BigEndian.AppendUint16(msg, uint16(len(data))), data...)
		q := &query{name: "x.corp", asker: n.asker}
		q.question.Type = dnsmessage.TypeHTTPS
		err := n.learn(q, msg)
		for _, a := range hintsIn(data) {
			if err == nil && (n.IsPool(a) || !slices.Equal(n.Lookup(a), []string{"x.corp"})) {
				t.Errorf("%x: %v is %v", data, a, n.Lookup(a))
			}
		}
	})
}

// hintsIn reads a record as a program would that takes what it finds.
func hintsIn(data []byte) (addrs []netip.Addr) {
	if len(data) < 3 {
		return nil
	}
	end, err := skipName(data, 2)
	if err != nil {
		return nil
	}
	for data = data[end:]; len(data) >= 4; {
		key, size := binary.BigEndian.Uint16(data), int(binary.BigEndian.Uint16(data[2:]))
		if size > len(data)-4 {
			return addrs
		}
		each := map[uint16]int{4: 4, 6: 16}[key]
		for v := data[4 : 4+size]; each > 0 && len(v) >= each; v = v[each:] {
			a, _ := netip.AddrFromSlice(v[:each])
			addrs = append(addrs, a.Unmap())
		}
		data = data[4+size:]
	}
	return addrs
}

// Cutting never panics, keeps what is before the additional section, and leaves no
// record there that is not EDNS.
func FuzzExtras(f *testing.F) {
	var q dnsmessage.Message
	if err := q.Unpack(question(f, "x.corp.", dnsmessage.TypeMX)); err != nil {
		f.Fatal(err)
	}
	f.Add(answerWith(f, q, []dnsmessage.ResourceBody{a("192.0.2.1")}, []dnsmessage.ResourceBody{a("192.0.2.2")}, withEDNS(1232)))
	f.Add(answerWith(f, q, nil, nil, withEDNS(1232), withEDNS(512)))
	f.Add([]byte("\x124\x81\x80\x00\x00\x00\x00\x00\x00\x00\x01\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		if len(msg) < headerSize {
			return
		}
		before := bytes.Clone(msg)
		kept, err := withoutExtras(msg)
		if err != nil {
			return
		}
		if len(kept) > len(before) || !bytes.Equal(kept[:10], before[:10]) {
			t.Fatalf("%x became %x", before, kept)
		}
		var was, is dnsmessage.Message
		if was.Unpack(before) != nil || truncated(before) {
			return
		}
		// Packed anew, as names may have pointed into what was cut.
		if before, err = was.Pack(); err != nil {
			return
		}
		kept, err = withoutExtras(bytes.Clone(before))
		if err != nil {
			t.Fatalf("%x: %v", before, err)
		}
		if err := is.Unpack(kept); err != nil {
			t.Fatalf("%x became %x: %v", before, kept, err)
		}
		if !reflect.DeepEqual(was.Answers, is.Answers) || !reflect.DeepEqual(was.Authorities, is.Authorities) {
			t.Fatalf("%x became %x", before, kept)
		}
		for _, r := range is.Additionals {
			if r.Header.Type != dnsmessage.TypeOPT {
				t.Fatalf("%x: left is %v", before, r.Header)
			}
		}
	})
}
