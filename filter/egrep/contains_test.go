package egrep

import (
	"math/rand/v2"
	"strings"
	"testing"
)

func TestContains(t *testing.T) {
	for _, tt := range []struct {
		p, q string
		want bool
	}{
		{`.*`, `.*`, true},
		{`.*`, `a`, true},
		{`.*`, `.*\.example`, true},
		{`.*`, `10\..*`, true},
		{`.*`, `a+`, false}, // not found out
		{`.*`, `a\nb`, false},
		{`a`, `.*`, false},
		{`a\.example`, `A\.Example`, true},
		{`a\.example`, `b\.example`, false},
		{`.*\.example`, `.*\.b\.example`, true},
		{`.*\.example`, `b\.example`, true},
		{`.*\.example`, `example`, false},
		{`.*\.b\.example`, `.*\.example`, false},
		{`.*\.example`, `b\.example.*`, false},
		{`10\..*`, `10\.1\..*`, true},
		{`10\..*`, `10\.1\.2\.3`, true},
		{`10\.1\..*`, `10\..*`, false},
		{`10\..*`, `.*10\.`, false},
		{`(.*\.)?corp\.example`, `corp\.example`, true},
		{`(.*\.)?corp\.example`, `a\.corp\.example`, true},
		{`(.*\.)?corp\.example`, `xcorp\.example`, false},
		{`(.*\.)?corp\.example`, `(.*\.)?corp\.example`, true},
		{`[a-c]x`, `bx`, true},
		{`(.*\.)?corp\.example`, `.*\.corp\.example`, true},
		{`(.*\.)?corp\.example`, `.*\.db\.corp\.example`, true},
		{`(.*\.)?corp\.example`, `(.*\.)?db\.Corp\.example`, true},
		{`(.*\.)?corp\.example`, `(.*\.)?xcorp\.example`, false},
		{`(.*\.)?corp\.example`, `.*corp\.example`, false},
		{`.*\.corp\.example`, `(.*\.)?corp\.example`, false},
		{`.*\.example`, `(.*\.)?corp\.example`, true},
		{`.*`, `(.*\.)?corp\.example`, true},
		{`.*`, `(.*\.)?a\nb`, false},
		{`(.*\.)?x`, `(.*\.)?a|b`, false},
	} {
		p, q := mustCompile(t, tt.p, Options{IgnoreCase: true}), mustCompile(t, tt.q, Options{IgnoreCase: true})
		if got := p.Contains(q); got != tt.want {
			t.Errorf("%s contains %s: %v", tt.p, tt.q, got)
		}
	}
	exact, fold := mustCompile(t, "A", Options{}), mustCompile(t, "A", Options{IgnoreCase: true})
	if exact.Contains(fold) || !fold.Contains(exact) || new(Pattern).Contains(exact) || exact.Contains(new(Pattern)) {
		t.Error("case, or the zero Pattern, is not told apart")
	}
	if prefix := mustCompile(t, "AB.*", Options{}); !mustCompile(t, "ab?.*|a.*", Options{IgnoreCase: true}).Match("AB") || !mustCompile(t, "a.*", Options{IgnoreCase: true}).Contains(prefix) {
		t.Error("a prefix in another case")
	}
}

func TestLiterals(t *testing.T) {
	a64 := strings.Repeat("a", 64)
	for pattern, want := range map[string][3]string{
		`.*`: {"", "", ""}, `a\.Example`: {"a.example", "a.example", "a.example"}, `.*\.example`: {"", ".example", ".example"}, `10\..*`: {"10.", "", "10."},
		`(.*\.)?corp\.example`: {"", "corp.example", "corp.example"}, `www[0-9]+\.x`: {"www", ".x", "www"}, `a+b`: {"a", "ab", "ab"}, `(ab){1}c`: {"abc", "abc", "abc"},
		`a{2}`: {"a", "a", "a"}, `a|b`: {"", "", ""}, `^a$`: {"a", "a", "a"}, `x(a|b)y`: {"x", "y", "x"}, `()a`: {"a", "a", "a"}, `a?b`: {"", "b", "b"}, `[Aa][bB]`: {"ab", "ab", "ab"},
		`.*mail[0-9]x.*`: {"", "", "mail"}, `(abc|def).*`: {"", "", ""}, strings.Repeat("a", 100): {a64, a64, a64},
	} {
		head, tail, inside := mustCompile(t, pattern, Options{IgnoreCase: true}).Literals()
		if got := [3]string{head, tail, inside}; got != want {
			t.Errorf("%s: %q, want %q", pattern, got, want)
		}
	}
}

// What is contained matches nothing that its container does not, and all texts have
// their literals.
func TestContainsIsTrue(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	pieces := []string{`a`, `b`, `\.`, `.*`, `a+`, `[ab]`, `(a|b)`, `b?`, `A`, `\n`, `(.*\.)?`}
	texts := []string{"", "a", "b", ".", "ab", "a.b", "a.a", "b.ab", "aab", "a.b.a", "A", "a.B", "ba", "bb", "a\nb"}
	made := func() (string, *Pattern) {
		var b strings.Builder
		for range 1 + rng.IntN(3) {
			b.WriteString(pieces[rng.IntN(len(pieces))])
		}
		return b.String(), mustCompile(t, b.String(), Options{IgnoreCase: rng.IntN(3) > 0})
	}
	contained := 0
	for range 20_000 {
		a, p := made()
		b, q := made()
		contains := p.Contains(q)
		if contains {
			contained++
		}
		head, tail, inside := q.Literals()
		for _, text := range texts {
			if !q.Match(text) {
				continue
			}
			if contains && !p.Match(text) {
				t.Fatalf("%q contains %q, but does not match %q", a, b, text)
			}
			folded := text
			if q.ignoreCase {
				folded = strings.ToLower(text)
			}
			if !strings.HasPrefix(folded, head) || !strings.HasSuffix(folded, tail) || !strings.Contains(folded, inside) {
				t.Fatalf("%q matches %q, but the literals are %q, %q and %q", b, text, head, tail, inside)
			}
		}
	}
	if contained < 500 {
		t.Errorf("only %d of the patterns contain one another", contained)
	}
}
