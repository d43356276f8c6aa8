//go:build !race

package egrep

import "testing"

// Not under the race detector, which makes sync.Pool forget on purpose.
func TestMatchAllocatesNothing(t *testing.T) {
	for _, tt := range []struct{ pattern, text string }{
		{`.*`, "a.example"},
		{`a\.example`, "a.example"},
		{`.*\.example`, "a.example"},
		{`(.*\.)?corp\.example`, "a.corp.example"},
		{`10\.[0-9]+\..*`, "10.1.2.3"},
		{`.*\<web-mail\>.*`, "x.web-mail.example"},
		{`(.*/)?caf.*`, "/usr/bin/café"},
	} {
		p := mustCompile(t, tt.pattern, Options{})
		if !p.Match(tt.text) {
			t.Errorf("%q does not match %q", tt.pattern, tt.text)
		}
		if n := testing.AllocsPerRun(100, func() { p.Match(tt.text) }); n != 0 {
			t.Errorf("%q against %q: %v allocations", tt.pattern, tt.text, n)
		}
	}
}
