package xmldoc

import (
	"fmt"
	"strings"
)

// Limits bound what one file may cost. Depth counts the root as 1; Attributes is for
// one element.
type Limits struct {
	Bytes      int
	Depth      int
	Elements   int
	Attributes int
}

// DefaultLimits are far above what people write, 10,000 long rules, and far below what
// hurts.
func DefaultLimits() Limits {
	return Limits{Bytes: 4 << 20, Depth: 32, Elements: 20000, Attributes: 64}
}

// Parse reads one file. file is its name, for positions only; nothing is opened.
//
// A *SyntaxError comes with the Document up to there, so that a caller can report
// what else is wrong before it; elements that it cut off are not Complete.
func Parse(file string, data []byte, limits Limits) (*Document, error) {
	doc := &Document{}
	if len(data) > limits.Bytes {
		return doc, &SyntaxError{Pos: Pos{File: file},
			Msg: fmt.Sprintf("the file is larger than %d bytes", limits.Bytes)}
	}
	text, err := decode(file, data)
	if err != nil {
		return doc, err
	}
	doc.Text = text
	p := &parser{cursor: cursor{src: text, pos: Pos{File: file, Line: 1, Col: 1}}, limits: limits, doc: doc}
	if err := p.document(); err != nil {
		if err.Element == "" && len(p.open) > 0 {
			err.Element = p.open[len(p.open)-1].Name
		}
		return doc, err
	}
	return doc, nil
}

type parser struct {
	cursor
	limits   Limits
	doc      *Document
	open     []*Element // elements not closed yet, outermost first
	elements int
}

func (p *parser) fail(at Pos, hint, format string, args ...any) *SyntaxError {
	return &SyntaxError{Pos: at, Msg: fmt.Sprintf(format, args...), Hint: hint}
}

// document reads prolog, root and what may follow it.
func (p *parser) document() *SyntaxError {
	if strings.TrimSpace(p.src) == "" {
		return p.fail(p.pos, "the smallest configuration is <secsh-broker/>", "the file is empty")
	}
	if p.has("<?xml") && !isNamePart(rune(p.src[min(len("<?xml"), len(p.src)-1)])) {
		if err := p.declaration(); err != nil {
			return err
		}
	}
	for {
		p.space()
		if p.end() {
			break
		}
		at := p.pos
		var err *SyntaxError
		switch {
		case p.has("<!--"):
			err = p.comment()
		case p.has("<?"):
			err = p.instruction()
		case p.has("<!DOCTYPE"):
			err = p.doctype()
		case p.doc.Root != nil:
			return p.fail(at, "everything belongs inside the root element", "something follows the end of <%s>", p.doc.Root.Name)
		case p.peek() == '<':
			err = p.root()
		default:
			return p.fail(at, "", "text stands outside of the root element")
		}
		if err != nil {
			return err
		}
	}
	if p.doc.Root == nil {
		return p.fail(p.pos, "", "the file has no root element")
	}
	return nil
}

// declaration reads <?xml version="1.0" encoding="..." standalone="..."?>.
func (p *parser) declaration() *SyntaxError {
	const form = `write <?xml version="1.0" encoding="UTF-8"?>`
	p.take("<?xml")
	allowed := []string{"version", "encoding", "standalone"}
	for first := true; ; first = false {
		spaced := p.space()
		if p.take("?>") {
			if first {
				return p.fail(p.pos, form, "the XML declaration has no version")
			}
			return nil
		}
		at := p.pos
		if p.end() || !spaced {
			return p.fail(at, form, "the XML declaration is not closed")
		}
		attr, err := p.attribute("?xml")
		if err != nil {
			return err
		}
		i := indexOf(allowed, attr.Name)
		if i < 0 || first != (attr.Name == "version") {
			return p.fail(at, form, "%s is not expected in the XML declaration here", attr.Name)
		}
		allowed = allowed[i+1:]
		if attr.Name == "encoding" {
			p.doc.Encoding = attr.Value
		}
		switch {
		case attr.Name == "version" && attr.Value != "1.0":
			return p.fail(attr.ValuePos, form, "XML version %q is not understood", attr.Value)
		case attr.Name == "standalone" && attr.Value != "yes" && attr.Value != "no":
			return p.fail(attr.ValuePos, "", "standalone is yes or no, not %q", attr.Value)
		}
	}
}

