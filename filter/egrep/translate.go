package egrep

import (
	"fmt"
	"strings"
)

// translator writes a parsed pattern as a Go regular expression.
//
// Bytes become the code points 0 to 255, so that Go's matching by runes is
// matching by bytes on a text widened the same way (matchRegexp).
//
// Go's \b takes a word to be [0-9A-Za-z_], ours is [0-9A-Za-z-]. A pattern with
// word boundaries is therefore written with hyphen and underscore exchanged, and
// matched against a text with the two exchanged: then both words are the same.
type translator struct {
	out  strings.Builder
	swap bool
}

// translate writes n. before and after tell what may stand around its match.
func (t *translator) translate(n *node, before, after side) error {
	switch n.op {
	case opEmpty:
		t.out.WriteString("(?:)")
	case opBytes:
		set := n.set
		if t.swap {
			set = set.swapped()
		}
		set.writeTo(&t.out)
	case opConcat:
		return t.concat(n, before, after)
	case opAlternate:
		t.out.WriteString("(?:")
		for i, x := range n.sub {
			if i > 0 {
				t.out.WriteByte('|')
			}
			if err := t.translate(x, before, after); err != nil {
				return err
			}
		}
		t.out.WriteByte(')')
	case opRepeat:
		return t.repeat(n, before, after)
	case opLineStart:
		t.out.WriteString("(?m:^)")
	case opLineEnd:
		t.out.WriteString("(?m:$)")
	case opBoundary:
		t.out.WriteString(`\b`)
	case opNoBoundary:
		t.out.WriteString(`\B`)
	case opWordStart:
		return t.wordEdge(n, after, before, `\<`, "follow", "precede")
	case opWordEnd:
		return t.wordEdge(n, before, after, `\>`, "precede", "follow")
	}
	return nil
}

// wordEdge writes \< or \> as \b, which is the same only where one side is known:
// in is the side that has to be a word, out the other one.
func (t *translator) wordEdge(n *node, in, out side, name, inVerb, outVerb string) error {
	if in != word && out != other {
		return &SyntaxError{Offset: n.at, Msg: fmt.Sprintf(
			`%s can be used only where a word character must %s it, or none can %s it; write \b, or name the character`, name, inVerb, outVerb)}
	}
	t.out.WriteString(`\b`)
	return nil
}

func (t *translator) concat(n *node, before, after side) error {
	afters := make([]side, len(n.sub))
	for i := len(n.sub) - 1; i >= 0; i-- {
		afters[i] = after
		after = pass(n.sub[i], n.sub[i].first, after)
	}
	for i, x := range n.sub {
		if err := t.translate(x, before, afters[i]); err != nil {
			return err
		}
		before = pass(x, x.last, before)
	}
	return nil
}

// pass returns what is seen through x: its own edge, and what lies behind it where
// x may be empty.
func pass(x *node, edge, behind side) side {
	if x.empty {
		return edge | behind
	}
	return edge
}

func (t *translator) repeat(n *node, before, after side) error {
	x := n.sub[0]
	if n.max != 1 {
		before |= x.last
		after |= x.first
	}
	t.out.WriteString("(?:(?:")
	if err := t.translate(x, before, after); err != nil {
		return err
	}
	t.out.WriteByte(')')
	switch {
	case n.max == unlimited && n.min == 0:
		t.out.WriteByte('*')
	case n.max == unlimited && n.min == 1:
		t.out.WriteByte('+')
	case n.max == unlimited:
		fmt.Fprintf(&t.out, "{%d,}", n.min)
	default:
		fmt.Fprintf(&t.out, "{%d,%d}", n.min, n.max)
	}
	t.out.WriteByte(')')
	return nil
}
