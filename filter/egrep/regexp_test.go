package egrep

import (
	"math/rand/v2"
	"regexp"
	"testing"
)

// TestRegexp holds the expression to the matcher, over texts that are near a match.
func TestRegexp(t *testing.T) {
	texts := []string{"", "10.1.2.3", "10.1.2.30", "110.1.2.3", "2001:db8::1", "fe80::1", "FE80::1", "::", "a.example", "A.EXAMPLE"}
	rng := rand.New(rand.NewPCG(1, 2))
	const letters = "019afAFkK.:"
	for range 2_000 {
		b := []byte(texts[rng.IntN(len(texts))])
		for range rng.IntN(3) {
			at := rng.IntN(len(b) + 1)
			b = append(b[:at:at], append([]byte{letters[rng.IntN(len(letters))]}, b[at:]...)...)
		}
		texts = append(texts, string(b))
	}
	for _, pattern := range []string{
		`.*`, `10\.1\.2\.3`, `10\.1\..*`, `.*\.3`, `10.1.2.3`, `fe80:.*`, `.*::1`, `[0-9.]+`, `(10|110)\.1\.2\.3`,
		`\<10.*`, `.*\b1`, `\xe9.*`, `10+`, `a\.example`, `[[:xdigit:]:]*`, `(10\.1)?.*::1`, `-.*`, `k.*`,
	} {
		for _, ignoreCase := range []bool{false, true} {
			p, err := Compile(pattern, Options{IgnoreCase: ignoreCase})
			if err != nil {
				t.Fatal(err)
			}
			re := regexp.MustCompile(p.Regexp())
			for _, text := range texts {
				if got, want := re.MatchString(text), p.Match(text); got != want {
					t.Errorf("%q (ignoring case: %t) as %q on %q: %t, want %t", pattern, ignoreCase, p.Regexp(), text, got, want)
				}
			}
		}
	}
	if re := regexp.MustCompile(new(Pattern).Regexp()); re.MatchString("") || re.MatchString("a") {
		t.Error("the zero pattern's expression matches")
	}
}
