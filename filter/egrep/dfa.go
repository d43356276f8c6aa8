package egrep

import (
	"iter"
	"math/bits"
	"slices"
)

// A dfa is a small pattern as a finished automaton: one step in a table for each
// byte of text, whatever the pattern is. It does not change once made. Patterns
// for which it would become large are matched by Go's regular expressions.
type dfa struct {
	class [256]uint8 // bytes that no part of the pattern tells apart have one class
	width int        // of a row: the classes, and in the last column 1 where the text may end
	next  []uint16   // row and class to row, as an index of this slice; row 0 matches nothing any more
	start uint16
}

// Limits of a dfa and of the work that goes into one.
const (
	maxTable = 1 << 14 // entries of next
	maxSteps = 512     // of the program
	maxWork  = 1 << 18 // steps looked at
)

// run tells whether d matches the whole of text.
func run[T string | []byte](d *dfa, text T) bool {
	row := d.start
	for i := range len(text) {
		row = d.next[int(row)+int(d.class[text[i]])]
		if row == 0 {
			return false
		}
	}
	return d.next[int(row)+d.width-1] != 0
}

// kind is what stands on one side of a place in the text, as far as places ask.
// "The end of the text" is its start on the other side.
type kind uint8

const (
	kindOther kind = iota
	kindWord
	kindNewline
	kindEnd
	kindUnknown // it has not been read
)

// step is one step of the program that a pattern is taken apart into: a byte of
// set (opBytes), a place, a choice of two ways (opAlternate), the match (opEmpty).
type step struct {
	op   op
	set  byteset
	next int
	also int
}

// steps is a set of steps, by number.
type steps [maxSteps / 64]uint64

func (s *steps) add(i int)      { s[i>>6] |= 1 << (i & 63) }
func (s *steps) has(i int) bool { return s[i>>6]&(1<<(i&63)) != 0 }

func (s *steps) all() iter.Seq[int] {
	return func(yield func(int) bool) {
		for i, w := range s {
			for ; w != 0; w &= w - 1 {
				if !yield(i<<6 + bits.TrailingZeros64(w)) {
					return
				}
			}
		}
	}
}

// state is where the automaton may be in the program, before the byte that decides
// which of its places hold.
type state struct {
	at     steps
	before kind
}

// builder makes a dfa of a pattern.
type builder struct {
	program []step
	words   bool // the pattern has \< \> \b \B
	lines   bool // it has ^ or $
	work    int

	seen  steps // by follow
	stack []int
}

// newDFA returns nil where the automaton would be large.
func newDFA(n *node) *dfa {
	b := builder{work: maxWork, program: make([]step, 1, min(2*n.size+2, maxSteps))} // the match
	first := b.compile(n, 0)
	if first < 0 {
		return nil
	}
	d := new(dfa)
	bytes := b.classes(d)
	d.width = len(bytes) + 1

	begin := state{before: kindOther}
	if b.lines {
		begin.before = kindEnd
	}
	b.follow(&begin.at, first, begin.before, kindUnknown)

	states := []state{{}, begin} // the first is the dead end
	rows := map[state]uint16{{}: 0, begin: uint16(d.width)}
	d.start = uint16(d.width)
	d.next = make([]uint16, d.width, 16*d.width)
	for i := 1; i < len(states); i++ {
		for _, c := range bytes {
			to := b.after(&states[i], c)
			row, known := rows[to]
			if !known {
				if (len(states)+1)*d.width > maxTable || b.work < 0 {
					return nil
				}
				row = uint16(len(states) * d.width)
				rows[to] = row
				states = append(states, to)
			}
			d.next = append(d.next, row)
		}
		ends := uint16(0)
		if now := b.settled(&states[i], kindEnd); now.has(0) {
			ends = 1
		}
		d.next = append(d.next, ends)
	}
	d.next = slices.Clip(d.next)
	return d
}

// compile appends the steps of n, from which the way goes on to next, and returns
// the first of them; below zero where they are too many.
func (b *builder) compile(n *node, next int) int {
	switch n.op {
	case opEmpty:
		return next
	case opConcat:
		for i := len(n.sub) - 1; i >= 0 && next >= 0; i-- {
			next = b.compile(n.sub[i], next)
		}
		return next
	case opAlternate:
		first := b.compile(n.sub[len(n.sub)-1], next)
		for i := len(n.sub) - 2; i >= 0 && first >= 0; i-- {
			first = b.either(b.compile(n.sub[i], next), first)
		}
		return first
	case opRepeat:
		return b.repeat(n, next)
	case opBytes:
	case opLineStart, opLineEnd:
		b.lines = true
	default:
		b.words = true
	}
	return b.add(step{op: n.op, set: n.set, next: next})
}

