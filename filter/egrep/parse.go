package egrep

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits. They keep a hostile pattern from costing more than a refusal; Go's own
// limit for counts is maxCount too.
const (
	maxLength  = 4096 // bytes of a pattern
	maxDepth   = 100  // groups inside one another
	maxCount   = 1000 // one count, and the product of counts inside one another
	maxStacked = 4    // repetitions of one another without a group, as in a+?
	maxSize    = 8192 // characters and sets once all counts are written out
)

const unlimited = -1

type op uint8

const (
	opEmpty op = iota
	opBytes    // one byte of set
	opConcat
	opAlternate
	opRepeat // sub[0], min to max times
	opLineStart
	opLineEnd
	opWordStart
	opWordEnd
	opBoundary
	opNoBoundary
)

// node is one part of a parsed pattern.
type node struct {
	op       op
	at       int // byte offset in the pattern
	set      byteset
	sub      []*node
	min, max int

	size  int // see maxSize
	count int // product of the counts inside one another, at the worst place

	// What a match may begin and end with, and whether it may be empty.
	first, last side
	empty       bool
}

// side is what may stand on one side of a place in the text.
type side uint8

const (
	word  side = 1 << iota // a word character
	other                  // another character, or the end of the text
)

type parser struct {
	src        string
	pos        int
	depth      int
	ignoreCase bool
	boundaries bool // the pattern has \< \> \b or \B
	word       byteset
	dot        byteset
}

func (p *parser) fail(at int, format string, args ...any) error {
	return &SyntaxError{Offset: at, Msg: fmt.Sprintf(format, args...)}
}

func (p *parser) more() bool { return p.pos < len(p.src) }

func (p *parser) take(c byte) bool {
	if p.more() && p.src[p.pos] == c {
		p.pos++
		return true
	}
	return false
}

// parse reads the whole pattern.
func (p *parser) parse() (*node, error) {
	n, err := p.alternation()
	if err != nil {
		return nil, err
	}
	if p.more() { // alternation stops only at the end and at ")"
		return nil, p.fail(p.pos, `")" closes no group; write \) for the character`)
	}
	return n, nil
}

func (p *parser) alternation() (*node, error) {
	at := p.pos
	var branches []*node
	for {
		b, err := p.branch()
		if err != nil {
			return nil, err
		}
		branches = append(branches, b)
		if !p.take('|') {
			break
		}
	}
	if len(branches) == 1 {
		return branches[0], nil
	}
	n := &node{op: opAlternate, at: at, sub: branches}
	for _, b := range branches {
		n.size += b.size
		n.count = max(n.count, b.count)
		n.first |= b.first
		n.last |= b.last
		n.empty = n.empty || b.empty
	}
	return n, p.checkSize(n)
}

// branch reads a sequence up to "|", ")" or the end.
func (p *parser) branch() (*node, error) {
	n := &node{op: opConcat, at: p.pos}
	for p.more() && p.src[p.pos] != '|' && p.src[p.pos] != ')' {
		x, err := p.repeated()
		if err != nil {
			return nil, err
		}
		if x.op == opConcat {
			n.sub = append(n.sub, x.sub...)
		} else {
			n.sub = append(n.sub, x)
		}
	}
	return n, p.finishConcat(n)
}

func (p *parser) finishConcat(n *node) error {
	if len(n.sub) == 0 {
		n.op = opEmpty
	}
	n.empty = true
	for _, x := range n.sub {
		if n.empty {
			n.first |= x.first
		}
		n.empty = n.empty && x.empty
		n.size += x.size
		n.count = max(n.count, x.count)
	}
	for i := len(n.sub) - 1; i >= 0; i-- {
		n.last |= n.sub[i].last
		if !n.sub[i].empty {
			break
		}
	}
	return p.checkSize(n)
}

func (p *parser) checkSize(n *node) error {
	if n.size > maxSize {
		return p.fail(n.at, "the pattern is too large: its counts written out make more than %d characters", maxSize)
	}
	return nil
}

