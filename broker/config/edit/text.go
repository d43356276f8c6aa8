package edit

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sshbroker/broker/config/schema"
	"sshbroker/broker/config/xmldoc"
)

// The elements that rules are, and where they stand.
const (
	engineName = "filter-engine"
	ruleName   = "rule"
	legacyName = "filter" // joined with a dns it is a rule as well
)

// ErrNoRule is the class of errors about a number that no rule has.
var ErrNoRule = errors.New("no such rule")

// errAstray is what no edit should come to.
var errAstray = errors.New("the edit would have changed something else; nothing was done")

// Rule is a rule as it stands in a file.
type Rule struct {
	Number  int // from 1, as explain and the audit record have it
	Pos     xmldoc.Pos
	Element string // "rule", or "filter" for one of the legacy form
	Attrs   []Attr
	Comment int // line of a comment right above it, or behind it; 0: there is none
}

// Place is where a new rule goes: before or behind the rule of that number. The zero
// Place is behind the last.
type Place struct{ Before, Behind int }

// Text is what a file holds.
type Text struct {
	name   string
	data   []byte
	doc    *xmldoc.Document
	layout layout
	engine *xmldoc.Element   // nil where there is none
	rules  []*xmldoc.Element // of engine
}

// Empty is what a new file holds, before anything is added.
func Empty() []byte {
	return []byte(`<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE ` + schema.RootName + ` SYSTEM "ssh-broker-ng-config-1.dtd">
<` + schema.RootName + ` version="1.0">
</` + schema.RootName + `>
`)
}

// Parse reads what the file of that name holds. Its error is a *xmldoc.SyntaxError, an
// ErrEncoding, or says that this is something else.
func Parse(name string, data []byte) (*Text, error) {
	doc, err := xmldoc.Parse(name, data, xmldoc.DefaultLimits())
	if err != nil {
		return nil, err
	}
	if doc.Root.Name != schema.RootName {
		return nil, fmt.Errorf("%v: the root element is not %s: this is not a broker configuration", doc.Root.Pos, schema.RootName)
	}
	l, err := layoutOf(data, doc.Text, doc.Encoding)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	t := &Text{name: name, data: data, doc: doc, layout: l}
	for _, c := range doc.Root.Children {
		if c.Name == engineName {
			t.engine = c
			break
		}
	}
	if t.engine != nil {
		for _, c := range t.engine.Children {
			if isRule(c) {
				t.rules = append(t.rules, c)
			}
		}
	}
	return t, nil
}

// Bytes is the content of the file. It must not be changed.
func (t *Text) Bytes() []byte { return t.data }

// String is the content as UTF-8, without a byte order mark.
func (t *Text) String() string { return t.doc.Text }

// Rules lists the rules in their order.
func (t *Text) Rules() []Rule {
	list := make([]Rule, 0, len(t.rules))
	if t.engine == nil {
		return list
	}
	from := t.engine.Span.Inner
	for _, e := range t.engine.Children {
		if isRule(e) {
			r := Rule{Number: len(list) + 1, Pos: e.Pos, Element: e.Name, Comment: t.comment(e, from)}
			for _, a := range e.Attrs {
				r.Attrs = append(r.Attrs, Attr{a.Name, a.Value})
			}
			list = append(list, r)
		}
		from = e.Span.End
	}
	return list
}

func isRule(e *xmldoc.Element) bool { return e.Name == ruleName || e.Name == legacyName }

// comment is the line of a comment that seems to be about e, 0 without one. from is
// where the element before ends.
func (t *Text) comment(e *xmldoc.Element, from int) int {
	text := t.doc.Text
	at := lead(text, from, e.Span.Start)
	switch {
	case at >= 0 && at < lineStart(text, e.Span.Start):
		above := strings.ReplaceAll(text[at:e.Span.Start], "\r\n", "\n")
		return e.Pos.Line - strings.Count(above, "\n") - strings.Count(above, "\r")
	case strings.HasPrefix(strings.TrimLeft(text[e.Span.End:], " \t"), "<!--"):
		within := strings.ReplaceAll(text[e.Span.Start:e.Span.End], "\r\n", "\n")
		return e.Pos.Line + strings.Count(within, "\n") + strings.Count(within, "\r")
	}
	return 0
}