func indexOf(list []string, s string) int {
	for i, v := range list {
		if v == s {
			return i
		}
	}
	return -1
}

// comment steps over <!-- ... -->.
func (p *parser) comment() *SyntaxError {
	at := p.pos
	p.take("<!--")
	for !p.end() {
		here := p.pos
		if p.take("--") {
			if p.take(">") {
				return nil
			}
			return p.fail(here, "write single hyphens", `a comment must not hold "--"`)
		}
		if _, err := p.char(); err != nil {
			return err
		}
	}
	return p.fail(at, "end it with -->", "the comment that starts here is not closed")
}

// char returns one character that XML allows and steps over it.
func (p *parser) char() (rune, *SyntaxError) {
	at := p.pos
	r := p.next()
	if !isChar(r) {
		return 0, p.fail(at, "take it out; editors may not show it", "character U+%04X is not allowed in XML", r)
	}
	return r, nil
}

// instruction steps over <?name ... ?>; none has a meaning here.
func (p *parser) instruction() *SyntaxError {
	at := p.pos
	p.take("<?")
	if strings.EqualFold(p.name(), "xml") {
		return p.fail(at, "move it to the very start, with no space or line before it", "the XML declaration is not at the start of the file")
	}
	for !p.end() {
		if p.take("?>") {
			return nil
		}
		if _, err := p.char(); err != nil {
			return err
		}
	}
	return p.fail(at, "end it with ?>", "the processing instruction that starts here is not closed")
}

// doctype reads <!DOCTYPE root SYSTEM "id">. The DTD is never fetched: the schema is
// built in.
func (p *parser) doctype() *SyntaxError {
	const form = `write <!DOCTYPE secsh-broker SYSTEM "ssh-broker-ng-config-1.dtd">, or leave it out`
	at := p.pos
	switch {
	case p.doc.Root != nil:
		return p.fail(at, form, "the DOCTYPE must stand before the root element")
	case p.doc.DoctypePos.Line != 0:
		return p.fail(at, form, "there is a second DOCTYPE")
	}
	p.take("<!DOCTYPE")
	p.doc.DoctypePos = at
	if p.space() {
		p.doc.Doctype = p.name()
	}
	if p.doc.Doctype == "" {
		return p.fail(p.pos, form, "the DOCTYPE names no root element")
	}
	p.space()
	ids := 0
	switch {
	case p.take("SYSTEM"):
		ids = 1
	case p.take("PUBLIC"):
		ids = 2
	}
	for ; ids > 0; ids-- {
		spaced := p.space()
		quote := p.peek()
		if !spaced || quote != '"' && quote != '\'' {
			return p.fail(p.pos, form, "the DOCTYPE lacks an identifier in quotes")
		}
		p.next()
		for p.peek() != quote {
			if p.end() {
				return p.fail(at, form, "the DOCTYPE that starts here is not closed")
			}
			if _, err := p.char(); err != nil {
				return err
			}
		}
		p.next()
	}
	p.space()
	if p.peek() == '[' {
		return p.fail(p.pos, "take out everything from [ to ]",
			"declarations inside the DOCTYPE are refused: entities could make the file say what nobody reads in it")
	}
	if !p.take(">") {
		return p.fail(p.pos, form, "the DOCTYPE is not closed here")
	}
	return nil
}

