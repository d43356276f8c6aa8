package values

import (
	"fmt"
	"strconv"
	"strings"

	"sshbroker/broker/config/schema"
)

// Path is a place in the configuration, or several. The grammar is a small part of
// that of XPath:
//
//	path      := ["/"] step ("/" step)*, or "/" alone for everything
//	step      := (name | "*") predicate*, or as the last one "@" (name | "*")
//	predicate := "[" (number | "@" name | "@" name "=" string) "]"
//	string    := "'" ... "'" | '"' ... '"'
//
// It begins below the root element, whose name may stand before it. A number counts
// from 1 what the step and its predicates before have found in one element.
type Path struct{ steps []step }

type step struct {
	attr       bool   // it is an attribute
	name       string // "*": any
	predicates []predicate
}

// predicate is a number, or an attribute that has to be there or to have that value.
type predicate struct {
	number int
	attr   string
	equals bool
	value  string
}

// PathError is what is wrong with the text of a path.
type PathError struct {
	Path   string
	Offset int // in bytes
	Msg    string
}

func (e *PathError) Error() string {
	return fmt.Sprintf("path %q, at %q: %s", e.Path, e.Path[e.Offset:], e.Msg)
}

const maxPath = 4096 // bytes

// ParsePath reads a path. Its error is a *PathError.
func ParsePath(text string) (Path, error) {
	p := pathParser{text: text}
	if len(text) > maxPath {
		return Path{}, &PathError{Path: text[:100] + "...", Msg: fmt.Sprintf("it is longer than %d bytes", maxPath)}
	}
	steps, err := p.path()
	if err != nil {
		return Path{}, err
	}
	if len(steps) > 0 && !steps[0].attr && steps[0].name == schema.RootName && len(steps[0].predicates) == 0 {
		steps = steps[1:]
	}
	return Path{steps}, nil
}

type pathParser struct {
	text string
	at   int
}

func (p *pathParser) fail(format string, args ...any) error {
	return &PathError{Path: p.text, Offset: p.at, Msg: fmt.Sprintf(format, args...)}
}

func (p *pathParser) take(s string) bool {
	if !strings.HasPrefix(p.text[p.at:], s) {
		return false
	}
	p.at += len(s)
	return true
}

func (p *pathParser) end() bool { return p.at == len(p.text) }

func (p *pathParser) path() ([]step, error) {
	if p.take("/"); p.end() {
		return nil, nil
	}
	var steps []step
	for {
		s, err := p.step()
		if err != nil {
			return nil, err
		}
		steps = append(steps, s)
		switch {
		case p.end():
			return steps, nil
		case s.attr:
			return nil, p.fail("nothing follows an attribute")
		case !p.take("/"):
			return nil, p.fail("a / is missing")
		}
	}
}

func (p *pathParser) step() (s step, err error) {
	s.attr = p.take("@")
	if s.name = p.name(); s.name == "" && p.take("*") {
		s.name = "*"
	}
	if s.name == "" {
		return s, p.fail("the name of an element, @ and the name of an attribute, or * is missing")
	}
	for !s.attr && p.take("[") {
		one, err := p.predicate()
		if err != nil {
			return s, err
		}
		s.predicates = append(s.predicates, one)
	}
	return s, nil
}

// predicate reads one behind its "[".
func (p *pathParser) predicate() (one predicate, err error) {
	if p.take("@") {
		if one.attr = p.name(); one.attr == "" {
			return one, p.fail("the name of an attribute is missing")
		}
		if one.equals = p.take("="); one.equals {
			if one.value, err = p.quoted(); err != nil {
				return one, err
			}
		}
	} else {
		digits := p.text[p.at:]
		digits = digits[:len(digits)-len(strings.TrimLeft(digits, "0123456789"))]
		if one.number, err = strconv.Atoi(digits); err != nil || one.number < 1 {
			return one, p.fail("a number from 1 on, or @ and the name of an attribute is missing")
		}
		p.at += len(digits)
	}
	if !p.take("]") {
		return one, p.fail("a ] is missing")
	}
	return one, nil
}

func (p *pathParser) quoted() (string, error) {
	for _, quote := range []string{"'", `"`} {
		start := p.at
		if !p.take(quote) {
			continue
		}
		value, _, closed := strings.Cut(p.text[p.at:], quote)
		if !closed {
			p.at = start
			return "", p.fail("this string is not closed")
		}
		p.at += len(value) + len(quote)
		return value, nil
	}
	return "", p.fail("a string in quotes is missing")
}

func (p *pathParser) name() string {
	start := p.at
	for !p.end() {
		c := p.text[p.at]
		if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			break
		}
		p.at++
	}
	return p.text[start:p.at]
}

// String is the path as ParsePath reads it.
func (p Path) String() string {
	var b strings.Builder
	for i, s := range p.steps {
		if i > 0 {
			b.WriteByte('/')
		}
		if s.attr {
			b.WriteByte('@')
		}
		b.WriteString(s.name)
		for _, one := range s.predicates {
			b.WriteString("[" + one.String() + "]")
		}
	}
	if b.Len() == 0 {
		return "/"
	}
	return b.String()
}

func (one predicate) String() string {
	if one.attr == "" {
		return strconv.Itoa(one.number)
	}
	text := "@" + one.attr
	if one.equals {
		quote := "'"
		if strings.Contains(one.value, quote) {
			quote = `"`
		}
		text += "=" + quote + one.value + quote
	}
	return text
}
