package plan

import (
	"encoding/binary"
	"regexp/syntax"
	"slices"
	"strings"
)

// letters are the characters of addresses as text; those of IPv6 end at symColon.
const letters = "0123456789abcdef:."

const (
	symColon = 16
	symDot   = 17
	symbols  = len(letters)
)

// automaton is a pattern as a deterministic automaton over addresses as text. State
// dead is the one from which nothing matches.
type automaton struct {
	states []state
	start  int
}

type state struct {
	next    [symbols]int
	accepts bool

	// Whether some text that follows makes a match, and whether every text does, among
	// those of the characters of a family.
	live4, live6, all4, all6 bool
}

const dead = 0

// builder makes an automaton of a regular expression by constructing subsets: a
// state is the instructions that may be next, before any assertion about their
// place, and the character before that place as far as assertions look at it.
type builder struct {
	prog  *syntax.Prog
	work  *int // falls with every instruction looked at
	index map[string]int
	sets  [][]uint32
	prevs []rune // of the states: start, wordChar or otherChar
	words bool   // the expression looks at word boundaries

	mark  []int // of instructions: the closure that reached it last
	round int
	stack []uint32
	key   []byte
}

const (
	start     rune = -1
	wordChar  rune = 'a'
	otherChar rune = '.'
)

// build returns the automaton of a regular expression, ok false where that takes
// more work than there is.
func build(expr string, work *int) (a *automaton, ok bool) {
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return nil, false // egrep has compiled it, so this does not happen
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return nil, false
	}
	b := builder{prog: prog, work: work, index: make(map[string]int), mark: make([]int, len(prog.Inst))}
	*work -= len(prog.Inst)
	for i := range prog.Inst {
		if in := &prog.Inst[i]; in.Op == syntax.InstEmptyWidth &&
			syntax.EmptyOp(in.Arg)&(syntax.EmptyWordBoundary|syntax.EmptyNoWordBoundary) != 0 {
			b.words = true
		}
	}
	a = &automaton{}
	b.state(a, nil, wordChar) // dead
	a.start = b.state(a, []uint32{uint32(prog.Start)}, start)
	for q := 1; q < len(a.states); q++ {
		if *work < 0 {
			return nil, false
		}
		b.expand(a, q)
	}
	if !b.judge(a) {
		return nil, false
	}
	return a, true
}

// state returns the number of a state, a new one where it is not known yet.
func (b *builder) state(a *automaton, set []uint32, prev rune) int {
	if len(set) == 0 && len(a.states) > 0 {
		return dead
	}
	slices.Sort(set)
	set = slices.Compact(set)
	b.key = binary.NativeEndian.AppendUint32(b.key[:0], uint32(prev))
	for _, pc := range set {
		b.key = binary.NativeEndian.AppendUint32(b.key, pc)
	}
	if q, ok := b.index[string(b.key)]; ok {
		return q
	}
	q := len(a.states)
	b.index[string(b.key)] = q
	b.sets, b.prevs = append(b.sets, slices.Clone(set)), append(b.prevs, prev)
	a.states = append(a.states, state{})
	*b.work -= symbols
	return q
}

// expand works out where state q leads.
func (b *builder) expand(a *automaton, q int) {
	var set []uint32
	for sym, letter := range letters {
		set = set[:0]
		b.closure(q, letter, func(in *syntax.Inst) {
			if in.MatchRune(letter) {
				set = append(set, in.Out)
			}
		})
		prev := wordChar
		if b.words && strings.ContainsRune(":.", letter) {
			prev = otherChar
		}
		a.states[q].next[sym] = b.state(a, set, prev)
	}
	b.closure(q, -1, func(in *syntax.Inst) {
		a.states[q].accepts = a.states[q].accepts || in.Op == syntax.InstMatch
	})
}

// closure visits the instructions that state q may run when letter is next, -1 for
// the end.
func (b *builder) closure(q int, letter rune, visit func(*syntax.Inst)) {
	b.round++
	place := syntax.EmptyOpContext(b.prevs[q], letter)
	b.stack = append(b.stack[:0], b.sets[q]...)
	for len(b.stack) > 0 {
		pc := b.stack[len(b.stack)-1]
		b.stack = b.stack[:len(b.stack)-1]
		if b.mark[pc] == b.round {
			continue
		}
		b.mark[pc] = b.round
		*b.work--
		switch in := &b.prog.Inst[pc]; in.Op {
		case syntax.InstAlt, syntax.InstAltMatch:
			b.stack = append(b.stack, in.Out, in.Arg)
		case syntax.InstCapture, syntax.InstNop:
			b.stack = append(b.stack, in.Out)
		case syntax.InstEmptyWidth:
			if syntax.EmptyOp(in.Arg)&^place == 0 {
				b.stack = append(b.stack, in.Out)
			}
		case syntax.InstFail:
		case syntax.InstMatch:
			if letter < 0 {
				visit(in)
			}
		default:
			if letter >= 0 {
				visit(in)
			}
		}
	}
}

// judge finds what may follow each state, as least fixed points and as greatest
// ones; later states first, as most lead to those.
func (b *builder) judge(a *automaton) bool {
	for q := range a.states {
		s := &a.states[q]
		s.live4, s.live6, s.all4, s.all6 = s.accepts, s.accepts, s.accepts, s.accepts
	}
	for changed := true; changed; {
		changed = false
		if *b.work -= symbols * len(a.states); *b.work < 0 {
			return false
		}
		for q := len(a.states) - 1; q >= 0; q-- {
			s := &a.states[q]
			before := *s
			for sym, next := range s.next {
				n := &a.states[next]
				if sym <= 9 || sym == symDot {
					s.live4 = s.live4 || n.live4
					s.all4 = s.all4 && n.all4
				}
				if sym != symDot {
					s.live6 = s.live6 || n.live6
					s.all6 = s.all6 && n.all6
				}
			}
			changed = changed || *s != before
		}
	}
	return true
}
