package names

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func writeFile(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLocalAnswers(t *testing.T) {
	const (
		a, aaaa, ptr = dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypePTR
		mx, soa      = dnsmessage.TypeMX, dnsmessage.TypeSOA
		https        = dnsmessage.TypeHTTPS
	)
	type row struct {
		name string
		typ  dnsmessage.Type
		want string
	}
	hostsFile := writeFile(t, "192.0.2.1 db.corp\n192.0.2.2 db.corp\n2001:db8::5 six.corp\n127.0.0.1 localhost\n192.0.2.9 both.far\n198.18.0.77 poisoned.corp\n")
	reverse6 := "1.0.0.0." + strings.Repeat("0.", 16) + "1.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa." // fd00:0:1::1
	for _, tc := range []struct {
		title string
		cfg   Config
		rows  []row
	}{
		{"policy", Config{}, []row{
			{"one.far.", a, "Success 198.18.0.1"},
			{"ONE.Far.", a, "Success 198.18.0.1"},
			{"one.far.", aaaa, "Success"},
			{"two.far.", aaaa, "Success"}, // takes no address
			{"two.far.", a, "Success 198.18.0.2"},
			{"one.far.", mx, "Success"},
			{"one.far.", https, "Success"},
			{"_8443._https.one.far.", https, "Success"},
			{"_8443._https.one.far.", dnsmessage.TypeALL, "Success"},
			{"_dns.one.far.", dnsmessage.TypeSVCB, "Success"},
			{"_dns.resolver.arpa.", dnsmessage.TypeSVCB, "Success"}, // else it would lead past us
			{"resolver.arpa.", a, "Success"},
			{"not-resolver.arpa.", a, "ServerFailure"},
			{"one.far.", dnsmessage.TypeALL, "Success"},
			{"1.0.18.198.in-addr.arpa.", ptr, "Success one.far."},
			{"1.0.18.198.in-addr.arpa.", soa, "Success"},
			{"99.0.18.198.in-addr.arpa.", ptr, "NameError"},
			{"localhost.", a, "Success 127.0.0.1"},
			{"localhost.", aaaa, "Success ::1"},
			{"x.LOCALHOST.", a, "Success 127.0.0.1"},
			{"localhost.", mx, "Success"},
			{"1.0.0.127.in-addr.arpa.", ptr, "Success localhost."},
			{"db.corp.", a, "Success 192.0.2.1 192.0.2.2"},
			{"db.corp.", aaaa, "Success"},
			{"six.corp.", aaaa, "Success 2001:db8::5"},
			{"2.2.0.192.in-addr.arpa.", ptr, "Success db.corp."},
			{"both.far.", a, "Success 198.18.0.3"}, // the rule counts, not the hosts file
			{"poisoned.corp.", a, "ServerFailure"},
			{"elsewhere.corp.", a, "ServerFailure"}, // no resolvers
			{".", dnsmessage.TypeNS, "ServerFailure"},
			{"one.far.", typeAXFR, "Refused"},
			{"-x.far.", a, "Refused"},
			{"a b.far.", a, "Refused"},
			{"\x1b[2J.far.", a, "Refused"},
		}},
		{"all pseudo", Config{AllPseudo: true}, []row{
			{"anything.", a, "Success 198.18.0.1"},
			{"db.corp.", a, "Success 198.18.0.2"},
			{"db.corp.", aaaa, "Success"},
			{"db.corp.", mx, "Success"},
			{"_ldap._tcp.corp.", dnsmessage.TypeSRV, "Success"},
			{".", dnsmessage.TypeNS, "Success"},
			{".", a, "Success"},
			{"localhost.", a, "Success 127.0.0.1"},
			{"8.8.8.8.in-addr.arpa.", ptr, "Success"},
			{"2.0.18.198.in-addr.arpa.", ptr, "Success db.corp."},
			{"-x.", a, "Refused"},
		}},
		{"IPv6 pool", Config{Pool4: netip.MustParsePrefix("10.1.0.0/16"), Pool6: netip.MustParsePrefix("fd00:0:1::/64")}, []row{
			{"one.far.", aaaa, "Success fd00:0:1::1"},
			{"one.far.", a, "Success 10.1.0.1"},
			{"two.far.", a, "Success 10.1.0.2"},
			{"two.far.", aaaa, "Success fd00:0:1::2"},
			{reverse6, ptr, "Success one.far."},
			{"1.0.1.10.in-addr.arpa.", ptr, "Success one.far."},
			{"one.far.", https, "Success"},
			{"one.far.", dnsmessage.TypeSVCB, "Success"},
			{"one.far.", dnsmessage.TypeALL, "Success"},
			{"one.far.", mx, "Success"},
			{"db.corp.", aaaa, "Success"},
		}},
	} {
		t.Run(tc.title, func(t *testing.T) {
			tc.cfg.HostsFile = hostsFile
			n := newNames(t, tc.cfg)
			for _, r := range tc.rows {
				for _, edit := range []func(*dnsmessage.Message){func(*dnsmessage.Message) {}, withEDNS(1232)} {
					raw := question(t, r.name, r.typ, edit)
					m := unpack(t, n.handle(t.Context(), raw, false))
					if got := show(m); got != r.want {
						t.Errorf("%s %v: %s, want %s", r.name, r.typ, got, r.want)
					}
					if m.ID != 0x1234 || !m.RecursionDesired || !m.RecursionAvailable || m.Truncated {
						t.Errorf("%s: header %+v", r.name, m.Header)
					}
					if len(m.Questions) != 1 || m.Questions[0].Name.String() != r.name {
						t.Errorf("%s: question %v", r.name, m.Questions)
					}
					if asked := raw[11] == 1; asked != (len(m.Additionals) == 1) {
						t.Errorf("%s: %d additional records", r.name, len(m.Additionals))
					}
				}
			}
		})
	}
}

func TestUnusualMessages(t *testing.T) {
	n := newNames(t, Config{})
	good := question(t, "one.far.", dnsmessage.TypeA)
	edit := func(f func([]byte) []byte) []byte { return f(bytes.Clone(good)) }
	for _, tc := range []struct {
		name string
		msg  []byte
		want string // "": nothing is sent
	}{
		{"empty", nil, ""},
		{"short header", good[:11], ""},
		{"an answer", edit(func(b []byte) []byte { b[2] |= 0x80; return b }), ""},
		{"header only", edit(func(b []byte) []byte { return b[:12] }), "FormatError"},
		{"no question", edit(func(b []byte) []byte { b[5] = 0; return b[:12] }), "FormatError"},
		{"two questions", question(t, "a.", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.Questions = append(m.Questions, m.Questions[0]) }), "FormatError"},
		{"half a question", good[:len(good)-3], "FormatError"},
		{"pointer to itself", edit(func(b []byte) []byte { return append(b[:12], 0xc0, 12, 0, 1, 0, 1) }), "FormatError"},
		{"missing additional", edit(func(b []byte) []byte { b[11] = 1; return b }), "FormatError"},
		{"two OPT", question(t, "a.", dnsmessage.TypeA, withEDNS(512), withEDNS(512)), "FormatError"},
		{"status", edit(func(b []byte) []byte { b[2] |= 2 << 3; return b }), "NotImplemented"},
		{"update", edit(func(b []byte) []byte { b[2] |= 5 << 3; return b }), "NotImplemented"},
		{"chaos", question(t, "version.bind.", dnsmessage.TypeTXT, func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassCHAOS }), "Refused"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			answer := n.handle(t.Context(), tc.msg, false)
			if (answer == nil) != (tc.want == "") {
				t.Fatalf("answer %x", answer)
			}
			if answer != nil {
				m := unpack(t, answer)
				if show(m) != tc.want || m.ID != 0x1234 {
					t.Errorf("%s %+v", show(m), m.Header)
				}
			}
		})
	}
}

