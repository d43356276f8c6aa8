package egrep

import (
	"fmt"
	"math/bits"
	"strings"
)

// byteset is a set of bytes, one bit each.
type byteset [4]uint64

func single(b byte) (s byteset) {
	s.add(b)
	return s
}

func (s *byteset) add(b byte)      { s[b>>6] |= 1 << (b & 63) }
func (s *byteset) has(b byte) bool { return s[b>>6]&(1<<(b&63)) != 0 }

func (s *byteset) addRange(lo, hi byte) {
	for b := int(lo); b <= int(hi); b++ {
		s.add(byte(b))
	}
}

func (s *byteset) union(t byteset) {
	for i := range s {
		s[i] |= t[i]
	}
}

func (s byteset) complement() byteset {
	for i := range s {
		s[i] = ^s[i]
	}
	return s
}

func (s byteset) meets(t byteset) bool {
	for i := range s {
		if s[i]&t[i] != 0 {
			return true
		}
	}
	return false
}

func (s byteset) len() int {
	n := 0
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// fold adds the other case of every ASCII letter in s.
func (s byteset) fold() byteset {
	for b := byte('a'); b <= 'z'; b++ {
		upper := b - 'a' + 'A'
		if s.has(b) || s.has(upper) {
			s.add(b)
			s.add(upper)
		}
	}
	return s
}

// swapped exchanges the hyphen and the underscore.
func (s byteset) swapped() byteset {
	t := s
	for _, p := range [2][2]byte{{'-', '_'}, {'_', '-'}} {
		t[p[1]>>6] &^= 1 << (p[1] & 63)
		if s.has(p[0]) {
			t.add(p[1])
		}
	}
	return t
}

// literal returns the one byte that s stands for: its only member or, where case
// is ignored, the lower-case one of a letter's two.
func (s byteset) literal(ignoreCase bool) (byte, bool) {
	first := byte(0)
	for !s.has(first) {
		if first == 255 {
			return 0, false
		}
		first++
	}
	switch l := lower(first); s.len() {
	case 1:
		return first, true
	case 2:
		return l, ignoreCase && l != first && s.has(l)
	}
	return 0, false
}

// writeTo writes s as a Go character class over the code points 0 to 255.
func (s byteset) writeTo(w *strings.Builder) {
	w.WriteByte('[')
	for lo := 0; lo < 256; lo++ {
		if !s.has(byte(lo)) {
			continue
		}
		hi := lo
		for hi < 255 && s.has(byte(hi+1)) {
			hi++
		}
		fmt.Fprintf(w, `\x{%x}`, lo)
		if hi > lo {
			fmt.Fprintf(w, `-\x{%x}`, hi)
		}
		lo = hi
	}
	w.WriteByte(']')
}

func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		return b - 'A' + 'a'
	}
	return b
}

// wordBytes is what \w matches: [a-zA-Z0-9-], as sshregex(1) prints it.
func wordBytes() (s byteset) {
	s.addRange('a', 'z')
	s.addRange('A', 'Z')
	s.addRange('0', '9')
	s.add('-')
	return s
}

// notInDot tells whether "." leaves b out.
func notInDot(b byte) bool { return b == '\n' || b == '\f' || b == '\r' || b == 0 }

func dotBytes() byteset {
	var s byteset
	for i := range 256 {
		if !notInDot(byte(i)) {
			s.add(byte(i))
		}
	}
	return s
}

// classBytes returns the set that [:name:] stands for, in the C locale.
func classBytes(name string) (s byteset, ok bool) {
	switch name {
	case "alnum":
		s.addRange('a', 'z')
		s.addRange('A', 'Z')
		s.addRange('0', '9')
	case "alpha":
		s.addRange('a', 'z')
		s.addRange('A', 'Z')
	case "cntrl":
		s.addRange(0, 0x1f)
		s.add(0x7f)
	case "digit":
		s.addRange('0', '9')
	case "graph":
		s.addRange('!', '~')
	case "lower":
		s.addRange('a', 'z')
	case "print":
		s.addRange(' ', '~')
	case "punct":
		s.addRange('!', '/')
		s.addRange(':', '@')
		s.addRange('[', '`')
		s.addRange('{', '~')
	case "space":
		s.addRange('\t', '\r')
		s.add(' ')
	case "upper":
		s.addRange('A', 'Z')
	case "xdigit":
		s.addRange('0', '9')
		s.addRange('a', 'f')
		s.addRange('A', 'F')
	default:
		return s, false
	}
	return s, true
}
