package egrep

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestMatch(t *testing.T) {
	fold := Options{IgnoreCase: true}
	for _, tt := range []struct {
		pattern string
		opts    Options
		yes, no []string
	}{
		// What rules are made of.
		{`.*`, Options{}, []string{"", "mail.example", "/usr/bin/telnet"}, []string{"a\nb", "a\fb", "\r", "\x00"}},
		{`mail\.example`, fold, []string{"mail.example", "MAIL.Example"}, []string{"mailxexample", "mail.example.", "amail.example", ""}},
		{`mail\.example`, Options{}, []string{"mail.example"}, []string{"Mail.example"}},
		{`.*\.corp\.example`, fold, []string{"a.corp.example", ".CORP.example"}, []string{"corp.example", "a.corp.example.org", "a\n.corp.example"}},
		{`(.*\.)?corp\.example`, fold, []string{"corp.example", "a.b.CORP.example"}, []string{"xcorp.example"}},
		{`/opt/.*`, Options{}, []string{"/opt/", "/opt/a/b"}, []string{"/opt", "/OPT/a", "x/opt/a", "/opt/a\nb"}},
		{`10\.[0-9]+\..*`, Options{}, []string{"10.1.2.3", "10.255."}, []string{"10..2.3", "110.1.2.3", "10.x.2.3"}},
		{`a|bc|`, Options{}, []string{"a", "bc", ""}, []string{"abc", "b"}},
		{`x(a|b)*y`, Options{}, []string{"xy", "xabay"}, []string{"xcy"}},

		// Counts.
		{`a{3}`, Options{}, []string{"aaa"}, []string{"aa", "aaaa"}},
		{`a{2,}`, Options{}, []string{"aa", "aaaaa"}, []string{"a"}},
		{`a{2,0}`, Options{}, []string{"aa", "aaaaa"}, []string{"a"}},
		{`a{,2}`, Options{}, []string{"", "a", "aa"}, []string{"aaa"}},
		{`a{0,2}`, Options{}, []string{"", "a", "aa"}, []string{"aaa"}},
		{`a{1,3}b`, Options{}, []string{"ab", "aaab"}, []string{"b", "aaaab"}},
		{`a{0}b`, Options{}, []string{"b"}, []string{"ab"}},
		{`a*?b`, Options{}, []string{"b", "aab"}, []string{"a"}},
		{`(ab){2}`, Options{}, []string{"abab"}, []string{"ab", "abb"}},

		// Bytes.
		{`a.c`, Options{}, []string{"abc", "a c", "a\xffc"}, []string{"a\nc", "a\fc", "a\rc", "a\x00c", "ac"}},
		{`\056\46\x2e\0x2E`, Options{}, []string{"...."}, []string{"...", "x..."}},
		{`a\0b`, Options{}, []string{"a\x00b"}, []string{"ab", "a0b"}},
		{`\a\e\f\n\r\t`, Options{}, []string{"\a\x1b\f\n\r\t"}, []string{"aefnrt"}},
		{`\d\s\.\(\|\\`, Options{}, []string{`ds.(|\`}, []string{`1 .(|\`}},
		{`\xe9.*`, Options{}, []string{"\xe9t\xe9"}, []string{"é"}},
		{`é+t`, Options{}, []string{"ét", "éét"}, []string{"t", "é", "\xc3\xa9\xa9t"}},
		{`..`, Options{}, []string{"é", "ab"}, []string{"éa"}},
		{`\é`, Options{}, []string{"é"}, nil},
		{`[^a]`, Options{}, []string{"b", "\n", "\x00", "\xff"}, []string{"a", "", "bb", "é"}},

		// Sets.
		{`[]a]+`, Options{}, []string{"]a]"}, []string{"b", ""}},
		{`[^]a]`, Options{}, []string{"b"}, []string{"]", "a"}},
		{`[-a][a-]`, Options{}, []string{"--", "aa"}, []string{"b-"}},
		{`[^-a]`, Options{}, []string{"b"}, []string{"-", "a"}},
		{`[a\-z]`, Options{}, []string{"a", "-", "z"}, []string{"b", `\`}},
		{`[\x30-\57]+`, Options{}, []string{"0123456789"}, []string{"/", ":"}},
		{`[\]\\^]+`, Options{}, []string{`]\^`}, []string{"["}},
		{`[\w.]+`, Options{}, []string{"a-1.Z"}, []string{"a_b"}},
		{`[[:alpha:][:digit:]_]+`, Options{}, []string{"a1_Z"}, []string{"a-1"}},
		{`[^[:space:]]+`, Options{}, []string{"ab"}, []string{"a b", "a\vb"}},
		{`[[:upper:]]`, fold, []string{"a", "A"}, []string{"1"}},
		{`[^a]`, fold, []string{"b"}, []string{"a", "A"}},
		{`[[:]a[[:a]b[[:c]`, Options{}, []string{"[a[bc", ":aab:"}, []string{"a"}},
		{`[().*|$]+`, Options{}, []string{"(.*)|$"}, []string{"a"}},
		{`[a-c]x`, fold, []string{"BX"}, []string{"dx"}},

		// Case is ignored in ASCII only: no Kelvin sign, no long s.
		{`ks|é.`, fold, []string{"KS", "éa"}, []string{"\u212as", "k\u017f", "Éa"}},
		{`kelvins`, fold, []string{"KELVINS"}, []string{"\u212aelvins", "kelvin\u017f"}},

		// Lines.
		{`^a$`, Options{}, []string{"a"}, []string{"a\n"}},
		{`a$\n^b`, Options{}, []string{"a\nb"}, []string{"ab"}},
		{`a^b|a$b`, Options{}, nil, []string{"ab", "a\nb"}},
		{`.*(^b|c$).*`, Options{}, []string{"b", "bx", "c", "xc"}, []string{"ab", "cd"}},

		// Words: letters, digits, hyphen.
		{`\w+`, Options{}, []string{"a-1Z"}, []string{"a_b", "é", ""}},
		{`\W+`, Options{}, []string{"_./", "é"}, []string{"a", "-"}},
		{`.*\<mail\>.*`, Options{}, []string{"mail", "a.mail.b", "a_mail_b", "émail"}, []string{"web-mail", "mail-2", "xmail", "mails"}},
		{`\<.*\>`, Options{}, []string{"a.b", "-"}, []string{".a", "a.", ""}},
		{`.*\bmail\b.*`, fold, []string{"x.MAIL", "_mail_"}, []string{"e-mail", "mailx"}},
		{`.*\Bmail\B.*`, Options{}, []string{"e-mailx"}, []string{"e-mail", "mailx", "mail", "_mail_"}},
		{`a-b\>_c`, Options{}, []string{"a-b_c"}, []string{"a_b-c"}},
		{`(www\>\.|\<)x`, Options{}, []string{"www.x", "x"}, []string{"ax"}},
		{`[a-z_-]+\b[._]?`, Options{}, []string{"a-_b", "a_", "-"}, []string{"_", "a__"}},
	} {
		p, err := Compile(tt.pattern, tt.opts)
		if err != nil {
			t.Errorf("%q: %v", tt.pattern, err)
			continue
		}
		if p.String() != tt.pattern {
			t.Errorf("%q: String says %q", tt.pattern, p)
		}
		matches := matcher(t, p)
		check := func(text string, want bool) {
			if matches(text) != want {
				t.Errorf("%q against %q: not %v", tt.pattern, text, want)
			}
			if got, decided := oracleMatch(tt.pattern, text, tt.opts.IgnoreCase); decided && got != want {
				t.Errorf("%q against %q: the oracle says %v", tt.pattern, text, got)
			}
		}
		for _, text := range tt.yes {
			check(text, true)
		}
		for _, text := range tt.no {
			check(text, false)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		pattern string
		offset  int
		msg     string // part of the message
	}{
		{``, 0, "empty"},
		{`(a`, 0, "no \")\" closes"},
		{`x(a|(b)`, 1, "no \")\" closes"},
		{`a)`, 1, "closes no group"},
		{`*.example`, 0, `".*" matches anything`},
		{`a|+`, 2, "nothing before it"},
		{`(?:a)`, 1, "nothing before it"},
		{`^*`, 1, "matches a place"},
		{`\<+a`, 2, "matches a place"},
		{`a]`, 1, "closes nothing"},
		{`a}`, 1, "closes nothing"},
		{`a\`, 1, "lone"},

		{`a{`, 1, `no "}" ends`},
		{`a{}`, 1, "no number"},
		{`a{,}`, 1, "no number"},
		{`a{x}`, 1, "is no count"},
		{`a{1, 2}`, 1, "is no count"},
		{`a{-1}`, 1, "is no count"},
		{`a{3,2}`, 1, "backwards"},
		{`a{0,0}`, 1, "none or any number"},
		{`a{,0}`, 1, "none or any number"},
		{`a{1001}`, 1, "higher than 1000"},
		{`a{99999999999999999999}`, 1, "higher than 1000"},
		{`{2}`, 0, "nothing before it"},

		{`[a`, 0, "no \"]\" closes"},
		{`[]`, 0, "no \"]\" closes"},
		{`[^]`, 0, "no \"]\" closes"},
		{`x[b-a]`, 2, "backwards"},
		{`[a-c-e]`, 4, "needs a character"},
		{`[\w-z]`, 1, "begin with a class"},
		{`[a-\w]`, 1, "end with a class"},
		{`[a-[:digit:]]`, 1, "end with a class"},
		{`[[:digit:]-z]`, 1, "begin with a class"},
		{`[[:alhpa:]]`, 1, "is not a class"},
		{`[:alpha:]`, 0, "[[:alpha:]]"},
		{`[é]`, 1, "not ASCII"},
		{`[\é]`, 1, "not ASCII"},
		{`[a\b]`, 2, "cannot stand in a set"},
		{`[\w\W]x[^\w\W]`, 7, "no character at all"},
		{`[a\`, 2, "lone"},

		{`a\256`, 1, "more than a byte"},
		{`\x2fbin`, 0, "more than a byte"},
		{`\0400`, 0, "more than a byte"},
		{`\99999999999999999999999`, 0, "more than a byte"},
		{`\xg`, 0, "no hexadecimal digits"},
		{`\0xg`, 0, "no hexadecimal digits"},
		{`\089`, 0, "no octal digit"},
		{"a\xff", 1, `\xff`},

		{`.*\<.*`, 2, "word character must follow"},
		{`.*\>.*`, 2, "word character must precede"},
		{`a*\>.`, 2, "word character must precede"},
		{`(.\<|x)y?`, 2, "word character must follow"},
		{`(a\<)*`, 2, "word character must follow"},

		{strings.Repeat("a", maxLength+1), maxLength, "longer than"},
		{strings.Repeat("(", maxDepth+1), maxDepth, "deep"},
		{`((a{100}){100}){100}`, 9, "counts inside one another"},
		{`(((((((((a{9}){9}){9}){9}){9}){9}){9}){9}){9}){9}`, 22, "counts inside one another"},
		{strings.Repeat("a{1000}", 9), 0, "too large"},
		{`(` + strings.Repeat("a", 100) + `){100}`, 102, "too large"},
		{`a??????`, 5, "repetitions of one another"},
	} {
		_, err := Compile(tt.pattern, Options{})
		var syntax *SyntaxError
		if !errors.As(err, &syntax) {
			t.Errorf("%.40q: got %v, want a *SyntaxError", tt.pattern, err)
			continue
		}
		if want := fmt.Sprintf("at byte %d: %s", syntax.Offset, syntax.Msg); err.Error() != want {
			t.Errorf("%.40q: Error says %q, want %q", tt.pattern, err, want)
		}
		if syntax.Offset != tt.offset || !strings.Contains(syntax.Msg, tt.msg) {
			t.Errorf("%.40q: got %v; want byte %d and %q", tt.pattern, syntax, tt.offset, tt.msg)
		}
	}
}

func TestForms(t *testing.T) {
	for _, tt := range []struct {
		pattern    string
		ignoreCase bool
		form       form
		literal    string
	}{
		{`.*`, false, formAny, ""},
		{`(.*)`, true, formAny, ""},
		{`Mail\.example`, true, formExact, "mail.example"},
		{`Mail\.(example)`, false, formExact, "Mail.example"},
		{`café`, true, formExact, "café"},
		{`10\.0\.0\.[1]`, false, formExact, "10.0.0.1"},
		{`a\nb`, false, formExact, "a\nb"},
		{`.*\.example`, true, formSuffix, ".example"},
		{`.*/telnet`, false, formSuffix, "/telnet"},
		{`/opt/.*`, false, formPrefix, "/opt/"},
		{`a\n.*`, false, formGeneral, ""},
		{`.*a.*`, false, formGeneral, ""},
		{`.+`, false, formGeneral, ""},
		{`[aA]`, false, formGeneral, ""},
		{`[ab]`, true, formGeneral, ""},
		{`^a$`, false, formGeneral, ""},
		{`a|`, false, formGeneral, ""},
		{`()`, false, formGeneral, ""},
		{`\<a`, false, formGeneral, ""},
	} {
		p := mustCompile(t, tt.pattern, Options{IgnoreCase: tt.ignoreCase})
		if p.form != tt.form || p.literal != tt.literal {
			t.Errorf("%q: form %d, literal %q; want %d, %q", tt.pattern, p.form, p.literal, tt.form, tt.literal)
		}
		literal, ok := p.Literal()
		if ok != (tt.form == formExact) || ok && literal != tt.literal {
			t.Errorf("%q: Literal says %q, %v", tt.pattern, literal, ok)
		}
		if p.Any() != (tt.form == formAny) {
			t.Errorf("%q: Any says %v", tt.pattern, p.Any())
		}
	}
}

func TestZeroPatternMatchesNothing(t *testing.T) {
	var p Pattern
	if p.Match("") || p.Match("a") || p.MatchBytes(nil) || p.Any() {
		t.Error("the zero Pattern matches")
	}
	if _, ok := p.Literal(); ok {
		t.Error("the zero Pattern is a literal")
	}
}

// TestHostilePatterns holds patterns that make backtracking matchers hang, and
// the largest ones that are let in, to a time that is not exponential in anything.
func TestHostilePatterns(t *testing.T) {
	text := strings.Repeat("a", 255)
	for _, pattern := range []string{
		`(a*)*b`, `(a|aa)+b`, `(a|a?)+b`, `(.*)(.*)(.*)(.*)(.*)b`, `((a*)*)*b`,
		strings.Repeat("a?", 500) + strings.Repeat("a", 500),
		`(a?){1000}(a?){1000}(a?){1000}b`,
		strings.Repeat("[^b]{1000}", 8),
		strings.Repeat("(", maxDepth) + "a" + strings.Repeat(")*", maxDepth),
		strings.Repeat("(", maxDepth) + "a" + strings.Repeat("|b)????", maxDepth),
		strings.Repeat(`(\b|a)*`, 500),
		strings.Repeat("a|", maxLength/2),
	} {
		begin := time.Now()
		p, err := Compile(pattern, Options{IgnoreCase: true})
		if err != nil {
			t.Errorf("%.40q: %v", pattern, err)
			continue
		}
		p.Match(text)
		took := time.Since(begin)
		t.Logf("%.40q: %v", pattern, took)
		if took > 10*time.Second { // on a busy machine, under the race detector
			t.Errorf("%.40q: took %v", pattern, took)
		}
	}
}

// TestAgainstOracle makes well-formed patterns and texts that nearly match them.
func TestAgainstOracle(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	accepted, matched, decided := 0, 0, 0
	for range 30_000 {
		pattern := randomPattern(rng, 3)
		opts := Options{IgnoreCase: rng.IntN(2) == 0}
		p, err := Compile(pattern, opts)
		if err != nil {
			continue
		}
		accepted++
		matches := matcher(t, p)
		for range 8 {
			text := randomText(rng)
			want, ok := oracleMatch(pattern, text, opts.IgnoreCase)
			if !ok {
				continue
			}
			decided++
			if want {
				matched++
			}
			if got := matches(text); got != want {
				t.Fatalf("%q (ignoring case: %v) against %q: %v, the oracle says %v", pattern, opts.IgnoreCase, text, got, want)
			}
		}
	}
	t.Logf("%d patterns accepted, %d texts decided, %d matched", accepted, decided, matched)
	if accepted < 15_000 || matched < decided/100 {
		t.Errorf("the test has lost its grip: %d patterns accepted, %d of %d texts matched", accepted, matched, decided)
	}
}

func randomPattern(rng *rand.Rand, depth int) string {
	pick := func(of ...string) string { return of[rng.IntN(len(of))] }
	var b strings.Builder
	for range 1 + rng.IntN(4) {
		switch {
		case depth > 0 && rng.IntN(5) == 0:
			b.WriteString("(" + randomPattern(rng, depth-1) + pick("", "|", "|"+randomPattern(rng, depth-1)) + ")")
		case rng.IntN(6) == 0:
			b.WriteString(pick("^", "$", `\<`, `\>`, `\b`, `\B`))
			continue
		default:
			b.WriteString(pick("a", "b", "ab", "kB", "K", "-", "_", ".", ".", `\.`, "é", `\n`, `\w`, `\W`, `\x41`, `\0102`, `\45`, `\xc3`,
				"[ab]", "[^a]", "[]_-]", "[a-c-]", `[\W]`, "[[:upper:]b]", `[\x80-\xff]`))
		}
		b.WriteString(pick("", "", "", "*", "+", "?", "{2}", "{0}", "{1,}", "{2,}", "{1,0}", "{,2}", "{0,2}", "{1,2}", "{2,3}", "*?"))
	}
	return b.String()
}

func randomText(rng *rand.Rand) string {
	parts := []string{"a", "a", "b", "B", "A", "k", "K", "-", "_", ".", "é", "\xc3", "\n", "c", "\x00", "\u212a"}
	var b strings.Builder
	for range rng.IntN(7) {
		b.WriteString(parts[rng.IntN(len(parts))])
	}
	return b.String()
}

func FuzzPattern(f *testing.F) {
	for _, s := range []struct{ pattern, text string }{
		{`(.*\.)?corp\.example`, "a.corp.example"}, {`10\.[0-9]{1,3}\..*`, "10.1.2.3"}, {`.*\<mail\>.*`, "web-mail.x"},
		{`[]^\-a[:digit:]]+`, "]^1"}, {`\x2e\056\46\0`, "...\x00"}, {`a{2,0}|b{,3}`, "bb"}, {`é+`, "éé"}, {`^a$\n^b$`, "a\nb"}, {`(a`, "a"},
		{`((a?){3}|b)*c`, "aabc"}, {`[[:alpha:]-]\B\w\b`, "a-"},
	} {
		f.Add(s.pattern, s.text, true)
		f.Add(s.pattern, s.text, false)
	}
	f.Fuzz(func(t *testing.T, pattern, text string, ignoreCase bool) {
		if len(text) > 100 {
			text = text[:100]
		}
		p, err := Compile(pattern, Options{IgnoreCase: ignoreCase})
		if err != nil {
			var syntax *SyntaxError
			if p != nil || !errors.As(err, &syntax) || syntax.Offset < 0 || syntax.Offset > len(pattern) {
				t.Fatalf("%q: pattern %v, error %v", pattern, p, err)
			}
			if strings.Contains(syntax.Msg, "too complex") {
				t.Fatalf("%q: Go refused what we wrote: %v", pattern, err)
			}
			return
		}
		got := matcher(t, p)(text)
		if want, decided := oracleMatch(pattern, text, ignoreCase); decided && got != want {
			t.Fatalf("%q (ignoring case: %v) against %q: %v, the oracle says %v", pattern, ignoreCase, text, got, want)
		}
	})
}

// matcher returns what Match says, once everything that must say the same does: the
// bytes of text, the automaton and the regular expression; and what a text needs.
func matcher(t testing.TB, p *Pattern) func(text string) bool {
	t.Helper()
	re, err := regexp.Compile(p.Regexp())
	if err != nil {
		t.Fatalf("%q: Go refuses what we wrote: %v", p, err)
	}
	return func(text string) bool {
		t.Helper()
		got := p.Match(text)
		if p.MatchBytes([]byte(text)) != got {
			t.Errorf("%q against %q: Match says %v, MatchBytes does not", p, text, got)
		}
		if matchRegexp(re, p.swap, text) != got {
			t.Errorf("%q against %q: %v, the regular expression says otherwise", p, text, got)
		}
		for _, n := range p.Needs() {
			if got && !has(n, text) {
				t.Errorf("%q matches %q, which has not what it needs: %v", p, text, n)
			}
		}
		return got
	}
}

func BenchmarkMatch(b *testing.B) {
	for _, pattern := range []string{`www\.corp\.example`, `.*\.corp\.example`, `(.*\.)?corp\.example`, `.*\<www\>.*`} {
		p := mustCompile(b, pattern, Options{IgnoreCase: true})
		b.Run(pattern, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.Match("www.corp.example")
			}
		})
	}
}

func mustCompile(t testing.TB, pattern string, opts Options) *Pattern {
	t.Helper()
	p, err := Compile(pattern, opts)
	if err != nil {
		t.Fatalf("%q: %v", pattern, err)
	}
	return p
}

// TestClasses holds every class, alone and complemented, to the oracle for every byte.
func TestClasses(t *testing.T) {
	for _, name := range strings.Fields("alnum alpha cntrl digit graph lower print punct space upper xdigit") {
		for _, pattern := range []string{"[[:" + name + ":]]", "[^[:" + name + ":]]"} {
			for _, ignoreCase := range []bool{false, true} {
				p := mustCompile(t, pattern, Options{IgnoreCase: ignoreCase})
				for b := range 256 {
					text := string([]byte{byte(b)})
					if want, _ := oracleMatch(pattern, text, ignoreCase); p.Match(text) != want {
						t.Errorf("%s (ignoring case: %v) against %q: not %v", pattern, ignoreCase, text, want)
					}
				}
			}
		}
	}
}
