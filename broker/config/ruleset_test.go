package config

import (
	"strings"
	"testing"
)

func TestCheckRuleset(t *testing.T) {
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
		{"socks4://[fd00::1]/", -1, ""},
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
		{"direct:///a,,b", 12, "empty"},
		{"direct:///a,b:9-1", 12, "range of ports"},
		{"direct:///a, b:x", 12, "range of ports"},
		{"direct:///10.0.0.9-10.0.0.1", 10, "backwards"},
		{"direct:///10.0.0.0/33", 10, "not an address"},
		{"direct:///:80", 10, "no host"},
		{"direct:///a|b", 10, "not an address"},
	}
	for _, tt := range tests {
		err := checkRuleset(tt.in)
		switch {
		case tt.offset < 0 && err != nil:
			t.Errorf("%q: %d: %s", tt.in, err.offset, err.msg)
		case tt.offset >= 0 && (err == nil || err.offset != tt.offset || !strings.Contains(err.msg, tt.msg)):
			t.Errorf("%q: %+v, want offset %d and %q", tt.in, err, tt.offset, tt.msg)
		}
	}
}

func FuzzCheckRuleset(f *testing.F) {
	f.Add("direct:///10.0.0.0/8,localhost; socks4://[::1]:1080/")
	f.Fuzz(func(t *testing.T, s string) {
		if err := checkRuleset(s); err != nil && (err.offset < 0 || err.offset > len(s) || err.msg == "") {
			t.Fatalf("%q: %+v", s, err)
		}
	})
}