// root reads the root element and everything in it.
func (p *parser) root() *SyntaxError {
	if err := p.startTag(); err != nil {
		return err
	}
	for len(p.open) > 0 {
		at := p.pos
		var err *SyntaxError
		switch {
		case p.end():
			e := p.open[len(p.open)-1]
			return p.fail(at, fmt.Sprintf("close it with </%s>", e.Name),
				"the file ends inside <%s>, which starts at %d:%d", e.Name, e.Pos.Line, e.Pos.Col)
		case p.has("<!--"):
			err = p.comment()
		case p.has("<![CDATA["):
			err = p.cdata()
		case p.has("<?"):
			err = p.instruction()
		case p.has("<!"):
			return p.fail(at, "", "declarations are not allowed inside the root element")
		case p.has("</"):
			err = p.endTag()
		case p.peek() == '<':
			err = p.startTag()
		default:
			err = p.text()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// startTag reads <name attr="value" ...> or its empty form and opens the element.
func (p *parser) startTag() *SyntaxError {
	at, start := p.pos, p.off
	p.next()
	name := p.name()
	if name == "" {
		return p.fail(at, "write &lt; for the character itself", `"<" starts an element, but no name follows`)
	}
	if err := p.noNamespace(at, name); err != nil {
		return err
	}
	if p.elements++; p.elements > p.limits.Elements {
		return p.fail(at, "", "the file has more than %d elements", p.limits.Elements)
	}
	if len(p.open) >= p.limits.Depth {
		return p.fail(at, "", "elements are nested more than %d deep", p.limits.Depth)
	}
	e := &Element{Name: name, Pos: at, Span: Span{Start: start}}
	empty, err := p.attributes(e)
	if err != nil {
		if err.Element == "" {
			err.Element = name
		}
		return err
	}
	if n := len(p.open); n > 0 {
		p.open[n-1].Children = append(p.open[n-1].Children, e)
	} else {
		p.doc.Root = e
	}
	if empty {
		e.Complete = true
		e.Span = Span{start, p.off, p.off, p.off}
	} else {
		e.Span.Inner = p.off
		p.open = append(p.open, e)
	}
	return nil
}

// attributes reads the rest of a start tag and says whether it closes itself.
func (p *parser) attributes(e *Element) (empty bool, err *SyntaxError) {
	for {
		spaced := p.space()
		at := p.pos
		switch {
		case p.take("/>"):
			return true, nil
		case p.take(">"):
			return false, nil
		case p.end():
			return false, p.fail(at, "close it with > or />", "the file ends inside the tag <%s>, which starts at %d:%d", e.Name, e.Pos.Line, e.Pos.Col)
		case p.peek() == '<':
			return false, p.fail(at, fmt.Sprintf("close <%s with > or />", e.Name), "a new tag starts before the one at %d:%d is closed", e.Pos.Line, e.Pos.Col)
		case !isNameStart(p.peek()):
			return false, p.fail(at, `attributes are written name="value"`, "%q is not expected in a tag", p.peek())
		case !spaced:
			return false, p.fail(at, "put one there, or the quote that ends the value before it is missing", "there is no space before this attribute")
		case len(e.Attrs) >= p.limits.Attributes:
			return false, p.fail(at, "", "the element has more than %d attributes", p.limits.Attributes)
		}
		attr, err := p.attribute(e.Name)
		if err != nil {
			return false, err
		}
		e.Attrs = append(e.Attrs, attr)
	}
}

// attribute reads name="value"; the cursor stands on the name.
func (p *parser) attribute(element string) (Attr, *SyntaxError) {
	a := Attr{Pos: p.pos}
	fail := func(at Pos, hint, format string, args ...any) (Attr, *SyntaxError) {
		err := p.fail(at, hint, format, args...)
		err.Element = element
		return Attr{}, err
	}
	a.Name = p.name()
	if err := p.noNamespace(a.Pos, a.Name); err != nil {
		err.Element = element
		return Attr{}, err
	}
	form := fmt.Sprintf("write %s=\"value\"", a.Name)
	p.space()
	if !p.take("=") {
		return fail(p.pos, form, "attribute %s has no value", a.Name)
	}
	p.space()
	quote := p.peek()
	if quote != '"' && quote != '\'' {
		return fail(p.pos, form, "the value of attribute %s is not in quotes", a.Name)
	}
	p.next()
	a.ValuePos = p.pos
	start := p.off
	var value strings.Builder
	for p.peek() != quote {
		at := p.pos
		switch r := p.peek(); {
		case r == eof:
			return fail(at, "close it with "+string(quote), "the file ends inside the value of %s, which starts at %d:%d", a.Name, a.ValuePos.Line, a.ValuePos.Col)
		case r == '<':
			return fail(at, "write &lt; for the character itself, or close the value before it",
				`"<" in the value of %s, which starts at %d:%d`, a.Name, a.ValuePos.Line, a.ValuePos.Col)
		case r == '&':
			c, err := p.reference()
			if err != nil {
				err.Element = element
				return Attr{}, err
			}
			value.WriteRune(c)
		case isSpace(r):
			p.next()
			value.WriteByte(' ') // XML 1.0 section 3.3.3
		case !isChar(r):
			return fail(at, "", "character U+%04X is not allowed in XML", r)
		default:
			value.WriteRune(p.next())
		}
	}
	a.raw = p.src[start:p.off]
	p.next()
	a.Value = value.String()
	return a, nil
}

// noNamespace refuses names with a colon: a prefix would be decoration that readers
// take for meaning.
func (p *parser) noNamespace(at Pos, name string) *SyntaxError {
	if strings.Contains(name, ":") {
		return p.fail(at, "write the name without the colon", "name %q: namespaces are not used here", name)
	}
	return nil
}

// endTag reads </name> and closes the innermost element.
func (p *parser) endTag() *SyntaxError {
	at, inner := p.pos, p.off
	p.take("</")
	name := p.name()
	e := p.open[len(p.open)-1]
	if name != e.Name {
		return p.fail(at, fmt.Sprintf("close it with </%s>", e.Name), "</%s> stands where <%s>, which starts at %d:%d, is to be closed", name, e.Name, e.Pos.Line, e.Pos.Col)
	}
	p.space()
	if !p.take(">") {
		return p.fail(p.pos, "", "the end tag </%s> is not closed with >", name)
	}
	e.Complete = true
	e.Span.InnerEnd, e.Span.End = inner, p.off
	p.open = p.open[:len(p.open)-1]
	return nil
}

// text reads character data up to the next tag.
func (p *parser) text() *SyntaxError {
	var run textRun
	for !p.end() && p.peek() != '<' {
		at := p.pos
		switch r := p.peek(); {
		case r == '&':
			c, err := p.reference()
			if err != nil {
				return err
			}
			run.add(at, c)
		case p.has("]]>"):
			return p.fail(at, "write ]]&gt;", `"]]>" is not allowed in text`)
		default:
			r, err := p.char()
			if err != nil {
				return err
			}
			run.add(at, r)
		}
	}
	p.addText(&run)
	return nil
}

// cdata reads <![CDATA[ ... ]]>.
func (p *parser) cdata() *SyntaxError {
	start := p.pos
	p.take("<![CDATA[")
	var run textRun
	for !p.end() {
		if p.take("]]>") {
			p.addText(&run)
			return nil
		}
		at := p.pos
		r, err := p.char()
		if err != nil {
			return err
		}
		run.add(at, r)
	}
	return p.fail(start, "end it with ]]>", "the CDATA section that starts here is not closed")
}

// textRun collects character data and the place of its first visible character.
type textRun struct {
	data  strings.Builder
	first Pos
}

func (t *textRun) add(at Pos, r rune) {
	if t.first.Line == 0 && !isSpace(r) {
		t.first = at
	}
	t.data.WriteRune(r)
}

func (p *parser) addText(run *textRun) {
	if run.first.Line == 0 {
		return
	}
	e := p.open[len(p.open)-1]
	e.Texts = append(e.Texts, Text{Pos: run.first, Data: run.data.String()})
}