func (b *builder) repeat(n *node, next int) int {
	x := n.sub[0]
	switch {
	case n.max == unlimited:
		loop := b.add(step{op: opAlternate, also: next})
		if loop < 0 {
			return -1
		}
		body := b.compile(x, loop)
		if body < 0 {
			return -1
		}
		b.program[loop].next = body
		next = loop
	default:
		after := next
		for i := n.min; i < n.max && next >= 0; i++ {
			next = b.either(b.compile(x, next), after)
		}
	}
	for i := 0; i < n.min && next >= 0; i++ {
		next = b.compile(x, next)
	}
	return next
}

func (b *builder) either(one, other int) int {
	if one < 0 || other < 0 {
		return -1
	}
	return b.add(step{op: opAlternate, next: one, also: other})
}

func (b *builder) add(s step) int {
	if len(b.program) == maxSteps {
		return -1
	}
	b.program = append(b.program, s)
	return len(b.program) - 1
}

// classes sets the class of every byte and returns one byte of each.
func (b *builder) classes(d *dfa) []byte {
	sets := make([]byteset, 0, len(b.program)+2)
	if b.words {
		sets = append(sets, wordBytes())
	}
	if b.lines {
		sets = append(sets, single('\n'))
	}
	for _, s := range b.program {
		if s.op == opBytes {
			sets = append(sets, s.set)
		}
	}
	split := make(map[byteset]bool, len(sets))
	for _, set := range sets {
		if !split[set] {
			split[set] = true
			d.split(set)
		}
	}
	var bytes []byte
	for i := range 256 {
		if int(d.class[i]) == len(bytes) { // they are numbered as they appear
			bytes = append(bytes, byte(i))
		}
	}
	return bytes
}

// split parts the classes that have bytes both in set and not.
func (d *dfa) split(set byteset) {
	var parts [256][2]uint16 // of a class, what is in set and what is not: new class and 1
	count := uint16(0)
	for i := range 256 {
		in := 0
		if set.has(byte(i)) {
			in = 1
		}
		part := &parts[d.class[i]][in]
		if *part == 0 {
			count++
			*part = count
		}
		d.class[i] = uint8(*part - 1)
	}
}

// after is the state that the byte c leads to from s.
func (b *builder) after(s *state, c byte) (to state) {
	k := kindOther
	switch word := wordBytes(); {
	case b.lines && c == '\n':
		k = kindNewline
	case b.words && word.has(c):
		k = kindWord
	}
	now := b.settled(s, k)
	b.seen = steps{}
	for i := range now.all() {
		if b.work--; b.program[i].op == opBytes && b.program[i].set.has(c) {
			b.follow(&to.at, b.program[i].next, k, kindUnknown)
		}
	}
	for i := range to.at.all() {
		if b.program[i].op >= opLineStart {
			to.before = k // it will be asked for
		}
	}
	return to
}

// settled is where s may be once it is known what comes after.
func (b *builder) settled(s *state, after kind) (now steps) {
	if !b.words && !b.lines {
		return s.at
	}
	b.seen = steps{}
	for i := range s.at.all() {
		b.follow(&now, i, s.before, after)
	}
	return now
}

// follow adds the steps to into that are reached at first and behind it without a
// byte. Places are passed where they hold, and stay where that cannot be told.
func (b *builder) follow(into *steps, first int, before, after kind) {
	b.stack = append(b.stack[:0], first)
	for len(b.stack) > 0 {
		i := b.stack[len(b.stack)-1]
		b.stack = b.stack[:len(b.stack)-1]
		if b.seen.has(i) {
			continue
		}
		b.seen.add(i)
		b.work--
		switch s := &b.program[i]; {
		case s.op == opAlternate:
			b.stack = append(b.stack, s.also, s.next)
		case s.op < opLineStart || after == kindUnknown:
			into.add(i)
		case holds(s.op, before, after):
			b.stack = append(b.stack, s.next)
		}
	}
}

// holds tells whether the place o is between the two.
func holds(o op, before, after kind) bool {
	word, follows := before == kindWord, after == kindWord
	switch o {
	case opLineStart:
		return before == kindEnd || before == kindNewline
	case opLineEnd:
		return after == kindEnd || after == kindNewline
	case opWordStart:
		return !word && follows
	case opWordEnd:
		return word && !follows
	case opBoundary:
		return word != follows
	}
	return word == follows
}