// repeated reads one atom and the repetitions that follow it.
func (p *parser) repeated() (*node, error) {
	x, err := p.atom()
	if err != nil {
		return nil, err
	}
	for stacked := 1; p.more(); stacked++ {
		at, lo, hi := p.pos, 0, unlimited
		switch p.src[p.pos] {
		case '*':
			p.pos++
		case '+':
			lo = 1
			p.pos++
		case '?':
			hi = 1
			p.pos++
		case '{':
			if lo, hi, err = p.counts(); err != nil {
				return nil, err
			}
		default:
			return x, nil
		}
		if stacked > maxStacked {
			return nil, p.fail(at, "more than %d repetitions of one another", maxStacked)
		}
		if x, err = p.repeat(x, at, lo, hi); err != nil {
			return nil, err
		}
	}
	return x, nil
}

func (p *parser) repeat(x *node, at, lo, hi int) (*node, error) {
	if x.op >= opLineStart {
		return nil, p.fail(at, "what stands before %q matches a place, not text, and cannot be repeated", p.src[at])
	}
	n := &node{op: opRepeat, at: at, sub: []*node{x}, min: lo, max: hi,
		first: x.first, last: x.last, empty: x.empty || lo == 0}
	times := max(lo, hi, 1)
	n.count = max(x.count, 1) * times
	if n.count > maxCount {
		return nil, p.fail(at, "counts inside one another make more than %d repetitions", maxCount)
	}
	if hi == unlimited && lo > 0 {
		times++ // x{3,} is written xxxx*
	}
	n.size = max(x.size, 1) * times
	return n, p.checkSize(n)
}

// counts reads {n} {n,} {n,0} {,n} {n,m}; hi is unlimited for the second and third.
func (p *parser) counts() (lo, hi int, err error) {
	at := p.pos
	end := strings.IndexByte(p.src[at:], '}')
	if end < 0 {
		return 0, 0, p.fail(at, `"{" begins a count that no "}" ends; write \{ for the character`)
	}
	text := p.src[at+1 : at+end]
	p.pos = at + end + 1

	low, high, isRange := strings.Cut(text, ",")
	number := func(s string) (int, error) {
		for i := range len(s) {
			if s[i] < '0' || s[i] > '9' {
				return 0, p.fail(at, `"{%s}" is no count; write {n}, {n,}, {,n} or {n,m}, or \{ for the character`, text)
			}
		}
		v, err := strconv.Atoi(s)
		if err != nil || v > maxCount {
			return 0, p.fail(at, "%q counts higher than %d", "{"+text+"}", maxCount)
		}
		return v, nil
	}
	switch {
	case low == "" && high == "":
		return 0, 0, p.fail(at, `"{%s}" has no number; write {n}, {n,}, {,n} or {n,m}`, text)
	case !isRange:
		lo, err = number(low)
		return lo, lo, err
	case low == "":
		lo = 0
	default:
		if lo, err = number(low); err != nil {
			return 0, 0, err
		}
	}
	if high == "" {
		return lo, unlimited, nil
	}
	if hi, err = number(high); err != nil {
		return 0, 0, err
	}
	switch {
	case hi == 0 && lo == 0:
		return 0, 0, p.fail(at, `"{%s}" may mean none or any number; write {0} or *`, text)
	case hi == 0:
		return lo, unlimited, nil
	case lo > hi:
		return 0, 0, p.fail(at, `"{%s}" runs backwards`, text)
	}
	return lo, hi, nil
}

func (p *parser) atom() (*node, error) {
	at := p.pos
	c := p.src[at]
	switch c {
	case '(':
		return p.group()
	case '[':
		return p.bracket()
	case '\\':
		return p.escape()
	case '.':
		p.pos++
		return p.bytes(at, p.dot), nil
	case '^':
		p.pos++
		return place(opLineStart, at), nil
	case '$':
		p.pos++
		return place(opLineEnd, at), nil
	case '*', '+', '?', '{':
		hint := fmt.Sprintf(`write \%c for the character`, c)
		if c == '*' {
			hint = `".*" matches anything`
		}
		return nil, p.fail(at, "%q has nothing before it to repeat; %s", c, hint)
	case ']', '}':
		return nil, p.fail(at, `%q closes nothing; write \%c for the character`, c, c)
	}
	return p.character(at)
}

