package xmldoc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/text/encoding/charmap"
)

const encodingHint = "UTF-8, UTF-16, US-ASCII, ISO-8859-1, ISO-8859-15 and windows-1252 are understood; save the file as UTF-8"

// singleByte are the encodings of one byte a character that are understood, by the
// names that files give them, in upper case.
func singleByte(name string) *charmap.Charmap {
	switch name {
	case "ISO-8859-1", "ISO_8859-1", "LATIN1", "LATIN-1":
		return charmap.ISO8859_1
	case "ISO-8859-15", "ISO_8859-15", "LATIN9", "LATIN-9":
		return charmap.ISO8859_15
	case "WINDOWS-1252", "CP1252":
		return charmap.Windows1252
	}
	return nil
}

// decode returns the text of a file in UTF-8, without a byte order mark. The
// encoding is that of the XML declaration; without one UTF-8, or UTF-16 where the
// mark says so. The two must not contradict one another.
func decode(file string, data []byte) (string, *SyntaxError) {
	d := decoder{file: file}
	start := Pos{File: file, Line: 1, Col: 1}
	switch {
	case bytes.HasPrefix(data, []byte{0xFF, 0xFE, 0, 0}), bytes.HasPrefix(data, []byte{0, 0, 0xFE, 0xFF}):
		return d.fail(start, "the encoding UTF-32 is not understood")
	case bytes.HasPrefix(data, []byte{0xFE, 0xFF}):
		return d.utf16(data[2:], binary.BigEndian, true)
	case bytes.HasPrefix(data, []byte{0xFF, 0xFE}):
		return d.utf16(data[2:], binary.LittleEndian, true)
	case bytes.HasPrefix(data, []byte{0, '<'}):
		return d.utf16(data, binary.BigEndian, false)
	case bytes.HasPrefix(data, []byte{'<', 0}):
		return d.utf16(data, binary.LittleEndian, false)
	}
	data, marked := bytes.CutPrefix(data, []byte{0xEF, 0xBB, 0xBF})
	name, at := declaredEncoding(file, asciiHead(data))
	upper := strings.ToUpper(name)
	chars := singleByte(upper)
	switch {
	case upper == "" || upper == "UTF-8" || upper == "UTF8":
		return d.utf8(data)
	case marked:
		return d.fail(at, "the file says %s, but starts with the byte order mark of UTF-8", name)
	case upper == "US-ASCII" || upper == "ASCII":
		for i, b := range data {
			if b >= utf8.RuneSelf {
				return d.fail(posOf(file, string(data[:i])), "the file says %s, but byte 0x%02X is none of its characters", name, b)
			}
		}
		return string(data), nil
	case chars != nil:
		return d.chars(data, name, chars)
	case strings.HasPrefix(upper, "UTF-16"):
		return d.fail(at, "the file says %s, but its characters have one byte", name)
	}
	return d.fail(at, "the encoding %q is not understood", name)
}

// decoder turns the bytes of one file into text.
type decoder struct{ file string }

func (d decoder) fail(pos Pos, format string, args ...any) (string, *SyntaxError) {
	return "", &SyntaxError{Pos: pos, Msg: fmt.Sprintf(format, args...), Hint: encodingHint}
}

func (d decoder) utf8(data []byte) (string, *SyntaxError) {
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && n == 1 {
			return d.fail(posOf(d.file, string(data[:i])), "byte 0x%02X is not UTF-8", data[i])
		}
		i += n
	}
	return string(data), nil
}

// chars decodes one byte a character.
func (d decoder) chars(data []byte, name string, chars *charmap.Charmap) (string, *SyntaxError) {
	var b strings.Builder
	b.Grow(len(data))
	for _, c := range data {
		r := chars.DecodeByte(c)
		// The holes of windows-1252 come out as control characters of ISO-8859-1.
		if r == utf8.RuneError || chars == charmap.Windows1252 && 0x80 <= r && r < 0xA0 {
			return d.fail(posOf(d.file, b.String()), "byte 0x%02X is no character of %s", c, name)
		}
		b.WriteRune(r)
	}
	return b.String(), nil
}

// utf16 decodes units of two bytes. Without a byte order mark the XML declaration has
// to say that it is UTF-16.
func (d decoder) utf16(data []byte, order binary.ByteOrder, marked bool) (string, *SyntaxError) {
	var b strings.Builder
	b.Grow(len(data) / 2)
	for i := 0; i+1 < len(data); i += 2 {
		r := rune(order.Uint16(data[i:]))
		if utf16.IsSurrogate(r) {
			low := rune(0)
			if i+3 < len(data) {
				low = rune(order.Uint16(data[i+2:]))
			}
			whole := utf16.DecodeRune(r, low)
			if whole == utf8.RuneError {
				return d.fail(posOf(d.file, b.String()), "half a character of UTF-16, 0x%04X, stands alone", r)
			}
			r = whole
			i += 2
		}
		b.WriteRune(r)
	}
	text := b.String()
	if len(data)%2 != 0 {
		return d.fail(posOf(d.file, text), "the file is UTF-16, but its last character is cut off")
	}
	own, other := "UTF-16BE", "UTF-16LE"
	if order == binary.ByteOrder(binary.LittleEndian) {
		own, other = other, own
	}
	name, at := declaredEncoding(d.file, text)
	switch upper := strings.ToUpper(name); {
	case upper == "" && !marked:
		return d.fail(Pos{File: d.file, Line: 1, Col: 1}, "the file is UTF-16, but neither a byte order mark nor the XML declaration says so")
	case upper != "" && (!strings.HasPrefix(upper, "UTF-16") || upper == other):
		return d.fail(at, "the file says %s, but it is %s", name, own)
	}
	return text, nil
}

// declaredEncoding finds the encoding that the XML declaration names. It does not
// judge the declaration: the parser reads it again, and its order and spelling
// cannot differ there, as they are plain ASCII in every encoding understood.
func declaredEncoding(file, head string) (string, Pos) {
	c := cursor{src: head, pos: Pos{File: file, Line: 1, Col: 1}}
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
func posOf(file, before string) Pos {
	c := cursor{src: before, pos: Pos{File: file, Line: 1, Col: 1}}
	for !c.end() {
		c.next()
	}
	return c.pos
}
