package egrep

import (
	"regexp"
	"strings"
)

// The oracle is a second, slow reading of the language: it turns the text of a
// pattern into nested functions that try every way to match, and shares nothing
// with the package but the input. It is lenient about malformed patterns; it is
// asked only about those that Compile accepts.
type oracle struct {
	pattern    string
	pos        int
	ignoreCase bool
	text       string
	steps      int // what is left before it gives up
}

// try matches at i and hands every end it finds to k, until k is content.
type try func(i int, k func(int) bool) bool

type outOfSteps struct{}

// oracleMatch returns the answer, or decided false where it took too long.
func oracleMatch(pattern, text string, ignoreCase bool) (matched, decided bool) {
	o := &oracle{pattern: pattern, ignoreCase: ignoreCase, text: text, steps: 200_000}
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(outOfSteps); !ok {
				panic(r)
			}
			matched, decided = false, false
		}
	}()
	whole := o.alternatives()
	return whole(0, func(end int) bool { return end == len(text) }), true
}

func (o *oracle) at(c byte) bool { return o.pos < len(o.pattern) && o.pattern[o.pos] == c }

func (o *oracle) next() byte {
	c := o.pattern[o.pos]
	o.pos++
	return c
}

func (o *oracle) spend() {
	if o.steps--; o.steps < 0 {
		panic(outOfSteps{})
	}
}

func (o *oracle) alternatives() try {
	left := o.sequence()
	if !o.at('|') {
		return left
	}
	o.pos++
	right := o.alternatives()
	return func(i int, k func(int) bool) bool { o.spend(); return left(i, k) || right(i, k) }
}

func (o *oracle) sequence() try {
	if o.pos == len(o.pattern) || o.at('|') || o.at(')') {
		return func(i int, k func(int) bool) bool { return k(i) }
	}
	x := o.item()
	rest := o.sequence()
	return func(i int, k func(int) bool) bool {
		o.spend()
		return x(i, func(j int) bool { return rest(j, k) })
	}
}

func (o *oracle) item() try {
	x := o.single()
	for {
		switch {
		case o.at('*'):
			o.pos++
			x = o.times(x, 0, 1<<30)
		case o.at('+'):
			o.pos++
			x = o.times(x, 1, 1<<30)
		case o.at('?'):
			o.pos++
			x = o.times(x, 0, 1)
		case o.at('{'):
			o.pos++
			body := o.pattern[o.pos : o.pos+strings.IndexByte(o.pattern[o.pos:], '}')]
			o.pos += len(body) + 1
			lo, hi, comma := strings.Cut(body, ",")
			least := decimal(lo)
			switch most := decimal(hi); {
			case !comma:
				x = o.times(x, least, least)
			case most == 0: // {n,} and {n,0}
				x = o.times(x, least, 1<<30)
			default:
				x = o.times(x, least, most)
			}
		default:
			return x
		}
	}
}

func decimal(s string) (v int) {
	for _, c := range s {
		v = v*10 + int(c-'0')
	}
	return v
}

func (o *oracle) times(x try, least, most int) try {
	var from func(n, i int, k func(int) bool) bool
	from = func(n, i int, k func(int) bool) bool {
		o.spend()
		if n >= least && k(i) {
			return true
		}
		return n < most && x(i, func(j int) bool {
			if j == i && n >= least { // no progress, and none is due
				return false
			}
			return from(n+1, j, k)
		})
	}
	return func(i int, k func(int) bool) bool { return from(0, i, k) }
}

func (o *oracle) oneOf(in func(byte) bool) try {
	if o.ignoreCase {
		exact := in
		in = func(c byte) bool { return exact(c) || exact(flip(c)) }
	}
	return func(i int, k func(int) bool) bool {
		o.spend()
		return i < len(o.text) && in(o.text[i]) && k(i+1)
	}
}

func flip(c byte) byte {
	if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' {
		return c ^ 0x20
	}
	return c
}

func isWord(c byte) bool {
	return strings.IndexByte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-", c) >= 0
}

func (o *oracle) here(holds func(i int) bool) try {
	return func(i int, k func(int) bool) bool { o.spend(); return holds(i) && k(i) }
}

func (o *oracle) wordBefore(i int) bool { return i > 0 && isWord(o.text[i-1]) }
func (o *oracle) wordAfter(i int) bool  { return i < len(o.text) && isWord(o.text[i]) }

func (o *oracle) single() try {
	switch c := o.next(); c {
	case '(':
		x := o.alternatives()
		o.pos++
		return x
	case '[':
		return o.set()
	case '.':
		return o.oneOf(func(c byte) bool { return !strings.ContainsRune("\n\f\r\x00", rune(c)) })
	case '^':
		return o.here(func(i int) bool { return i == 0 || o.text[i-1] == '\n' })
	case '$':
		return o.here(func(i int) bool { return i == len(o.text) || o.text[i] == '\n' })
	case '\\':
		switch {
		case o.at('<'):
			o.pos++
			return o.here(func(i int) bool { return !o.wordBefore(i) && o.wordAfter(i) })
		case o.at('>'):
			o.pos++
			return o.here(func(i int) bool { return o.wordBefore(i) && !o.wordAfter(i) })
		case o.at('b'):
			o.pos++
			return o.here(func(i int) bool { return o.wordBefore(i) != o.wordAfter(i) })
		case o.at('B'):
			o.pos++
			return o.here(func(i int) bool { return o.wordBefore(i) == o.wordAfter(i) })
		}
		if o.pattern[o.pos] < 0x80 {
			return o.oneOf(o.escaped())
		}
		return o.unit(o.next())
	default:
		return o.unit(c)
	}
}

