package egrep

import "strings"

// Contains tells whether p matches every text that q matches. False may also mean
// that it was not found out: two patterns that are neither a plain text nor one with
// ".*" before or behind it are only compared as they are written.
func (p *Pattern) Contains(q *Pattern) bool {
	switch {
	case p.form == formNone || q.form == formNone:
		return false
	case p.src == q.src && p.ignoreCase == q.ignoreCase:
		return true
	case q.ignoreCase && !p.ignoreCase:
		return false
	}
	// What ".*" stands for is the same in both, so that only the literals count.
	literal := q.literal
	if p.ignoreCase {
		literal = strings.ToLower(literal) // of ASCII it is all in lower case; more does not hurt
	}
	switch q.form {
	case formExact:
		return p.Match(q.literal)
	case formAny:
		return p.form == formAny
	case formPrefix:
		return p.form == formAny || p.form == formPrefix && strings.HasPrefix(literal, p.literal)
	case formSuffix:
		return p.form == formAny || p.form == formSuffix && strings.HasSuffix(literal, p.literal)
	}
	return false
}

// maxEnd bounds the literals that Literals returns.
const maxEnd = 64

// Literals returns what every text that p matches begins with, ends with, and has
// somewhere, as far as that is found out, each at most 64 bytes, and in lower case
// where p ignores case. They are "" for ".*".
func (p *Pattern) Literals() (head, tail, inside string) {
	if p.form == formNone {
		return "", "", ""
	}
	ps := parser{src: p.src, ignoreCase: p.ignoreCase, word: wordBytes(), dot: dotBytes()}
	tree, err := ps.parse()
	if err != nil {
		return "", "", "" // cannot be: it was parsed before
	}
	front, _ := tree.edge(p.ignoreCase, false)
	back, _ := tree.edge(p.ignoreCase, true)
	for i, j := 0, len(back)-1; i < j; i, j = i+1, j-1 {
		back[i], back[j] = back[j], back[i]
	}
	head, tail = string(front[:min(len(front), maxEnd)]), string(back[max(0, len(back)-maxEnd):])
	inside = longer(head, tail)
	if tree.op == opConcat {
		var run []byte
		for _, x := range tree.sub {
			b, ok := x.set.literal(p.ignoreCase)
			if !ok || x.op != opBytes {
				run = nil
				continue
			}
			if run = append(run, b); len(run) <= maxEnd {
				inside = longer(inside, string(run))
			}
		}
	}
	return head, tail, inside
}

func longer(a, b string) string {
	if len(b) > len(a) {
		return b
	}
	return a
}

// edge returns the bytes that all that n matches begins with, or backwards ends with,
// the outermost first; whole where that is all of it.
func (n *node) edge(ignoreCase, backwards bool) (text []byte, whole bool) {
	switch n.op {
	case opBytes:
		if b, ok := n.set.literal(ignoreCase); ok {
			return []byte{b}, true
		}
		return nil, false
	case opConcat:
		for i := range n.sub {
			if backwards {
				i = len(n.sub) - 1 - i
			}
			more, all := n.sub[i].edge(ignoreCase, backwards)
			text = append(text, more...)
			if !all || len(text) > maxEnd {
				return text, false
			}
		}
		return text, true
	case opRepeat:
		if n.min == 0 {
			return nil, false
		}
		text, whole = n.sub[0].edge(ignoreCase, backwards)
		return text, whole && n.max == 1
	case opAlternate:
		return nil, false
	}
	return nil, true // a place, or nothing, takes no text
}
