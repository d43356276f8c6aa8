package names

import (
	"errors"
	"strings"
	"testing"
)

func TestNormalize(t *testing.T) {
	l63 := strings.Repeat("a", 63)
	for _, tc := range []struct{ in, want string }{
		{"host", "host"},
		{"Host.EXAMPLE.", "host.example"},
		{"_ldap._tcp.a-b.c_d", "_ldap._tcp.a-b.c_d"},
		{"xn--bcher-kva.example", "xn--bcher-kva.example"},
		{"10.0.0.5", "10.0.0.5"},
		{"trailing-.example", "trailing-.example"},
		{l63 + ".x", l63 + ".x"},
		{l63 + "." + l63 + "." + l63 + "." + l63[:61], l63 + "." + l63 + "." + l63 + "." + l63[:61]},
		{"", ""}, {".", ""}, {"..", ""}, {".a", ""}, {"a..b", ""}, {"a..", ""},
		{l63 + "a", ""},
		{l63 + "." + l63 + "." + l63 + "." + l63[:62], ""},
		{"-oProxyCommand=x", ""}, {"-x", ""}, {"a.-b", ""},
		{"a b", ""}, {"a/b", ""}, {"../etc/passwd", ""}, {"a;b", ""}, {"$(id)", ""}, {"a%h", ""},
		{"a\nb", ""}, {"a\x00", ""}, {"\x1b[2J", ""}, {"bücher.example", ""}, {"*.example", ""}, {`a\.b`, ""},
	} {
		got, err := Normalize(tc.in)
		if got != tc.want || (err != nil) != (tc.want == "") || err != nil && !errors.Is(err, ErrBadName) {
			t.Errorf("%q: %q, %v; want %q", tc.in, got, err, tc.want)
		}
	}
}

func FuzzNormalize(f *testing.F) {
	f.Add("Host.Example.")
	f.Add("-x")
	f.Add("a\x00b")
	f.Fuzz(func(t *testing.T, in string) {
		got, err := Normalize(in)
		if err != nil {
			if got != "" {
				t.Fatalf("%q and %v", got, err)
			}
			return
		}
		if len(got) > maxName || strings.Trim(got, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" || got[0] == '-' {
			t.Fatalf("%q became %q", in, got)
		}
		if again, err := Normalize(got); err != nil || again != got {
			t.Fatalf("%q is not stable: %q, %v", got, again, err)
		}
	})
}

func TestServiceHost(t *testing.T) {
	for in, want := range map[string]string{
		"host.far": "host.far", "_8443._https.host.far": "host.far", "_x": "_x", "a._b": "a._b",
	} {
		if got := serviceHost(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