// character reads one character as itself. One of several bytes is one unit to
// whatever repeats it.
func (p *parser) character(at int) (*node, error) {
	r, width := utf8.DecodeRuneInString(p.src[p.pos:])
	if r == utf8.RuneError && width == 1 {
		return nil, p.fail(p.pos, `not UTF-8; write \x%02x for the byte`, p.src[p.pos])
	}
	text := p.src[p.pos : p.pos+width]
	p.pos += width
	if width == 1 {
		return p.bytes(at, single(text[0])), nil
	}
	n := &node{op: opConcat, at: at}
	for i := range width {
		n.sub = append(n.sub, p.bytes(at, single(text[i])))
	}
	return n, p.finishConcat(n)
}

func (p *parser) group() (*node, error) {
	at := p.pos
	p.pos++
	if p.depth++; p.depth > maxDepth {
		return nil, p.fail(at, "groups are more than %d deep", maxDepth)
	}
	n, err := p.alternation()
	if err != nil {
		return nil, err
	}
	if !p.take(')') {
		return nil, p.fail(at, `"(" opens a group that no ")" closes; write \( for the character`)
	}
	p.depth--
	return n, nil
}

// bytes makes the node that matches one byte of set.
func (p *parser) bytes(at int, set byteset) *node {
	if p.ignoreCase {
		set = set.fold()
	}
	n := &node{op: opBytes, at: at, set: set, size: 1}
	if set.meets(p.word) {
		n.first |= word
	}
	if set.meets(p.word.complement()) {
		n.first |= other
	}
	n.last = n.first
	return n
}

// place makes a node that matches the empty string at some places only.
func place(o op, at int) *node { return &node{op: o, at: at, empty: true} }

// escape reads a backslash and what belongs to it, outside a set.
func (p *parser) escape() (*node, error) {
	at := p.pos
	if at+1 < len(p.src) {
		o := opEmpty
		switch p.src[at+1] {
		case '<':
			o = opWordStart
		case '>':
			o = opWordEnd
		case 'b':
			o = opBoundary
		case 'B':
			o = opNoBoundary
		}
		if o != opEmpty {
			p.pos += 2
			p.boundaries = true
			return place(o, at), nil
		}
		if p.src[at+1] >= utf8.RuneSelf {
			p.pos++
			return p.character(at)
		}
	}
	set, err := p.escapedBytes()
	if err != nil {
		return nil, err
	}
	return p.bytes(at, set), nil
}

// escapedBytes reads an escape that stands for a byte or for a class of bytes.
func (p *parser) escapedBytes() (byteset, error) {
	at := p.pos
	p.pos++
	if !p.more() {
		return byteset{}, p.fail(at, `a lone \ at the end; write \\ for the character`)
	}
	c := p.src[p.pos]
	switch {
	case c == '0' && strings.HasPrefix(p.src[p.pos+1:], "x"):
		p.pos += 2
		return p.number(at, 16)
	case c == '0':
		p.pos++ // it may be the only digit: \0 is NUL
		return p.number(at, 8)
	case '1' <= c && c <= '9':
		return p.number(at, 10)
	case c == 'x':
		p.pos++
		return p.number(at, 16)
	}
	p.pos++
	switch c {
	case 'w':
		return p.word, nil
	case 'W':
		return p.word.complement(), nil
	case 'a':
		c = '\a'
	case 'e':
		c = 0x1b
	case 'f':
		c = '\f'
	case 'n':
		c = '\n'
	case 'r':
		c = '\r'
	case 't':
		c = '\t'
	}
	return single(c), nil
}

// number reads the digits of a numeric escape that began at at.
func (p *parser) number(at, base int) (byteset, error) {
	start := p.pos
	for p.more() && digit(p.src[p.pos]) < base {
		p.pos++
	}
	if p.pos == start && base == 16 {
		return byteset{}, p.fail(at, "%q has no hexadecimal digits after it", p.src[at:p.pos])
	}
	if base == 8 && p.more() && digit(p.src[p.pos]) < 10 {
		return byteset{}, p.fail(at, `a number that begins with \0 is octal, and %q is no octal digit`, p.src[p.pos])
	}
	v, err := strconv.ParseUint("0"+p.src[start:p.pos], base, 64)
	if err != nil || v > 255 {
		return byteset{}, p.fail(at, "%q is more than a byte holds; if its last digit is text, put it in a set, like [%c]", p.src[at:p.pos], p.src[p.pos-1])
	}
	return single(byte(v)), nil
}

// digit returns the value of a digit, or a value above every base.
func digit(c byte) int {
	switch c = lower(c); {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	}
	return 99
}