// unit is a character of the pattern, whose first byte is c.
func (o *oracle) unit(c byte) try {
	if c < 0x80 {
		return o.oneOf(func(b byte) bool { return b == c })
	}
	start := o.pos - 1
	for o.pos < len(o.pattern) && o.pattern[o.pos]&0xc0 == 0x80 {
		o.pos++
	}
	char := o.pattern[start:o.pos]
	return func(i int, k func(int) bool) bool {
		o.spend()
		return strings.HasPrefix(o.text[i:], char) && k(i+len(char))
	}
}

// escaped reads what follows a backslash.
func (o *oracle) escaped() func(byte) bool {
	is := func(v int) func(byte) bool { return func(c byte) bool { return int(c) == v } }
	switch c := o.next(); c {
	case '0':
		if o.at('x') {
			o.pos++
			return is(o.digits("0123456789abcdef"))
		}
		return is(o.digits("01234567"))
	case 'x':
		return is(o.digits("0123456789abcdef"))
	case '1', '2', '3', '4', '5', '6', '7', '8', '9':
		o.pos--
		return is(o.digits("0123456789"))
	case 'w':
		return isWord
	case 'W':
		return func(c byte) bool { return !isWord(c) }
	case 'a', 'e', 'f', 'n', 'r', 't':
		return is(int(map[byte]byte{'a': 7, 'e': 27, 'f': 12, 'n': 10, 'r': 13, 't': 9}[c]))
	default:
		return is(int(c))
	}
}

func (o *oracle) digits(known string) (v int) {
	for o.pos < len(o.pattern) {
		d := strings.Index(known, strings.ToLower(o.pattern[o.pos:o.pos+1]))
		if d < 0 {
			break
		}
		v = v*len(known) + d
		o.pos++
	}
	return v
}

func (o *oracle) set() try {
	complement := o.at('^')
	if complement {
		o.pos++
	}
	var any []func(byte) bool
	for n := 0; n == 0 || !o.at(']'); n++ {
		if m := oracleClassName.FindString(o.pattern[o.pos:]); m != "" {
			o.pos += len(m)
			any = append(any, oracleClass(m[2:len(m)-2]))
			continue
		}
		lo, loByte := o.setByte()
		if loByte >= 0 && o.at('-') && o.pattern[o.pos+1] != ']' {
			o.pos++
			_, hiByte := o.setByte()
			any = append(any, func(c byte) bool { return loByte <= int(c) && int(c) <= hiByte })
			continue
		}
		any = append(any, lo)
	}
	o.pos++
	in := func(c byte) bool {
		for _, f := range any {
			if f(c) || o.ignoreCase && f(flip(c)) {
				return true
			}
		}
		return false
	}
	if complement {
		positive := in
		return func(i int, k func(int) bool) bool {
			o.spend()
			return i < len(o.text) && !positive(o.text[i]) && k(i+1)
		}
	}
	return o.oneOf(in)
}

// setByte reads one character of a set; b is -1 where it stands for several.
func (o *oracle) setByte() (in func(byte) bool, b int) {
	if o.at('\\') {
		o.pos++
		in = o.escaped()
	} else {
		c := o.next()
		in = func(x byte) bool { return x == c }
	}
	b = -1
	for c := range 256 {
		switch {
		case in(byte(c)) && b >= 0:
			return in, -1
		case in(byte(c)):
			b = c
		}
	}
	return in, b
}

var oracleClassName = regexp.MustCompile(`^\[:\pL+:\]`)

func oracleClass(name string) func(byte) bool {
	has := func(lo, hi byte) func(byte) bool { return func(c byte) bool { return lo <= c && c <= hi } }
	digit, lower, upper := has('0', '9'), has('a', 'z'), has('A', 'Z')
	alnum := func(c byte) bool { return digit(c) || lower(c) || upper(c) }
	switch name {
	case "alnum":
		return alnum
	case "alpha":
		return func(c byte) bool { return lower(c) || upper(c) }
	case "cntrl":
		return func(c byte) bool { return c < 32 || c == 127 }
	case "digit":
		return digit
	case "graph":
		return has(33, 126)
	case "lower":
		return lower
	case "print":
		return has(32, 126)
	case "punct":
		return func(c byte) bool { return has(33, 126)(c) && !alnum(c) }
	case "space":
		return func(c byte) bool { return c == ' ' || has(9, 13)(c) }
	case "upper":
		return upper
	case "xdigit":
		return func(c byte) bool { return digit(c) || has('a', 'f')(c) || has('A', 'F')(c) }
	}
	panic("no class " + name)
}
