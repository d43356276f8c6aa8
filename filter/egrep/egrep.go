package egrep

import (
	"fmt"
	"regexp"
	"sync"
	"unicode/utf8"
)

// Options change how a pattern is read.
type Options struct {
	IgnoreCase bool // ASCII letters match in either case
}

// SyntaxError says what is wrong with a pattern, and where.
type SyntaxError struct {
	Offset int // in bytes, from the first byte of the pattern
	Msg    string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("at byte %d: %s", e.Offset, e.Msg) }

// Pattern is a compiled pattern. It is safe for concurrent use. The zero Pattern
// matches nothing.
type Pattern struct {
	src        string
	form       form
	ignoreCase bool
	literal    string // for the forms that have one; in lower case where case is ignored
	needs      []Need

	// Of a formGeneral.
	expr string         // as a Go regular expression
	swap bool           // see translator
	dfa  *dfa           // nil where it would be large; then there is re
	re   *regexp.Regexp // of expr
}

// form is how a pattern is matched: most patterns of real rules need no regular
// expression.
type form uint8

const (
	formNone    form = iota
	formAny          // .*
	formExact        // literal
	formPrefix       // literal.*
	formSuffix       // .*literal
	formGeneral      // the automaton, or the regular expression
)

// Compile reads a pattern. Its error is a *SyntaxError.
//
// A pattern is at most 4,096 bytes long, its groups are at most 100 deep, counts
// inside one another make at most 1,000 repetitions, and with all counts written
// out it has at most 8,192 characters.
func Compile(pattern string, opts Options) (*Pattern, error) {
	switch {
	case pattern == "":
		return nil, &SyntaxError{Msg: `the pattern is empty; ".*" matches anything`}
	case len(pattern) > maxLength:
		return nil, &SyntaxError{Offset: maxLength, Msg: fmt.Sprintf("the pattern is longer than %d bytes", maxLength)}
	}
	ps := parser{src: pattern, ignoreCase: opts.IgnoreCase, word: wordBytes(), dot: dotBytes()}
	tree, err := ps.parse()
	if err != nil {
		return nil, err
	}
	p := &Pattern{src: pattern, ignoreCase: opts.IgnoreCase, needs: shapeOf(tree).needs()}
	if p.form, p.literal = simple(tree, opts.IgnoreCase); p.form != formGeneral {
		return p, nil
	}
	tr := translator{swap: ps.boundaries}
	if err := tr.translate(tree, other, other); err != nil {
		return nil, err
	}
	p.expr, p.swap = `\A(?:`+tr.out.String()+`)\z`, ps.boundaries
	if p.dfa = newDFA(tree); p.dfa != nil {
		return p, nil
	}
	// Our limits are tighter than Go's, and what is written is well-formed.
	if p.re, err = regexp.Compile(p.expr); err != nil {
		return nil, &SyntaxError{Msg: fmt.Sprintf("the pattern is too complex: %v", err)}
	}
	return p, nil
}

// simple finds the form of a pattern, and its literal.
func simple(n *node, ignoreCase bool) (form, string) {
	parts := []*node{n}
	if n.op == opConcat {
		parts = n.sub
	}
	f := formExact
	if anything(parts[0]) {
		parts, f = parts[1:], formSuffix
		if len(parts) == 0 {
			return formAny, ""
		}
	} else if last := len(parts) - 1; anything(parts[last]) {
		parts, f = parts[:last], formPrefix
	}
	literal := make([]byte, len(parts))
	for i, x := range parts {
		b, ok := x.set.literal(ignoreCase)
		if !ok || x.op != opBytes || f != formExact && notInDot(b) {
			return formGeneral, ""
		}
		literal[i] = b
	}
	return f, string(literal)
}

// anything tells whether n is ".*".
func anything(n *node) bool {
	return n.op == opRepeat && n.min == 0 && n.max == unlimited && n.sub[0].op == opBytes && n.sub[0].set == dotBytes()
}

// String returns the pattern as it was written.
func (p *Pattern) String() string { return p.src }

// Options returns the options with which p was compiled.
func (p *Pattern) Options() Options { return Options{IgnoreCase: p.ignoreCase} }

// Any tells whether p is ".*", which matches every text that is a name, an address
// or an ordinary path. False does not say that there is a text p does not match.
func (p *Pattern) Any() bool { return p.form == formAny }

// Literal returns the one text that p matches, in lower case where p ignores case;
// ok is false where p is not a plain text.
func (p *Pattern) Literal() (text string, ok bool) {
	if p.form != formExact {
		return "", false
	}
	return p.literal, true
}

// Neither is inlined: in another package the compiler does not know of the generic
// function that it keeps nothing, and would put the callers' texts on the heap.

// Match tells whether the whole of text matches. It allocates nothing once warm.
//
//go:noinline
func (p *Pattern) Match(text string) bool { return match(p, text) }

// MatchBytes is Match for a text that is not a string. It keeps nothing of it.
//
//go:noinline
func (p *Pattern) MatchBytes(text []byte) bool { return match(p, text) }

func match[T string | []byte](p *Pattern, text T) bool {
	switch {
	case p.form != formGeneral:
		return matchSimple(p, text)
	case p.dfa != nil:
		return run(p.dfa, text)
	}
	return matchRegexp(p.re, p.swap, text)
}

func matchSimple[T string | []byte](p *Pattern, text T) bool {
	n := len(p.literal)
	switch {
	case p.form == formExact:
		return len(text) == n && equal(p, text)
	case p.form == formAny:
		return free(text)
	case p.form == formPrefix:
		return len(text) >= n && equal(p, text[:n]) && free(text[n:])
	case p.form == formSuffix:
		return len(text) >= n && equal(p, text[len(text)-n:]) && free(text[:len(text)-n])
	}
	return false
}

// equal compares text with the literal of p, which is as long.
func equal[T string | []byte](p *Pattern, text T) bool {
	if !p.ignoreCase {
		return string(text) == p.literal
	}
	for i := range len(p.literal) {
		if lower(text[i]) != p.literal[i] {
			return false
		}
	}
	return true
}

// free tells whether ".*" matches text.
func free[T string | []byte](text T) bool {
	for i := range len(text) {
		if notInDot(text[i]) {
			return false
		}
	}
	return true
}

// widened holds texts for matchRegexp: *[]byte.
var widened = sync.Pool{New: func() any { return new([]byte) }}

// matchRegexp holds text against re, which a translator wrote.
func matchRegexp[T string | []byte](re *regexp.Regexp, swap bool, text T) bool {
	buf := widened.Get().(*[]byte)
	*buf = (*buf)[:0]
	for i := range len(text) {
		c := text[i]
		switch {
		case swap && c == '-':
			c = '_'
		case swap && c == '_':
			c = '-'
		}
		*buf = utf8.AppendRune(*buf, rune(c))
	}
	matched := re.Match(*buf)
	widened.Put(buf)
	return matched
}
