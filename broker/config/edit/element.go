package edit

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"sshbroker/broker/config/xmldoc"
)

// Attr is one attribute of a rule, as the parser has it: references replaced.
type Attr struct{ Name, Value string }

// written is an element without content that is to be put in, as text.
func written(name string, attrs []Attr, raw bool) (string, error) {
	var b strings.Builder
	b.WriteString("<" + name)
	for _, a := range attrs {
		value, err := quoted(a.Value, raw)
		if err != nil {
			return "", fmt.Errorf("%s: %w", a.Name, err)
		}
		b.WriteString(" " + a.Name + "=" + value)
	}
	b.WriteString(" />")
	return b.String(), nil
}

// quoted writes a value so that it is read back as it is. Characters beyond ASCII
// become references unless raw.
func quoted(value string, raw bool) (string, error) {
	if !utf8.ValidString(value) {
		return "", fmt.Errorf("%q is not UTF-8", value)
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range value {
		switch {
		case r == '&':
			b.WriteString("&amp;")
		case r == '<':
			b.WriteString("&lt;")
		case r == '"':
			b.WriteString("&quot;")
		case r == '\t' || r == '\n' || r == '\r': // as they are they would be read as blanks
			fmt.Fprintf(&b, "&#%d;", r)
		case r < ' ' || r == 0xFFFE || r == 0xFFFF:
			return "", fmt.Errorf("XML cannot hold the character U+%04X", r)
		case r >= utf8.RuneSelf && !raw:
			fmt.Fprintf(&b, "&#%d;", r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String(), nil
}

// newElement is what the parser has to make of what written returns.
func newElement(name string, attrs []Attr) *xmldoc.Element {
	e := &xmldoc.Element{Name: name}
	for _, a := range attrs {
		e.Attrs = append(e.Attrs, xmldoc.Attr{Name: a.Name, Value: a.Value})
	}
	return e
}

// with returns e with other children.
func with(e *xmldoc.Element, children []*xmldoc.Element) *xmldoc.Element {
	other := *e
	other.Children = children
	return &other
}

// same tells whether two elements say the same, wherever they stand.
func same(a, b *xmldoc.Element) bool {
	if a.Name != b.Name || len(a.Attrs) != len(b.Attrs) || characters(a) != characters(b) || len(a.Children) != len(b.Children) {
		return false
	}
	for i := range a.Attrs {
		if a.Attrs[i].Name != b.Attrs[i].Name || a.Attrs[i].Value != b.Attrs[i].Value {
			return false
		}
	}
	for i := range a.Children {
		if !same(a.Children[i], b.Children[i]) {
			return false
		}
	}
	return true
}

// characters is the character data of e without blanks: which of these stand together
// in one run depends on the elements between.
func characters(e *xmldoc.Element) string {
	var b strings.Builder
	for _, t := range e.Texts {
		b.WriteString(strings.Join(strings.Fields(t.Data), ""))
	}
	return b.String()
}
