package edit

import (
	"strings"

	"sshbroker/broker/config/xmldoc"
)

// spot is where in a text an element goes.
type spot struct {
	at     int
	indent string // of a line of its own
	eol    string // that ends this line; "": it goes into a line with others
}

// behind is the spot behind e and the comments that follow it in its line. to is where
// the next element, or the parent's end tag, starts.
func behind(text string, e *xmldoc.Element, to int) spot {
	for i := e.Span.End; i < to; {
		switch {
		case text[i] == ' ' || text[i] == '\t':
			i++
		case strings.HasPrefix(text[i:to], "<!--"):
			i = past(text, i, "-->")
		default:
			if n := eolLen(text[i:]); n > 0 {
				return spot{at: i + n, indent: indentOf(text, e.Span.Start), eol: text[i : i+n]}
			}
			i = to
		}
	}
	return spot{at: e.Span.End}
}

// before is the spot before e and the comments right above it. from is where the
// element before ends, or the parent's start tag.
func before(text string, e *xmldoc.Element, from int) spot {
	at := lead(text, from, e.Span.Start)
	if at < 0 {
		return spot{at: e.Span.Start}
	}
	return spot{at: at, indent: indentOf(text, e.Span.Start), eol: eolBefore(text, at)}
}

// lead returns the start of the line in which the element that starts at to begins, or
// of the first of the comments above it without a blank line between; below zero where
// that line has something else in it.
func lead(text string, from, to int) int {
	at := -1
	for i := from; i < to; {
		switch {
		case strings.HasPrefix(text[i:], "<!--"):
			i = past(text, i, "-->")
		case strings.HasPrefix(text[i:], "<![CDATA["):
			i, at = past(text, i, "]]>"), -1
		case strings.HasPrefix(text[i:], "<?"):
			i, at = past(text, i, "?>"), -1
		case isSpace(text[i]):
			lines, last := 0, 0
			for i < to && isSpace(text[i]) {
				n := eolLen(text[i:])
				if n > 0 {
					lines, last = lines+1, i+n
				}
				i += max(n, 1)
			}
			if lines > 1 || lines == 1 && at < 0 {
				at = last
			}
		default: // text, which the schema has no place for
			i, at = i+1, -1
		}
	}
	return at
}

// atEnd is the spot at the end of parent, which has an end tag. from is where its last
// child ends.
func atEnd(text string, parent *xmldoc.Element, from int, unit string) spot {
	end := parent.Span.InnerEnd
	start := lineStart(text, end)
	if start <= from || !blank(text[start:end]) {
		return spot{at: end}
	}
	return spot{at: start, indent: text[start:end] + unit, eol: eolBefore(text, start)}
}

// lines is the range of the lines in which e stands alone, else that of e itself.
func lines(text string, e *xmldoc.Element) (from, to int, alone bool) {
	from, to = lineStart(text, e.Span.Start), e.Span.End
	for to < len(text) && (text[to] == ' ' || text[to] == '\t') {
		to++
	}
	n := eolLen(text[to:])
	if n == 0 || !blank(text[from:e.Span.Start]) {
		return e.Span.Start, e.Span.End, false
	}
	return from, to + n, true
}

// unit is how much deeper the children of root stand than root itself.
func unit(text string, root *xmldoc.Element) string {
	outer := indentOf(text, root.Span.Start)
	for _, c := range root.Children {
		if deeper, ok := strings.CutPrefix(indentOf(text, c.Span.Start), outer); ok && deeper != "" && startsLine(text, c) {
			return deeper
		}
	}
	return "  "
}

// past is where the first end at or behind i ends. The parser has seen that it is there.
func past(text string, i int, end string) int {
	return i + strings.Index(text[i:], end) + len(end)
}

func startsLine(text string, e *xmldoc.Element) bool {
	return blank(text[lineStart(text, e.Span.Start):e.Span.Start])
}

// indentOf is the blank start of the line that i is in.
func indentOf(text string, i int) string {
	start := lineStart(text, i)
	end := start
	for end < i && (text[end] == ' ' || text[end] == '\t') {
		end++
	}
	return text[start:end]
}

func lineStart(text string, i int) int {
	return strings.LastIndexAny(text[:i], "\r\n") + 1
}

// eolLen is the length of the line end that s starts with, 0 without.
func eolLen(s string) int {
	switch {
	case strings.HasPrefix(s, "\r\n"):
		return 2
	case strings.HasPrefix(s, "\r"), strings.HasPrefix(s, "\n"):
		return 1
	}
	return 0
}

// eolBefore is the line end that stands before at.
func eolBefore(text string, at int) string {
	if strings.HasSuffix(text[:at], "\r\n") {
		return "\r\n"
	}
	return text[at-1 : at]
}

// eolNear is the first line end of the text, that of Unix where it has none.
func eolNear(text string) string {
	if i := strings.IndexAny(text, "\r\n"); i >= 0 {
		return text[i : i+eolLen(text[i:])]
	}
	return "\n"
}

func blank(s string) bool { return strings.Trim(s, " \t") == "" }

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }
