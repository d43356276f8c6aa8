package egrep

import "strings"

// Contains tells whether p matches every text that q matches. False may also mean
// that it was not found out: two patterns are only compared as they are written if
// they are neither a plain text, nor one with ".*" before or behind it, nor a domain
// with everything below it, as in (.*\.)?example\.com.
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
	domain, isDomain := "", false
	if q.form == formGeneral {
		domain, isDomain = q.domain()
	}
	if p.ignoreCase {
		literal, domain = lowered(literal), lowered(domain)
	}
	switch {
	case q.form == formExact:
		return p.Match(q.literal)
	case isDomain:
		return p.Match(domain) && p.hasEnding("."+domain)
	case q.form == formSuffix:
		return p.hasEnding(literal)
	case q.form == formPrefix:
		return p.form == formAny || p.form == formPrefix && strings.HasPrefix(literal, p.literal)
	case q.form == formAny:
		return p.form == formAny
	}
	return false
}

// hasEnding tells whether p matches whatever ends with literal, which has no byte that
// "." leaves out.
func (p *Pattern) hasEnding(literal string) bool {
	switch p.form {
	case formAny:
		return true
	case formSuffix:
		return strings.HasSuffix(literal, p.literal)
	case formGeneral:
		domain, ok := p.domain()
		return ok && strings.HasSuffix(literal, "."+domain)
	}
	return false
}

// domain returns the text of which p matches just that and whatever ends with a dot
// and it: (.*\.)?text.
func (p *Pattern) domain() (text string, ok bool) {
	rest, ok := strings.CutPrefix(p.src, `(.*\.)?`)
	if !ok || rest == "" {
		return "", false
	}
	q, err := Compile(rest, Options{IgnoreCase: p.ignoreCase})
	if err != nil || q.form != formExact || strings.ContainsFunc(q.literal, func(r rune) bool { return r < 0x80 && notInDot(byte(r)) }) {
		return "", false
	}
	return q.literal, true
}

// lowered returns text with its ASCII letters in lower case.
func lowered(text string) string {
	b := []byte(text)
	for i := range b {
		b[i] = lower(b[i])
	}
	return string(b)
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
