package policy

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestParseHost(t *testing.T) {
	long := strings.Repeat(strings.Repeat("a", 63)+".", 4)
	for _, c := range []struct{ text, want string }{
		{"Example.COM", "example.com"},
		{"example.com.", "example.com"},
		{"db", "db"},
		{"_sip.host_1.example", "_sip.host_1.example"},
		{"r3---sn-x.example", "r3---sn-x.example"},
		{"10.0.0.1", "10.0.0.1"},
		{"::FFFF:10.0.0.1", "10.0.0.1"},
		{"::ffff:a00:1", "10.0.0.1"},
		{"2001:DB8:0:0::1", "2001:db8::1"},
		{"Bücher.example", "xn--bcher-kva.example"},
		{"XN--BCHER-KVA.example", "xn--bcher-kva.example"},
		{"ｅｘａｍｐｌｅ。com", "example.com"}, // full width, ideographic full stop
		{"straße.example", "xn--strae-oqa.example"},
		{"7.example", "7.example"},
		{"a.0xyz", "a.0xyz"},
		{long[:253], long[:253]},

		{"", "error: no host"},
		{".", "error: the host \"\" has an empty label"},
		{"a..b", "error: the host \"a..b\" has an empty label"},
		{"a.b..", "error: the host \"a.b.\" has an empty label"},
		{".a", "error: the host \".a\" has an empty label"},
		{"a b", `error: the host "a b" has the character ' '`},
		{"a\r\nX: y", `error: the host "a\r\nx: y" has the character '\r'`},
		{"a\x00", `error: the host "a\x00" has the character '\x00'`},
		{"a:80", `error: the host "a:80" has the character ':'`},
		{"user@a", `error: the host "user@a" has the character '@'`},
		{"*.a", `error: the host "*.a" has the character '*'`},
		{"[::1]", `error: the host "[::1]" has the character '['`},
		{"::1%lo", `error: the host "::1%lo" has a zone id`},
		{"fe80::1%25eth0", `error: the host "fe80::1%25eth0" has a zone id`},
		{"-o.example", `error: the host "-o.example" has a label that begins with a hyphen`},
		{strings.Repeat("a", 64), "error: the host \"" + strings.Repeat("a", 64) + "\" has a label of more than 63 characters"},
		{long[:253] + "a", "error: the host has more than 253 characters"},
		{strings.Repeat("ü", 600), "error: the host has more than 253 characters"},
		{"xn--a", `error: the host "xn--a" is not a name of IDNA`},
		{"a\xff.example", "error: the host is not UTF-8"},

		{"127.1", "error: \"127.1\" is neither"},
		{"2130706433", "error: \"2130706433\" is neither"},
		{"0x7f000001", "error: \"0x7f000001\" is neither"},
		{"0X7F.0.0.1", "error: \"0X7F.0.0.1\" is neither"},
		{"0177.0.0.1", "error: \"0177.0.0.1\" is neither"},
		{"010.0.0.1", "error: \"010.0.0.1\" is neither"},
		{"10.0.0.01", "error: \"10.0.0.01\" is neither"},
		{"10.0.0.256", "error: \"10.0.0.256\" is neither"},
		{"10.0.0.1.", "error: \"10.0.0.1.\" is neither"},
		{"10.0.0.0x1", "error: \"10.0.0.0x1\" is neither"},
		{"a.0x", "error: \"a.0x\" is neither"},
		{"example.7", "error: \"example.7\" is neither"},
		{"１２７.0.0.1", `error: "\uff11\uff12\uff17.0.0.1" is neither`},
		{"①②⑦.1", `error: "\u2460\u2461\u2466.1" is neither`},
	} {
		host, err := ParseHost(c.text)
		got := host.String()
		if err != nil {
			got = "error: " + err.Error()
			if !host.IsZero() {
				t.Errorf("%q: an error, and %v", c.text, host)
			}
		}
		if got != c.want && !(strings.HasSuffix(c.want, " is neither") && strings.HasPrefix(got, c.want)) {
			t.Errorf("%q: %s, want %s", c.text, got, c.want)
		}
	}
}

