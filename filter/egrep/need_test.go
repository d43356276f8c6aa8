package egrep

import (
	"slices"
	"strconv"
	"strings"
	"testing"
)

// has tells whether text has what n asks for.
func has(n Need, text string) bool {
	folded := []byte(text)
	for i, c := range folded {
		folded[i] = lower(c)
	}
	text = string(folded)
	return slices.ContainsFunc(n.Texts, func(x string) bool {
		switch n.Place {
		case Whole:
			return text == x
		case Start:
			return strings.HasPrefix(text, x)
		case End:
			return strings.HasSuffix(text, x)
		}
		return strings.Contains(text, x)
	})
}

func TestNeeds(t *testing.T) {
	for _, tt := range []struct{ pattern, want string }{
		{`.*`, ""},
		{`.+`, ""},
		{`Mail\.example`, "whole mail.example"},
		{`.*\.Example`, "end .example"},
		{`/opt/.*`, "start /opt/"},
		{`()`, "whole "},
		{`a|b|`, "whole  a b"},
		{`(.*\.)?corp\.example`, "end corp.example"},
		{`(mail|www)\.(corp|dept)\.example`, "whole mail.corp.example mail.dept.example www.corp.example www.dept.example"},
		{`db[0-2]`, "whole db0 db1 db2"},
		{`[aA]b`, "whole ab"},
		{`db[0-9]+\.corp\.example`, "start db0 db1 db2 db3 db4 db5 db6 db7 db8 db9; end " +
			"0.corp.example 1.corp.example 2.corp.example 3.corp.example 4.corp.example 5.corp.example 6.corp.example 7.corp.example 8.corp.example 9.corp.example"},
		{`db[a-z]+\.corp\.example`, "start db; end .corp.example"},
		{`.*\<mail\>.*`, "inside mail"},
		{`.*(mail|news)[a-z].*`, "inside mail news"},
		{`.*mail.*news.*\.a`, "end .a; inside mail; inside news"},
		{`10\.[0-9]+\.17\..*`, "start 10.0 10.1 10.2 10.3 10.4 10.5 10.6 10.7 10.8 10.9; inside 0.17. 1.17. 2.17. 3.17. 4.17. 5.17. 6.17. 7.17. 8.17. 9.17."},
		{`10.1.2.3`, "start 10; end 3; inside 1; inside 2"},
		{`(ab){2}`, "whole abab"},
		{`(ab){2,}`, "start ab; end ab"},
		{`(ab){,2}`, ""},
		{`(ab)?c`, "whole abc c"},
		{`a{0}b`, "whole b"},
		{`.*a(x.*y|.*zz)b.*`, "inside yb zzb; inside x zz; inside a"},
		{`(.|a)b`, "end b"},
		{`(.*a.*|.*)b`, "end b"},
		{`[a-z]{3}[0-9]*`, ""},
		{`^a$`, "whole a"},
		{`é+`, "start é; end é"},
		{strings.Repeat("a", 100) + ".*", "start " + strings.Repeat("a", maxText)},
		{".*" + strings.Repeat("a", 100) + "b", "end " + strings.Repeat("a", maxText-1) + "b"},
	} {
		var got []string
		for _, n := range mustCompile(t, tt.pattern, Options{}).Needs() {
			got = append(got, [...]string{"whole", "start", "end", "inside"}[n.Place]+" "+strings.Join(n.Texts, " "))
		}
		if got := strings.Join(got, "; "); got != tt.want {
			t.Errorf("%.40s needs\n %q, want\n %q", tt.pattern, got, tt.want)
		}
	}
}

// TestNeedsAreBounded: what is kept of a pattern stays small, whatever it is.
func TestNeedsAreBounded(t *testing.T) {
	for _, pattern := range []string{
		strings.Repeat("[0-9]", 800),
		strings.Repeat("([0-9]x|y)", 400),
		strings.Repeat("[0-9].", 600),
		"(" + strings.Repeat("ab|", 1000) + "c)" + strings.Repeat("[0-9]", 100),
		strings.Repeat("(a|b)?", 600),
		strings.Repeat("(", maxDepth) + "a" + strings.Repeat("|b)[0-9]", maxDepth),
		strings.Repeat("a", maxLength-1) + ".",
	} {
		needs := mustCompile(t, pattern, Options{}).Needs()
		written := 0
		for _, n := range needs {
			if len(n.Texts) > maxTexts {
				t.Errorf("%.40s: %d texts", pattern, len(n.Texts))
			}
			for _, x := range n.Texts {
				written += len(x)
			}
		}
		if len(needs) > maxNeeds || written > maxNeeds*maxWritten {
			t.Errorf("%.40s: %d needs, %d bytes", pattern, len(needs), written)
		}
	}
	var many []string
	for i := range maxTexts + 1 {
		many = append(many, strconv.FormatInt(int64(i), 36))
	}
	if needs := mustCompile(t, strings.Join(many[:maxTexts], "|"), Options{}).Needs(); len(needs) != 1 || len(needs[0].Texts) != maxTexts {
		t.Errorf("%d texts: %d needs", maxTexts, len(needs))
	}
	if needs := mustCompile(t, strings.Join(many, "|"), Options{}).Needs(); needs != nil {
		t.Errorf("%d texts: %d needs", len(many), len(needs))
	}
}
