package xmldoc

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding/charmap"
)

const encodingHint = "UTF-8, US-ASCII and ISO-8859-1 are understood; save the file as UTF-8"

// decode returns the text of a file in UTF-8, without a byte order mark. The
// encoding is that of the XML declaration, UTF-8 where there is none.
func decode(file string, data []byte) (string, *SyntaxError) {
	start := Pos{File: file, Line: 1, Col: 1}
	fail := func(pos Pos, format string, args ...any) (string, *SyntaxError) {
		return "", &SyntaxError{Pos: pos, Msg: fmt.Sprintf(format, args...), Hint: encodingHint}
	}
	switch {
	case bytes.HasPrefix(data, []byte{0xFE, 0xFF}), bytes.HasPrefix(data, []byte{0xFF, 0xFE}):
		return fail(start, "the encoding UTF-16 is not understood")
	case bytes.HasPrefix(data, []byte{0, '<'}), bytes.HasPrefix(data, []byte{'<', 0}):
		return fail(start, "the encoding UTF-16, without byte order mark, is not understood")
	}
	data, marked := bytes.CutPrefix(data, []byte{0xEF, 0xBB, 0xBF})

	name, at := declaredEncoding(file, data)
	switch strings.ToUpper(name) {
	case "", "UTF-8":
	case "US-ASCII", "ASCII":
		for i, b := range data {
			if b >= utf8.RuneSelf {
				return fail(posOf(file, data[:i]), "the file says US-ASCII, but byte 0x%02X is none of its characters", b)
			}
		}
	case "ISO-8859-1", "LATIN1":
		if marked {
			return fail(at, "the file says %s, but starts with the byte order mark of UTF-8", name)
		}
		text, err := charmap.ISO8859_1.NewDecoder().Bytes(data)
		if err != nil {
			return fail(start, "ISO-8859-1: %v", err)
		}
		return string(text), nil
	default:
		return fail(at, "the encoding %q is not understood", name)
	}
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && n == 1 {
			return fail(posOf(file, data[:i]), "byte 0x%02X is not UTF-8", data[i])
		}
		i += n
	}
	return string(data), nil
}

// declaredEncoding finds the encoding that the XML declaration names. It does not
// judge the declaration: the parser reads it again, and its order and spelling
// cannot differ there, as they are plain ASCII in every encoding understood.
func declaredEncoding(file string, data []byte) (string, Pos) {
	c := cursor{src: asciiHead(data), pos: Pos{File: file, Line: 1, Col: 1}}
	if !c.take("<?xml") || !c.space() {
		return "", c.pos
	}
	for !c.end() && !c.has("?>") {
		key := c.name()
		c.space()
		if key == "" || !c.take("=") {
			return "", c.pos
		}
		c.space()
		quote := c.next()
		at, from := c.pos, c.off
		for !c.end() && c.peek() != quote {
			c.next()
		}
		value := c.src[from:c.off]
		if key == "encoding" {
			return value, at
		}
		c.next()
		c.space()
	}
	return "", c.pos
}

// asciiHead returns the first line or so of a file as text, up to the first byte that
// is not ASCII.
func asciiHead(data []byte) string {
	head := data[:min(len(data), 512)]
	for i, b := range head {
		if b >= utf8.RuneSelf {
			head = head[:i]
			break
		}
	}
	return string(head)
}

// posOf returns the position after before, which holds valid UTF-8.
func posOf(file string, before []byte) Pos {
	c := cursor{src: string(before), pos: Pos{File: file, Line: 1, Col: 1}}
	for !c.end() {
		c.next()
	}
	return c.pos
}
