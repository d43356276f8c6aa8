package egrep

import "slices"

// Need is something that every text has that a pattern matches. A text that lacks
// it need not be held against the pattern.
type Need struct {
	Place Place
	Texts []string // in lower case (ASCII); the text has one of them there, in either case
}

// Place is where in a text a Need is looked for.
type Place uint8

// The places.
const (
	Whole  Place = iota // it is the text
	Start               // the text begins with it
	End                 // the text ends with it
	Inside              // anywhere
)

// Needs returns what texts must have for p to match them, all of it; none where
// nothing can be said, as of ".*". It is for those who hold many patterns against
// one text. The Needs belong to p and must not be changed.
func (p *Pattern) Needs() []Need { return p.needs }

// Limits, which keep patterns like [0-9]{9} from being written out.
const (
	maxNeeds   = 6
	maxTexts   = 1024 // in one set
	maxProduct = 32   // texts that two sets of more than one make when joined
	maxWritten = 8192 // bytes in one set
	maxText    = 64   // bytes of one text, but for a whole one
	maxMembers = 16   // of a bracket set whose bytes are told apart
)

// shape is what is known of the texts that a part of a pattern matches, in lower
// case. A nil set says nothing; the empty text is in none but exact.
type shape struct {
	exact      []string   // all of them
	start, end []string   // one of which they begin, or end, with; exact where that is known
	inside     [][]string // one of which they have somewhere, for each
}

func exactly(texts []string) shape {
	return shape{exact: texts, start: telling(texts), end: telling(texts)}
}

// telling returns texts where it says something that one of them is there.
func telling(texts []string) []string {
	if slices.Contains(texts, "") {
		return nil
	}
	return texts
}

// needs returns what the shape of a whole pattern asks for.
func (s shape) needs() []Need {
	if s.exact != nil {
		return []Need{{Whole, s.exact}}
	}
	var needs []Need
	if s.start != nil {
		needs = append(needs, Need{Start, cut(s.start, false)})
	}
	if s.end != nil {
		needs = append(needs, Need{End, cut(s.end, true)})
	}
	for _, texts := range s.best(maxNeeds - len(needs)) {
		needs = append(needs, Need{Inside, cut(texts, false)})
	}
	return slices.Clip(needs)
}

// best returns the n sets of inside that tell most.
func (s shape) best(n int) [][]string {
	slices.SortStableFunc(s.inside, func(a, b []string) int { return shortest(b) - shortest(a) })
	return s.inside[:min(n, len(s.inside))]
}

// shapeOf works out what is known of what n matches.
func shapeOf(n *node) shape {
	switch n.op {
	case opBytes:
		return exactly(n.set.texts())
	case opConcat:
		return concatenated(n.sub)
	case opAlternate:
		shapes := make([]shape, len(n.sub))
		for i, x := range n.sub {
			shapes[i] = shapeOf(x)
		}
		return either(shapes...)
	case opRepeat:
		return repeated(shapeOf(n.sub[0]), n.min, n.max)
	}
	return exactly([]string{""}) // a place takes no text
}

func concatenated(parts []*node) shape {
	s := exactly([]string{""})
	var run []byte // of plain characters, put together before they are joined
	flush := func() {
		if len(run) > 0 {
			s = s.then(exactly([]string{string(run)}))
			run = run[:0]
		}
	}
	for _, x := range parts {
		if b, ok := x.set.literal(true); ok && x.op == opBytes {
			run = append(run, lower(b))
			continue
		}
		flush()
		s = s.then(shapeOf(x))
	}
	flush()
	return s
}

// texts returns the bytes of s in lower case, nil where they are too many.
func (s byteset) texts() []string {
	var texts []string
	for i := range 256 {
		b := byte(i)
		if !s.has(b) || b != lower(b) && s.has(lower(b)) {
			continue
		}
		if len(texts) == maxMembers {
			return nil
		}
		texts = append(texts, string([]byte{lower(b)}))
	}
	return texts
}