// Add puts a new rule in. Where there is no filter-engine it makes one.
func (t *Text) Add(attrs []Attr, p Place) (*Text, error) {
	text, err := written(ruleName, attrs, t.layout.raw)
	if err != nil {
		return nil, err
	}
	made := newElement(ruleName, attrs)
	root := t.doc.Root
	switch {
	case p == Place{} && t.engine == nil:
		i := t.engineIndex()
		want := with(root, slices.Insert(slices.Clone(root.Children), i, with(&xmldoc.Element{Name: engineName}, []*xmldoc.Element{made})))
		return t.result(want, t.insertEngine(i, text)...)
	case p == Place{} && len(t.rules) == 0:
		want := slices.Concat(t.engine.Children, []*xmldoc.Element{made})
		return t.result(t.rooted(want), t.fill(t.engine, text)...)
	case p == Place{}:
		p.Behind = len(t.rules)
	}
	number := max(p.Before, p.Behind)
	if err := t.has(number); err != nil {
		return nil, err
	}
	e := t.rules[number-1]
	i := slices.Index(t.engine.Children, e)
	from, to := t.around(e)
	s := before(t.doc.Text, e, from)
	if p.Behind > 0 {
		i++
		s = behind(t.doc.Text, e, to)
	}
	return t.result(t.rooted(slices.Insert(slices.Clone(t.engine.Children), i, made)), s.splice(text))
}

// Remove takes the rule of that number out.
func (t *Text) Remove(number int) (*Text, error) {
	if err := t.has(number); err != nil {
		return nil, err
	}
	e := t.rules[number-1]
	from, to, _ := lines(t.doc.Text, e)
	i := slices.Index(t.engine.Children, e)
	return t.result(t.rooted(slices.Delete(slices.Clone(t.engine.Children), i, i+1)), splice{from: from, to: to})
}

// Move makes the rule of one number that of another. The others keep their order.
func (t *Text) Move(number, to int) (*Text, error) {
	if err := errors.Join(t.has(number), t.has(to)); err != nil {
		return nil, err
	}
	if number == to {
		return t, nil
	}
	e, neighbour := t.rules[number-1], t.rules[to-1]
	s := spot{}
	left := slices.DeleteFunc(slices.Clone(t.engine.Children), func(c *xmldoc.Element) bool { return c == e })
	i := slices.Index(left, neighbour)
	lo, hi := t.around(neighbour)
	if to < number {
		s = before(t.doc.Text, neighbour, lo)
	} else {
		s = behind(t.doc.Text, neighbour, hi)
		i++
	}
	from, end, alone := lines(t.doc.Text, e)
	out := splice{from: from, to: end}
	in := s.splice(t.doc.Text[e.Span.Start:e.Span.End])
	switch {
	case s.eol != "" && alone: // the line as it is
		in.moved = [2]int{from, end}
	case s.eol == "": // the element as it is
		in.moved = [2]int{e.Span.Start, e.Span.End}
	default:
		in.head, in.moved, in.tail = s.indent, [2]int{e.Span.Start, e.Span.End}, s.eol
	}
	in.text = ""
	if from < s.at && s.at < end {
		return nil, errAstray
	}
	return t.result(t.rooted(slices.Insert(left, i, e)), out, in)
}

// has checks the number of a rule.
func (t *Text) has(number int) error {
	switch n := len(t.rules); {
	case number >= 1 && number <= n:
		return nil
	case n == 0:
		return fmt.Errorf("%w %d: %s has none", ErrNoRule, number, t.name)
	default:
		return fmt.Errorf("%w %d: %s has 1 to %d", ErrNoRule, number, t.name, n)
	}
}

// around is where the neighbours of a child of the engine end and start, or the tags
// of the engine itself.
func (t *Text) around(e *xmldoc.Element) (from, to int) {
	siblings := t.engine.Children
	i := slices.Index(siblings, e)
	from, to = t.engine.Span.Inner, t.engine.Span.InnerEnd
	if i > 0 {
		from = siblings[i-1].Span.End
	}
	if i+1 < len(siblings) {
		to = siblings[i+1].Span.Start
	}
	return from, to
}

