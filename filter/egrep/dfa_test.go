package egrep

import (
	"strings"
	"testing"
)

// TestAutomaton tells which patterns have one: those of ordinary rules.
func TestAutomaton(t *testing.T) {
	for pattern, want := range map[string]bool{
		`(.*\.)?corp\.example`:                            true,
		`([0-9]{1,3}\.){3}[0-9]{1,3}`:                     true,
		`(25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})(\.[0-9]+){3}`: true,
		`.*\<mail\>.*\.(example|invalid)`:                 true,
		`(www|mail|news|db[0-9]+)-[a-z]{2,8}\.site7\..*`:  true,
		`.*[ab].{3}`:                      true,
		`.*[ab].{20}`:                     false, // two states for each byte that may have been the one
		`[^b]{1000}`:                      false,
		strings.Repeat("(a|b)", maxSteps): false,
	} {
		p := mustCompile(t, pattern, Options{})
		if (p.dfa != nil) != want || (p.re == nil) != want {
			t.Errorf("%.40s: automaton %v, regular expression %v", pattern, p.dfa != nil, p.re != nil)
		}
		if p.dfa != nil && len(p.dfa.next) > maxTable {
			t.Errorf("%.40s: %d entries", pattern, len(p.dfa.next))
		}
	}
}

// TestPlacesBetweenBytes holds places to the oracle with every kind of byte on either
// side, those at the borders of the kinds.
func TestPlacesBetweenBytes(t *testing.T) {
	const borders = "\x00\t\n\v\f\r\x0e,-./09:@AZ[^_`az{~\x7f\x80\xc3\xff"
	for _, pattern := range []string{`(.|\n)\b(.|\n)`, `[^a]\B[^-]`, `(.|\n)$(.|\n)`, `(.|\n)^(.|\n)`, `(\<|_)..?`, `\w\>\W`, `\W\<\w`} {
		matches := matcher(t, mustCompile(t, pattern, Options{}))
		for i := range len(borders) * len(borders) {
			text := string([]byte{borders[i/len(borders)], borders[i%len(borders)]})
			if got, want := matches(text), oracleSays(pattern, text); got != want {
				t.Fatalf("%s against %q: %v, the oracle says %v", pattern, text, got, want)
			}
		}
	}
}

func oracleSays(pattern, text string) bool {
	matched, _ := oracleMatch(pattern, text, false)
	return matched
}
