package xmldoc

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// SyntaxError is why a file is not well-formed, or more than the limits allow.
type SyntaxError struct {
	Pos     Pos
	Element string // innermost element there, "" outside of any
	Msg     string
	Hint    string // how to cure it, "" where the message says so already
}

func (e *SyntaxError) Error() string {
	s := e.Pos.String() + ": "
	if e.Element != "" {
		s += e.Element + ": "
	}
	s += e.Msg
	if e.Hint != "" {
		s += "\nhint: " + e.Hint
	}
	return s
}

// eof is what peek and next return at the end; no file can hold it.
const eof rune = -1

// cursor walks decoded text and keeps count of lines and columns. The text must be
// valid UTF-8.
type cursor struct {
	src string
	off int
	pos Pos
}

func (c *cursor) end() bool { return c.off >= len(c.src) }

func (c *cursor) peek() rune {
	if c.end() {
		return eof
	}
	if b := c.src[c.off]; b < utf8.RuneSelf {
		return rune(b)
	}
	r, _ := utf8.DecodeRuneInString(c.src[c.off:])
	return r
}

// next returns one character and steps over it. The line ends CR LF and CR come out
// as one LF, as XML demands.
func (c *cursor) next() rune {
	if c.end() {
		return eof
	}
	r, n := utf8.DecodeRuneInString(c.src[c.off:])
	c.off += n
	if r == '\r' {
		if c.peek() == '\n' {
			c.off++
		}
		r = '\n'
	}
	if r == '\n' {
		c.pos.Line++
		c.pos.Col = 1
	} else {
		c.pos.Col++
	}
	return r
}

func (c *cursor) has(prefix string) bool { return strings.HasPrefix(c.src[c.off:], prefix) }

// skip steps over n characters that are not line ends.
func (c *cursor) skip(n int) {
	for range n {
		c.next()
	}
}

// take steps over prefix if it stands here.
func (c *cursor) take(prefix string) bool {
	if !c.has(prefix) {
		return false
	}
	c.skip(utf8.RuneCountInString(prefix))
	return true
}

// space steps over white space and says whether there was any.
func (c *cursor) space() bool {
	start := c.off
	for isSpace(c.peek()) {
		c.next()
	}
	return c.off > start
}

// name steps over an XML name; "" if none starts here.
func (c *cursor) name() string {
	start := c.off
	for r := c.peek(); isNameStart(r) || c.off > start && isNamePart(r); r = c.peek() {
		c.next()
	}
	return c.src[start:c.off]
}

// reference reads a character reference or one of the five predefined entities; the
// cursor stands on the "&".
func (c *cursor) reference() (rune, *SyntaxError) {
	at := c.pos
	fail := func(msg, hint string) (rune, *SyntaxError) {
		return 0, &SyntaxError{Pos: at, Msg: msg, Hint: hint}
	}
	c.next()
	if c.take("#") {
		start := c.off
		for isAlnum(c.peek()) {
			c.next()
		}
		digits := c.src[start:c.off]
		if !c.take(";") {
			return fail("character reference without its semicolon", "write it as &#65; or &#x41;")
		}
		base := 10
		if hex, ok := strings.CutPrefix(digits, "x"); ok {
			digits, base = hex, 16
		}
		n, err := strconv.ParseUint(digits, base, 32)
		if err != nil {
			return fail(fmt.Sprintf("%q is not the number of a character", digits), "write it as &#65; or &#x41;")
		}
		if n > unicode.MaxRune || !isChar(rune(n)) {
			return fail(fmt.Sprintf("character number %d is not allowed in XML", n), "")
		}
		return rune(n), nil
	}
	name := c.name()
	if name == "" || !c.take(";") {
		return fail(`"&" starts a reference, but none follows`, "write &amp; for the character itself")
	}
	switch name {
	case "amp":
		return '&', nil
	case "lt":
		return '<', nil
	case "gt":
		return '>', nil
	case "quot":
		return '"', nil
	case "apos":
		return '\'', nil
	}
	return fail(fmt.Sprintf("entity %q is not known", name), "only &amp; &lt; &gt; &quot; &apos; and &#...; are")
}

func isSpace(r rune) bool { return r == ' ' || r == '\t' || r == '\n' || r == '\r' }

func isAlnum(r rune) bool {
	return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
}

func isNameStart(r rune) bool { return r == '_' || r == ':' || r > 0 && unicode.IsLetter(r) }

func isNamePart(r rune) bool {
	return isNameStart(r) || r == '-' || r == '.' || r > 0 && (unicode.IsDigit(r) || unicode.IsMark(r))
}

// isChar is production 2 of XML 1.0.
func isChar(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' || r >= 0x20 && r <= 0xD7FF ||
		r >= 0xE000 && r <= 0xFFFD || r >= 0x10000 && r <= unicode.MaxRune
}
