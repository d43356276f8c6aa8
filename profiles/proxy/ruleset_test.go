package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	tests := []struct {
		in     string
		offset int // of the error; -1 for none
		msg    string
	}{
		{"", -1, ""},
		{"direct:///", -1, ""},
		{"direct:///10.0.0.0/8,localhost; socks4://socks.example.com:1080/", -1, ""},
		{"direct:///*.example.com:80,10.0.0.1-10.0.0.9:1-1023,192.0.2.1; http-connect://[fd00::1]:8080/ ; socks5://p/", -1, ""},
		{"socks://p/;", -1, ""},
		{"socks4a://p/", -1, ""},
		{"socks4://[fd00::1]/", -1, ""},
		{"socks5://ann:se%3bcret@p:9/a", -1, ""},
		{"direct:///[fd00::]/8:22,[fd00::1]-[fd00::9],[fd00::1]:1-2,[fd00::/8]", -1, ""},
		{"direct://", 9, "direct:///"},
		{"direct://h/", 9, "direct:///"},
		{"nothing", 0, "no ://"},
		{"direct:///;  ftp://p/", 13, `"ftp"`},
		{"socks5://", 9, "no server"},
		{"socks5:///", 9, "no server"},
		{"socks5://p", 10, "followed by /"},
		{"socks5://p:0/", 9, "not a port"},
		{"socks5://p:65536/", 9, "not a port"},
		{"socks5://p:/", 9, "not a port"},
		{"socks5://[::1/", 9, "IPv6"},
		{"socks5://[10.0.0.1]/", 9, "IPv6"},
		{"socks5://[::1]x/", 9, "only a port"},
		{"socks5://a b/", 9, "' '"},
		{"socks5://ann@p/", 9, "no password"},
		{"socks5://:x@p/", 9, "user of the proxy is empty"},
		{"socks5://ann:@p/", 9, "password of the proxy is empty"},
		{"socks5://a%zz:b@p/", 9, "hexadecimal"},
		{"socks5://a:b@p:0/", 13, "not a port"},
		{"socks4://ann:x@p/", 9, "no password"},
		{"http-connect://a%3ab:c@p/", 15, "colon"},
		{"socks5://a:b%0a@p/", 9, "control"},
		{"socks5://" + strings.Repeat("a", 256) + ":b@p/", 9, "255 bytes"},
		{"ann:secret@p", 0, `"..."`},
		{"direct:///a,,b", 12, "empty"},
		{"direct:///a,b:9-1", 12, "range of ports"},
		{"direct:///a, b:x", 12, "range of ports"},
		{"direct:///10.0.0.9-10.0.0.1", 10, "backwards"},
		{"direct:///10.0.0.0/33", 10, "not an address"},
		{"direct:///:80", 10, "no host"},
		{"direct:///a|b", 10, "not an address"},
	}
	for _, tt := range tests {
		_, err := Parse(tt.in)
		bad, _ := errors.AsType[*SyntaxError](err)
		switch {
		case tt.offset < 0 && err != nil:
			t.Errorf("%q: %v", tt.in, err)
		case tt.offset >= 0 && (bad == nil || bad.Offset != tt.offset || !strings.Contains(bad.Msg, tt.msg)):
			t.Errorf("%q: %v, want offset %d and %q", tt.in, err, tt.offset, tt.msg)
		}
	}
}

func TestParsed(t *testing.T) {
	set, err := Parse("socks5://ann:se%3bcret@p/;http-connect://[fd00::1]/;socks4://bob@q:9/;socks://r/")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []Rule{{Kind: SOCKS5, Host: "p", Port: 1080, User: "ann", Password: "se;cret"},
		{Kind: Connect, Host: "fd00::1", Port: 80}, {Kind: SOCKS4, Host: "q", Port: 9, User: "bob"}, {Kind: SOCKS4, Host: "r", Port: 1080}} {
		if fmt.Sprintf("%#v", set[i]) != fmt.Sprintf("%#v", want) {
			t.Errorf("rule %d: %#v, want %#v", i, set[i], want)
		}
	}
	if got := set[0].String() + " " + set[1].String(); got != "socks5://p:1080 http-connect://[fd00::1]:80" {
		t.Error(got)
	}
}

// The first rule that covers a server counts, whatever later ones say.
func TestFirstMatch(t *testing.T) {
	addresses := map[string][]netip.Addr{"in.example.com": {netip.MustParseAddr("10.1.2.3")},
		"two.example.com": {netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("fd00::7")}}
	for _, tt := range []struct {
		set, host string
		port      uint16
		want      string // "" for no rule
	}{
		{"direct:///10.0.0.0/8,localhost;socks4://s/", "10.9.9.9", 22, "direct"},
		{"direct:///10.0.0.0/8,localhost;socks4://s/", "localhost", 22, "direct"},
		{"direct:///10.0.0.0/8,localhost;socks4://s/", "LocalHost.", 22, "direct"},
		{"direct:///10.0.0.0/8,localhost;socks4://s/", "11.0.0.1", 22, "socks4://s:1080"},
		{"direct:///10.0.0.0/8,localhost;socks4://s/", "in.example.com", 22, "direct"},
		{"direct:///10.0.0.0/8,localhost;socks4://s/", "unknown.example.com", 22, "socks4://s:1080"},
		{"direct:///[fd00::]/8;socks4://s/", "two.example.com", 22, "direct"},
		{"socks5://a/*.example.com:22;socks5://b/*.example.com;socks5://c/x", "h.example.com", 22, "socks5://a:1080"},
		{"socks5://a/*.example.com:22;socks5://b/*.example.com;socks5://c/x", "h.example.com", 23, "socks5://b:1080"},
		{"socks5://a/*.example.com:22;socks5://b/*.example.com;socks5://c/x", "example.com", 23, ""},
		{"socks5://a/h?:20-30", "h1", 30, "socks5://a:1080"},
		{"socks5://a/h?:20-30", "h1", 31, ""},
		{"socks5://a/h?", "h12", 22, ""},
		{"socks5://a/10.0.0.5-10.0.0.7", "10.0.0.7", 22, "socks5://a:1080"},
		{"socks5://a/10.0.0.5-10.0.0.7", "10.0.0.8", 22, ""},
		{"socks5://a/10.0.0.5", "::ffff:10.0.0.5", 22, "socks5://a:1080"},
		{"socks5://a/0.0.0.0/0", "fd00::1", 22, ""},
		{"", "h", 22, ""},
	} {
		set, err := Parse(tt.set)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for i := range set {
			if set[i].covers(tt.host, tt.port, func() []netip.Addr {
				if a, err := netip.ParseAddr(tt.host); err == nil {
					return []netip.Addr{a}
				}
				return addresses[tt.host]
			}) {
				got = set[i].String()
				break
			}
		}
		if got != tt.want {
			t.Errorf("%s for %s:%d: %q, want %q", tt.set, tt.host, tt.port, got, tt.want)
		}
	}
}

func TestWild(t *testing.T) {
	for _, tt := range []struct {
		pattern, name string
		want          bool
	}{{"*", "", true}, {"a*b*c", "axxbyyc", true}, {"a*b*c", "axxbyy", false}, {"?", "", false}, {"*.x", "a.b.x", true},
		{strings.Repeat("*a", 40), strings.Repeat("a", 80) + "b", false}} {
		if got := wild(tt.pattern, tt.name); got != tt.want {
			t.Errorf("%q over %q: %t", tt.pattern, tt.name, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("direct:///10.0.0.0/8,localhost; socks4://[::1]:1080/")
	f.Add("socks5://a:b@p/*.x:1-2,[fd00::]/8;http-connect://p/")
	f.Fuzz(func(t *testing.T, s string) {
		set, err := Parse(s)
		if bad, ok := errors.AsType[*SyntaxError](err); err != nil && (!ok || bad.Offset < 0 || bad.Offset > len(s) || bad.Msg == "") {
			t.Fatalf("%q: %#v", s, err)
		}
		for i := range set {
			if r := &set[i]; r.Kind != Direct && (r.Host == "" || r.Port == 0) {
				t.Fatalf("%q: %#v", s, r)
			}
			set[i].covers("host.example.com", 22, func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("fd00::1")} })
		}
	})
}

func TestEnvironment(t *testing.T) {
	for _, tt := range []struct{ proxy, no, address, want, err string }{
		{"", "", "h:22", "", ""},
		{"http://p:3128", "", "h:22", "http-connect://p:3128", ""},
		{"p:3128", "", "h:22", "http-connect://p:3128", ""},
		{"http://p", "", "h:22", "http-connect://p:80", ""},
		{"socks5://p", "", "h:22", "socks5://p:1080", ""},
		{"socks5h://p:9", "", "[fd00::1]:22", "socks5://p:9", ""},
		{"http://p:3128", "", "localhost:22", "", ""},
		{"http://p:3128", "", "127.0.0.1:22", "", ""},
		{"http://p:3128", "example.com,10.0.0.0/8", "a.example.com:22", "", ""},
		{"http://p:3128", "example.com,10.0.0.0/8", "10.1.1.1:22", "", ""},
		{"http://p:3128", "example.com,10.0.0.0/8", "11.1.1.1:22", "http-connect://p:3128", ""},
		{"http://p:3128", "*", "h:22", "", ""},
		{"https://p:3128", "", "h:22", "", "https:// is not supported"},
		{"http://ann:secret@p:x", "", "h:22", "", "not the URL"},
		{"http://p:0", "", "h:22", "", "host and a port"},
	} {
		set, err := Environment{tt.proxy, tt.no}.Ruleset(tt.address)
		got := ""
		if len(set) > 0 {
			got = set[0].String()
		}
		if got != tt.want || (err != nil) != (tt.err != "") || err != nil && (!strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%+v: %q, %v", tt, got, err)
		}
	}
	set, err := Environment{"http://ann:se%40cret@p", ""}.Ruleset("h:22")
	if err != nil || set[0].User != "ann" || set[0].Password != "se@cret" {
		t.Errorf("%+v, %v", set, err)
	}
}

// TestNoPasswordInErrors: a password with a character that ends it for the grammar is
// not in what is said of that.
func TestNoPasswordInErrors(t *testing.T) {
	for _, c := range []string{"/", ";", "/;", "@", "://", ",", ":", "%", " ", "-"} {
		for _, form := range []string{"socks5://user:%s@proxy:1080/", "http-connect://user:%s@proxy/", "sox://user:%s@proxy/", "user:%s@proxy:1080/", "socks5:/user:%s@proxy/://", "socks5://user:%s@proxy:x/"} {
			_, err := Parse(fmt.Sprintf(form, "secret"+c+"secret"))
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("%s with %q: %v", form, c, err)
			}
		}
	}
}