// rooted is the tree with other children of the engine.
func (t *Text) rooted(children []*xmldoc.Element) *xmldoc.Element {
	root := slices.Clone(t.doc.Root.Children)
	root[slices.Index(root, t.engine)] = with(t.engine, children)
	return with(t.doc.Root, root)
}

// engineIndex is where among the children of the root a filter-engine goes, by the
// order that the schema has.
func (t *Text) engineIndex() int {
	var order []string
	for _, c := range schema.Children(schema.RootName) {
		order = append(order, c.Name)
	}
	engine := slices.Index(order, engineName)
	i := 0
	for j, c := range t.doc.Root.Children {
		if slices.Index(order, c.Name) < engine {
			i = j + 1
		}
	}
	return i
}

// insertEngine is a new filter-engine with one rule as child i of the root.
func (t *Text) insertEngine(i int, rule string) []splice {
	text, root := t.doc.Text, t.doc.Root
	step, children := unit(text, root), root.Children
	var s spot
	switch {
	case root.Span.Inner == root.Span.End || len(children) == 0:
		in := engineText(rule, indentOf(text, root.Span.Start)+step, step, eolNear(text))
		return t.fill(root, in)
	case i > 0:
		to := root.Span.InnerEnd
		if i < len(children) {
			to = children[i].Span.Start
		}
		s = behind(text, children[i-1], to)
	default:
		s = before(text, children[0], root.Span.Inner)
	}
	if s.eol == "" {
		return []splice{s.splice(engineText(rule, "", "", ""))}
	}
	return []splice{s.splice(engineText(rule, s.indent, step, s.eol))}
}

// engineText is a filter-engine with one rule, without what stands around it in its
// first and last line.
func engineText(rule, indent, step, eol string) string {
	return "<" + engineName + ">" + eol + indent + step + rule + eol + indent + "</" + engineName + ">"
}

// fill puts text at the end of an element that has no rules, whose tag it opens where
// that closes itself.
func (t *Text) fill(e *xmldoc.Element, in string) []splice {
	text := t.doc.Text
	step := unit(text, t.doc.Root)
	if e.Span.Inner < e.Span.End {
		from := e.Span.Inner
		if n := len(e.Children); n > 0 {
			from = e.Children[n-1].Span.End
		}
		return []splice{atEnd(text, e, from, step).splice(in)}
	}
	tag := strings.TrimRight(strings.TrimSuffix(text[e.Span.Start:e.Span.End], "/>"), " \t\r\n")
	indent, eol := indentOf(text, e.Span.Start), eolNear(text)
	opened := ">" + eol + indent + step + in + eol + indent + "</" + e.Name + ">"
	return []splice{{from: e.Span.Start + len(tag), to: e.Span.End, text: opened}}
}

// splice puts text, and of the old bytes those of moved, in place of others.
type splice struct {
	from, to   int // of the old text
	text       string
	moved      [2]int // of the old text; where it is given, head and tail stand around it
	head, tail string
}

// splice is text put in at s.
func (s spot) splice(text string) splice {
	if s.eol != "" {
		text = s.indent + text + s.eol
	}
	return splice{from: s.at, to: s.at, text: text}
}

// result is the text after splices, which must come out as the tree want.
func (t *Text) result(want *xmldoc.Element, splices ...splice) (*Text, error) {
	slices.SortStableFunc(splices, func(a, b splice) int { return a.from - b.from })
	offset := func(i int) int { return t.layout.mark + t.layout.bytesOf(t.doc.Text[:i]) }
	var out bytes.Buffer
	done := 0
	for _, s := range splices {
		out.Write(t.data[done:offset(s.from)])
		out.Write(t.layout.encode(s.head + s.text))
		out.Write(t.data[offset(s.moved[0]):offset(s.moved[1])])
		out.Write(t.layout.encode(s.tail))
		done = offset(s.to)
	}
	out.Write(t.data[done:])
	made, err := Parse(t.name, out.Bytes())
	if err != nil {
		return nil, err
	}
	if made.doc.Doctype != t.doc.Doctype || !same(made.doc.Root, want) {
		return nil, errAstray
	}
	return made, nil
}
