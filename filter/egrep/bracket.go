package egrep

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// bracket reads a set, from its "[" to its "]".
func (p *parser) bracket() (*node, error) {
	at := p.pos
	p.pos++
	complement := p.take('^')

	var set byteset
	for first := true; ; first = false {
		if !p.more() {
			return nil, p.fail(at, `"[" opens a set that no "]" closes; write \[ for the character`)
		}
		if p.src[p.pos] == ']' && !first {
			p.pos++
			break
		}
		if err := p.bracketItem(&set, first); err != nil {
			return nil, err
		}
	}
	if name, ok := className(p.src[at:p.pos]); ok {
		if _, known := classBytes(name); known {
			return nil, p.fail(at, "[:%s:] is a set of these characters; a class is written [[:%s:]]", name, name)
		}
	}
	if p.ignoreCase {
		set = set.fold()
	}
	if complement {
		set = set.complement()
	}
	if set.len() == 0 {
		return nil, p.fail(at, "the set holds no character at all")
	}
	return p.bytes(at, set), nil
}

// bracketItem reads one character, class or range into set. Only the first item
// may be a hyphen that is not followed by "]".
func (p *parser) bracketItem(set *byteset, first bool) error {
	at := p.pos
	if name, ok := className(p.src[at:]); ok {
		class, known := classBytes(name)
		if !known {
			return p.fail(at, "[:%s:] is not a class; there are alnum alpha cntrl digit graph lower print punct space upper xdigit", name)
		}
		p.pos += len("[:" + name + ":]")
		set.union(class)
		return p.noRange(at)
	}
	if p.src[at] == '-' && !first && !strings.HasPrefix(p.src[at:], "-]") {
		return p.fail(at, `a range needs a character before its "-"; write \- for the character`)
	}
	lo, err := p.bracketBytes()
	if err != nil {
		return err
	}
	if !p.rangeFollows() {
		set.union(lo)
		return nil
	}
	from, ok := lo.literal(false)
	if !ok {
		return p.noRange(at)
	}
	p.pos++ // the hyphen
	if _, ok := className(p.src[p.pos:]); ok {
		return p.fail(at, "a range cannot end with a class")
	}
	hi, err := p.bracketBytes()
	if err != nil {
		return err
	}
	to, ok := hi.literal(false)
	if !ok {
		return p.fail(at, "a range cannot end with a class")
	}
	if from > to {
		return p.fail(at, "the range %q runs backwards", p.src[at:p.pos])
	}
	set.addRange(from, to)
	return nil
}

// className returns the name of the class, [:name:], that text begins with. "[:"
// that begins none is two characters of the set.
func className(text string) (name string, ok bool) {
	text, ok = strings.CutPrefix(text, "[:")
	if !ok {
		return "", false
	}
	end := strings.IndexFunc(text, func(r rune) bool { return !unicode.IsLetter(r) })
	if end < 1 || !strings.HasPrefix(text[end:], ":]") {
		return "", false
	}
	return text[:end], true
}

// rangeFollows tells whether a hyphen follows that is not the last character of the set.
func (p *parser) rangeFollows() bool {
	rest := p.src[p.pos:]
	return len(rest) >= 2 && rest[0] == '-' && rest[1] != ']'
}

// noRange refuses a range that begins with the class at at.
func (p *parser) noRange(at int) error {
	if p.rangeFollows() {
		return p.fail(at, "a range cannot begin with a class")
	}
	return nil
}

// bracketBytes reads one character or escape of a set.
func (p *parser) bracketBytes() (byteset, error) {
	at := p.pos
	escaped := p.src[at] == '\\'
	c := p.src[at]
	if escaped && at+1 < len(p.src) {
		c = p.src[at+1]
	}
	switch {
	case c >= utf8.RuneSelf:
		return byteset{}, p.fail(at, `a set holds bytes, and this character is not ASCII; write alternatives, "(x|y)"`)
	case escaped && (c == 'b' || c == 'B'):
		return byteset{}, p.fail(at, `\%c matches a place and cannot stand in a set`, c)
	case escaped:
		return p.escapedBytes()
	}
	p.pos++
	return single(c), nil
}
