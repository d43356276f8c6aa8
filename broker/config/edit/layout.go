package edit

import (
	"bytes"
	"errors"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// ErrEncoding is the class of errors about a file that can be read but not edited.
var ErrEncoding = errors.New("the encoding of this file is not one that can be edited")

// layout is how the characters of a file lie in its bytes. It does not have to know
// what the bytes mean: what is put in is ASCII, but for UTF-8.
type layout struct {
	mark int  // bytes of the byte order mark
	kind kind // of the rest
	// raw tells whether characters beyond ASCII can be written as they are.
	raw bool
}

type kind uint8

const (
	unknown   kind = iota
	utf8Bytes      // the bytes are those of the text
	oneByte        // for each character
	littleEndian
	bigEndian // UTF-16
)

// layoutOf finds the layout of data, which was decoded to text; encoding is what the
// file says of itself.
func layoutOf(data []byte, text, encoding string) (layout, error) {
	switch {
	case bytes.HasPrefix(data, []byte{0xFF, 0xFE}):
		return checked(layout{mark: 2, kind: littleEndian}, data, text)
	case bytes.HasPrefix(data, []byte{0xFE, 0xFF}):
		return checked(layout{mark: 2, kind: bigEndian}, data, text)
	case bytes.HasPrefix(data, []byte{'<', 0}):
		return checked(layout{kind: littleEndian}, data, text)
	case bytes.HasPrefix(data, []byte{0, '<'}):
		return checked(layout{kind: bigEndian}, data, text)
	}
	rest, marked := bytes.CutPrefix(data, []byte{0xEF, 0xBB, 0xBF})
	if string(rest) == text {
		// ASCII alone is that in many encodings.
		says := strings.ToUpper(encoding)
		return layout{mark: len(data) - len(rest), kind: utf8Bytes, raw: marked || says == "" || says == "UTF-8" || says == "UTF8"}, nil
	}
	return checked(layout{kind: oneByte}, data, text)
}

// checked returns l if text has its size.
func checked(l layout, data []byte, text string) (layout, error) {
	if l.bytesOf(text) != len(data)-l.mark {
		return layout{}, ErrEncoding
	}
	return l, nil
}

// bytesOf is how many bytes text takes.
func (l layout) bytesOf(text string) int {
	switch l.kind {
	case utf8Bytes:
		return len(text)
	case oneByte:
		return utf8.RuneCountInString(text)
	case littleEndian, bigEndian:
		n := 0
		for _, r := range text {
			n += 2 * utf16.RuneLen(r)
		}
		return n
	}
	return -1
}

// encode turns what is to be put in into bytes. It is ASCII unless l.raw.
func (l layout) encode(text string) []byte {
	if l.kind != littleEndian && l.kind != bigEndian {
		return []byte(text)
	}
	wide := make([]byte, 0, 2*len(text))
	for i := range len(text) {
		if l.kind == littleEndian {
			wide = append(wide, text[i], 0)
		} else {
			wide = append(wide, 0, text[i])
		}
	}
	return wide
}
