package names

import (
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(journalChild); path != "" {
		runJournalChild(path)
		return
	}
	goleak.VerifyTestMain(m)
}

// suffixPolicy calls every name pseudo that ends in it.
type suffixPolicy string

func (s suffixPolicy) Pseudo(name string) bool { return strings.HasSuffix(name, string(s)) }

func newNames(t testing.TB, cfg Config) *Names {
	t.Helper()
	if cfg.Policy == nil && !cfg.AllPseudo {
		cfg.Policy = suffixPolicy(".far")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// question packs a query.
func question(t testing.TB, name string, typ dnsmessage.Type, edit ...func(*dnsmessage.Message)) []byte {
	t.Helper()
	m := dnsmessage.Message{
		Header: dnsmessage.Header{ID: 0x1234, RecursionDesired: true},
		Questions: []dnsmessage.Question{{
			Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET,
		}},
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

func withEDNS(size int) func(*dnsmessage.Message) {
	return func(m *dnsmessage.Message) {
		var h dnsmessage.ResourceHeader
		h.SetEDNS0(size, 0, false)
		m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: h, Body: &dnsmessage.OPTResource{}})
	}
}

// unpack reads an answer that must be one.
func unpack(t testing.TB, b []byte) dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Fatalf("answer %x: %v", b, err)
	}
	if !m.Response {
		t.Fatal("not an answer")
	}
	return m
}

// show writes an answer as text: code, and data in order.
func show(m dnsmessage.Message) string {
	words := []string{strings.TrimPrefix(m.RCode.String(), "RCode")}
	for _, r := range m.Answers {
		switch b := r.Body.(type) {
		case *dnsmessage.AResource:
			words = append(words, netip.AddrFrom4(b.A).String())
		case *dnsmessage.AAAAResource:
			words = append(words, netip.AddrFrom16(b.AAAA).String())
		case *dnsmessage.PTRResource:
			words = append(words, b.PTR.String())
		default:
			words = append(words, r.Header.Type.String())
		}
	}
	return strings.Join(words, " ")
}