// Names of hostile bytes are counted and never logged, whatever a program sends.
func TestHostileNamesAreNotLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		n := newNames(t, Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		for range 1000 {
			ask(t, n, "-evil\x1b]0;x.far.", dnsmessage.TypeA)
		}
		if strings.Count(log.String(), "\n") != 1 || strings.Contains(log.String(), "evil") {
			t.Errorf("logged %q", log.String())
		}
		time.Sleep(2 * warnEvery)
		ask(t, n, "-evil.far.", dnsmessage.TypeA)
		if strings.Count(log.String(), "\n") != 2 || !strings.Contains(log.String(), "total=1001") {
			t.Errorf("logged %q", log.String())
		}
		if s := n.Stats(); s.BadNames != 1001 || s.Queries != 1001 || s.Pseudo != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestLookup(t *testing.T) {
	hosts := writeFile(t, "192.0.2.1 file.corp alias.corp\n")
	n := newNames(t, Config{HostsFile: hosts})
	want := func(a, want string) {
		t.Helper()
		if got := fmt.Sprint(n.Lookup(addr(a))); got != want {
			t.Errorf("%s: %s, want %s", a, got, want)
		}
	}
	want("192.0.2.1", "[file.corp alias.corp]")
	n.Seed(addr("192.0.2.1"), "seed.corp", "-bad", "Alias.Corp.")
	want("192.0.2.1", "[alias.corp seed.corp file.corp]")
	want("::ffff:192.0.2.1", "[alias.corp seed.corp file.corp]")
	n.Seed(addr("198.18.0.1"), "not.in.the.pool")
	want("198.18.0.1", "[]")
	ask(t, n, "x.far.", dnsmessage.TypeA)
	want("198.18.0.1", "[x.far]")
	if err := os.WriteFile(hosts, []byte("192.0.2.1 changed.corp.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	want("192.0.2.1", "[alias.corp seed.corp changed.corp.example]")
	for a, in := range map[string]bool{"198.18.0.1": true, "198.19.1.1": true, "::ffff:198.18.0.1": true, "192.0.2.1": false, "::1": false} {
		if n.IsPool(addr(a)) != in {
			t.Errorf("IsPool(%s) is %v", a, !in)
		}
	}
}

// A name of the hosts file counts as asked only once a program has asked for it.
func TestAsked(t *testing.T) {
	n := newNames(t, Config{HostsFile: writeFile(t, "192.0.2.1 file.corp alias.corp\n")})
	want := func(a, name string, asked bool) {
		t.Helper()
		if n.Asked(addr(a), name) != asked {
			t.Errorf("%s, %s: asked is %v", a, name, !asked)
		}
	}
	want("192.0.2.1", "file.corp", false)
	ask(t, n, "file.corp.", dnsmessage.TypeA)
	want("192.0.2.1", "file.corp", true)
	want("::ffff:192.0.2.1", "file.corp", true)
	want("192.0.2.1", "alias.corp", false)
	want("198.18.0.1", "x.far", false)
	ask(t, n, "x.far.", dnsmessage.TypeA)
	want("198.18.0.1", "x.far", true)
	want("198.18.0.1", "y.far", false)
}

// What one capture asked is unknown to another.
func TestCapturesAreApart(t *testing.T) {
	one, two := newNames(t, Config{}), newNames(t, Config{})
	ask(t, one, "secret.far.", dnsmessage.TypeA)
	one.Seed(addr("192.0.2.1"), "secret.corp")
	for _, a := range []string{"198.18.0.1", "192.0.2.1"} {
		if got := two.Lookup(addr(a)); got != nil {
			t.Errorf("%s: %v", a, got)
		}
	}
	if got := ask(t, two, "1.0.18.198.in-addr.arpa.", dnsmessage.TypePTR); got != "NameError" {
		t.Error(got)
	}
}

func TestExhaustion(t *testing.T) {
	n := newNames(t, Config{Pool4: netip.MustParsePrefix("10.9.8.0/30")})
	for i, want := range []string{"Success 10.9.8.1", "Success 10.9.8.2", "ServerFailure", "ServerFailure"} {
		if got := ask(t, n, fmt.Sprintf("n%d.far.", i), dnsmessage.TypeA); got != want {
			t.Errorf("name %d: %s, want %s", i, got, want)
		}
	}
	if n.Stats().Exhausted != 2 {
		t.Errorf("%+v", n.Stats())
	}
}

func TestNewRefuses(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for name, cfg := range map[string]Config{
		"zero":           {},
		"no policy":      {Logger: log},
		"no logger":      {AllPseudo: true},
		"pool":           {AllPseudo: true, Logger: log, Pool4: netip.MustParsePrefix("::/64")},
		"journal's path": {AllPseudo: true, Logger: log, Journal: filepath.Join(t.TempDir(), "no", "such")},
	} {
		if n, err := New(cfg); err == nil {
			n.Close()
			t.Errorf("%s was taken", name)
		}
	}
}

// No message makes the handler panic, and every answer is one to the question.
func FuzzHandle(f *testing.F) {
	f.Add(question(f, "one.far.", dnsmessage.TypeA, withEDNS(4096)), false)
	f.Add(question(f, "localhost.", dnsmessage.TypeAAAA), true)
	f.Add(question(f, "1.0.18.198.in-addr.arpa.", dnsmessage.TypePTR), false)
	f.Add(question(f, strings.Repeat("0.", 32)+"ip6.arpa.", dnsmessage.TypePTR), false)
	f.Add(question(f, "a\x00\x1b.far.", dnsmessage.TypeHTTPS), false)
	f.Add([]byte("\x124\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\xc0\x0c\x00\x01\x00\x01"), false)
	n := newNames(f, Config{HostsFile: writeFile(f, "192.0.2.1 h\n"), Pool6: netip.MustParsePrefix("fd00::/64")})
	all := newNames(f, Config{AllPseudo: true})
	f.Fuzz(func(t *testing.T, msg []byte, tcp bool) {
		for _, n := range []*Names{n, all} {
			answer := n.handle(t.Context(), bytes.Clone(msg), tcp)
			if answer == nil {
				continue
			}
			m := unpack(t, answer)
			if m.ID != binary.BigEndian.Uint16(msg) || len(answer) > udpPlain || len(m.Questions) > 1 {
				t.Fatalf("%x was answered %x", msg, answer)
			}
			for _, r := range m.Answers {
				name, err := Normalize(m.Questions[0].Name.String())
				if err != nil {
					t.Fatalf("an answer for %q: %v", m.Questions[0].Name, r)
				}
				if b, ok := r.Body.(*dnsmessage.AResource); ok && n.IsPool(netip.AddrFrom4(b.A)) {
					if got := n.Lookup(netip.AddrFrom4(b.A)); len(got) != 1 || got[0] != name {
						t.Fatalf("%v is %v, want %q", b.A, got, name)
					}
				}
			}
		}
	})
}

func FuzzLearn(f *testing.F) {
	good := question(f, "a.corp.", dnsmessage.TypeA, func(m *dnsmessage.Message) {
		m.Response = true
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET},
			Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}},
		})
	})
	f.Add(good, uint16(1))
	f.Add(good[:len(good)-2], uint16(65))
	n := newNames(f, Config{})
	f.Fuzz(func(t *testing.T, answer []byte, typ uint16) {
		q := &query{name: "_x.a.corp", asker: n.asker}
		q.question.Type = dnsmessage.Type(typ)
		if n.learn(q, answer) != nil && len(answer) < headerSize {
			return
		}
		if n.memory.len() > DefaultMaxNames {
			t.Fatal("unbounded")
		}
		if n.Lookup(addr("198.18.0.1")) != nil {
			t.Fatal("an answer made a pseudo address")
		}
	})
}
