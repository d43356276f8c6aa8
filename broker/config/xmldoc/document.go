package xmldoc

import (
	"strconv"
	"strings"
)

// Pos is a place in a file. Line and Col start at 1; Col counts characters, not
// bytes. A Pos without Line stands for the whole file.
type Pos struct {
	File string
	Line int
	Col  int
}

// String writes file:line:col, the form that editors and compilers understand.
func (p Pos) String() string {
	if p.Line == 0 {
		return p.File
	}
	s := strconv.Itoa(p.Line) + ":" + strconv.Itoa(p.Col)
	if p.File == "" {
		return s
	}
	return p.File + ":" + s
}

// Before orders positions of one file.
func (p Pos) Before(q Pos) bool {
	return p.Line < q.Line || p.Line == q.Line && p.Col < q.Col
}

// Document is one file.
type Document struct {
	Doctype    string // the root name that a DOCTYPE announces; "" without one
	DoctypePos Pos
	Root       *Element // nil if the file broke off before it
	Encoding   string   // that the XML declaration names; "" where it names none
	Text       string   // the whole file in UTF-8, without a byte order mark
}

// Element is one element with what stands in it, in the order of the file.
type Element struct {
	Name     string
	Pos      Pos // of the "<"
	Attrs    []Attr
	Children []*Element
	Texts    []Text // runs of character data that are not white space alone
	Complete bool   // its end was seen; false where a syntax error cut it off
	Span     Span
}

// Span is where an element stands, in bytes of Document.Text: its start tag from Start
// to Inner, its end tag from InnerEnd to End. Where one tag is both, Inner, InnerEnd
// and End are the same. The end tag of an element that is not Complete is nowhere, at 0.
type Span struct{ Start, Inner, InnerEnd, End int }

// Text is one run of character data, references replaced.
type Text struct {
	Pos  Pos // of its first character that is not white space
	Data string
}

// Text returns the character data of e without its children's, trimmed.
func (e *Element) Text() string {
	var b strings.Builder
	for _, t := range e.Texts {
		b.WriteString(t.Data)
	}
	return strings.TrimSpace(b.String())
}

// Attr returns the first attribute of that name, nil where there is none.
func (e *Element) Attr(name string) *Attr {
	for i := range e.Attrs {
		if e.Attrs[i].Name == name {
			return &e.Attrs[i]
		}
	}
	return nil
}

// Attr is one attribute, references replaced in Value and white space normalised.
type Attr struct {
	Name     string
	Pos      Pos // of the name
	Value    string
	ValuePos Pos // of the first character after the quote

	raw string // as written
}

// At returns where byte offset off of Value stands in the file. It differs from
// ValuePos plus off where the value holds references, line breaks or characters of
// several bytes. An offset past the end gives the closing quote.
func (a *Attr) At(off int) Pos {
	c := cursor{src: a.raw, pos: a.ValuePos}
	for n := 0; n < off && !c.end(); {
		if c.peek() == '&' {
			r, err := c.reference()
			if err != nil {
				return a.ValuePos // cannot be: the value was read once already
			}
			n += len(string(r))
			continue
		}
		n += len(string(c.next()))
	}
	return c.pos
}