func TestParseHostPattern(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"Example.com.", "example.com"},
		{"*.Example.com.", "*.example.com"},
		{"*example.com", "*example.com"},
		{"VNC*", "vnc*"},
		{"vnc.*", "vnc.*"},
		{"*mid*", "*mid*"},
		{"*", "*"},
		{"**", "*"},
		{"*.", "*"},
		{"*.*", "*.*"},
		{"*.bücher.example", "*.xn--bcher-kva.example"},
		{"bücher.*", "xn--bcher-kva.*"},
		{"::ffff:10.0.0.1", "10.0.0.1"},

		{"", "error: no host"},
		{"a*b", `error: the host "a*b" has the character '*'`},
		{"*a*b", `error: "*a*b" has a * in another place than its beginning or end`},
		{"*..a", `error: "*..a": it has an empty label`},
		{"*a..", `error: "*a..": it has an empty label`},
		{"..*", `error: "..*": it has an empty label`},
		{"*..*", `error: "*..*": it has an empty label`},
		{".a*", `error: ".a*": it has an empty label`},
		{"*a b", `error: "*a b": the host "a b" has the character ' '`},
		{"*bücher.example", `error: "*bücher.example": a * beside a label with other letters than ASCII must be parted from it by a dot`},
		{"bücher*", `error: "bücher*": a * beside a label with other letters than ASCII must be parted from it by a dot`},
		{"*[::1]", `error: "*[::1]": the host "[::1]" has the character '['`},
		{"10.0.0.01", `error: "10.0.0.01" is neither a name nor an IPv4 address of four decimal numbers`},
		{"*." + strings.Repeat("a.", 130) + "b", `error: "*.` + strings.Repeat("a.", 130) + `b": it has more than 253 characters`},
	} {
		p, err := ParseHostPattern(c.text)
		got := p.String()
		if err != nil {
			got = "error: " + err.Error()
		}
		if got != c.want {
			t.Errorf("%q: %s, want %s", c.text, got, c.want)
		}
	}
	if (HostPattern{}).match(must(ParseHost("a"))) || (HostPattern{}).match(Host{}) {
		t.Error("the zero pattern matches")
	}
}

// Whatever is accepted has one spelling, which names of hosts may have, and which no
// resolver takes for an address that it is not.
func FuzzParseHost(f *testing.F) {
	for _, s := range []string{"Example.COM.", "10.0.0.1", "::ffff:1.2.3.4", "0x7f.1", "bücher.example", "xn--bcher-kva.example", "fe80::1%eth0", "１２７.0.0.1", "a_b.c-d", "\u212a.example", "a\u00ad.b", "a。b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		host, err := ParseHost(text)
		if err != nil {
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%q: the error is not printable ASCII: %q", text, err)
			}
			return
		}
		s := host.String()
		again, err := ParseHost(s)
		if err != nil || again != host {
			t.Fatalf("%q is %q, and that is %v, %v", text, s, again, err)
		}
		if host.addr.IsValid() {
			if addr, err := netip.ParseAddr(s); err != nil || addr != host.addr || addr.Is4In6() || addr.Zone() != "" {
				t.Errorf("%q is the address %s: %v", text, s, err)
			}
			return
		}
		if len(s) > 253 || s != strings.ToLower(s) || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" || strings.HasSuffix(s, ".") {
			t.Errorf("%q is %q", text, s)
		}
		if net.ParseIP(s) != nil || strings.Trim(s[strings.LastIndexByte(s, '.')+1:], "0123456789") == "" {
			t.Errorf("%q is the name %q, which is an address to some", text, s)
		}
		if upper, err := ParseHost(strings.ToUpper(s) + "."); len(s) < 253 && (err != nil || upper != host) {
			t.Errorf("%q in upper case with a dot is %v, %v", s, upper, err)
		}
		p, err := ParseHostPattern(s)
		if err != nil || !p.match(host) {
			t.Errorf("%q does not match itself: %v", s, err)
		}
	})
}

func FuzzParseHostPattern(f *testing.F) {
	for _, s := range []string{"*.example.com", "vnc*", "*", "*.*", "10.0.0.1", "*.bücher.example", "*-x.y*", "*.", "**", "*.0\x88"} {
		f.Add(s, "a.example.com")
	}
	f.Fuzz(func(t *testing.T, text, name string) {
		p, err := ParseHostPattern(text)
		if err != nil {
			return
		}
		again, err := ParseHostPattern(p.String())
		if err != nil || again != p {
			t.Fatalf("%q is %q, and that is %+v, %v", text, p, again, err)
		}
		host, err := ParseHost(name)
		if err == nil && p.match(host) != plainMatch(p.String(), host.String()) {
			t.Errorf("%q and %q: %t", p, host, p.match(host))
		}
	})
}