// then is the shape of a text of s with one of t behind it.
func (s shape) then(t shape) shape {
	if both := product(s.exact, t.exact); both != nil {
		return exactly(both)
	}
	joined := shape{start: s.start, end: t.end, inside: slices.Concat(s.inside, t.inside)}
	keep := func(sets ...[]string) {
		for _, texts := range sets {
			if texts != nil {
				joined.inside = append(joined.inside, cut(texts, false))
			}
		}
	}
	switch {
	case s.exact != nil && t.exact != nil: // too many together, each alone is at its end
	case s.exact != nil:
		if longer := product(s.exact, t.start); longer != nil {
			joined.start = cut(longer, false)
		} else {
			keep(t.start)
		}
	case t.exact != nil:
		if longer := product(s.end, t.exact); longer != nil {
			joined.end = cut(longer, true)
		} else {
			keep(s.end)
		}
	default:
		if middle := product(s.end, t.start); middle != nil {
			keep(middle)
		} else {
			keep(s.end, t.start)
		}
	}
	if len(joined.inside) > 4*maxNeeds {
		joined.inside = joined.best(maxNeeds)
	}
	return joined
}

// either is the shape of a text of one of the shapes.
func either(shapes ...shape) shape {
	all := func(of func(shape) []string) []string {
		var texts []string
		for _, s := range shapes {
			some := of(s)
			if some == nil {
				return nil
			}
			texts = append(texts, some...)
		}
		return small(texts)
	}
	if exact := all(func(s shape) []string { return s.exact }); exact != nil {
		return exactly(exact)
	}
	s := shape{
		start: all(func(s shape) []string { return s.start }),
		end:   all(func(s shape) []string { return s.end }),
	}
	if inside := all(shape.most); inside != nil {
		s.inside = [][]string{inside}
	}
	return s
}

// most returns the set of s that tells most, wherever it stands.
func (s shape) most() []string {
	most := s.start
	for _, texts := range append([][]string{s.end}, s.inside...) {
		if shortest(texts) > shortest(most) {
			most = texts
		}
	}
	return most
}

// repeated is the shape of lo to hi texts of s, one after the other.
func repeated(s shape, lo, hi int) shape {
	switch {
	case hi == 0:
		return exactly([]string{""})
	case lo == 0 && hi == 1:
		return either(exactly([]string{""}), s)
	case lo == 0:
		return shape{}
	}
	once := shape{start: s.start, end: s.end, inside: s.inside}
	if lo != hi {
		return once
	}
	times := s
	for range lo - 1 {
		if times.exact == nil { // what more would follow is not known to matter
			return once
		}
		times = times.then(s)
	}
	return times
}

// product returns every text of a with every text of b behind it, nil where that is
// not known, or too much.
func product(a, b []string) []string {
	if a == nil || b == nil || len(a) > 1 && len(b) > 1 && len(a)*len(b) > maxProduct {
		return nil
	}
	texts := make([]string, 0, len(a)*len(b))
	for _, x := range a {
		for _, y := range b {
			texts = append(texts, x+y)
		}
	}
	return small(texts)
}

// small returns texts, each once; nil where they are too many to keep.
func small(texts []string) []string {
	if len(texts) > 1 {
		slices.Sort(texts)
		texts = slices.Compact(texts)
	}
	written := 0
	for _, x := range texts {
		written += len(x)
	}
	if len(texts) > maxTexts || written > maxWritten {
		return nil
	}
	return texts
}

// cut returns texts, of each no more than maxText bytes: the last, or the first ones.
func cut(texts []string, last bool) []string {
	if !slices.ContainsFunc(texts, func(x string) bool { return len(x) > maxText }) {
		return texts
	}
	texts = slices.Clone(texts)
	for i, x := range texts {
		switch {
		case len(x) <= maxText:
		case last:
			texts[i] = x[len(x)-maxText:]
		default:
			texts[i] = x[:maxText]
		}
	}
	return small(texts)
}

// shortest returns the length of the shortest text, 0 where there is none.
func shortest(texts []string) int {
	if len(texts) == 0 {
		return 0
	}
	n := len(texts[0])
	for _, x := range texts {
		n = min(n, len(x))
	}
	return n
}
