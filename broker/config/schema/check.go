package schema

import (
	"slices"
	"strconv"
	"strings"

	"sshbroker/broker/config/xmldoc"
)

// Node is an element that the schema knows, with its good attributes and its known
// children.
type Node struct {
	Name     string
	Pos      Pos
	Children []*Node
	Flawed   bool // an attribute is missing or bad: what would follow from the rest is not judged

	xml    *xmldoc.Element
	spec   *element
	values map[string]value
}

// value is an attribute that fits its kind.
type value struct {
	text     string // variables expanded; of an enum the spelling of the schema
	number   uint64
	attr     *xmldoc.Attr
	verbatim bool // text is what the file says, so that offsets in it have a position
}

// Get returns the value of an attribute; ok is false where it is absent or bad.
func (n *Node) Get(name string) (text string, ok bool) {
	v, ok := n.values[name]
	return v.text, ok
}

// Str returns the value of an attribute, "" where it is absent.
func (n *Node) Str(name string) string { return n.values[name].text }

// Yes returns a yes/no attribute, no where it is absent.
func (n *Node) Yes(name string) bool { return n.values[name].text == "yes" }

// Number returns a number that is given and not empty.
func (n *Node) Number(name string) (uint64, bool) {
	v, ok := n.values[name]
	return v.number, ok && v.text != ""
}

// At returns where the value of an attribute stands, else where the element does.
func (n *Node) At(name string) Pos {
	if v, ok := n.values[name]; ok {
		return v.attr.ValuePos
	}
	return n.Pos
}

// Inside returns the place of byte off of an attribute's value.
func (n *Node) Inside(name string, off int) Pos {
	if v, ok := n.values[name]; ok && v.verbatim {
		return v.attr.At(off)
	}
	return n.At(name)
}

// Child returns the first child of that name, nil where there is none.
func (n *Node) Child(name string) *Node {
	for _, c := range n.Children {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// Given returns how many attributes have a good value.
func (n *Node) Given() int { return len(n.values) }

// Knows tells whether the schema gives the element an attribute of that name.
func (n *Node) Knows(attr string) bool { return n.spec.attr(attr) != nil }

// Text returns the character data of the element, trimmed, and where it starts.
func (n *Node) Text() (string, Pos) {
	if len(n.xml.Texts) == 0 {
		return "", n.Pos
	}
	return n.xml.Text(), n.xml.Texts[0].Pos
}

// Texts returns the runs of character data in the element.
func (n *Node) Texts() []xmldoc.Text { return n.xml.Texts }

// All returns the children of that name.
func (n *Node) All(name string) []*Node {
	var list []*Node
	for _, c := range n.Children {
		if c.Name == name {
			list = append(list, c)
		}
	}
	return list
}

// Expander replaces the variables in a value.
type Expander interface {
	Expand(value string) Expansion
}

// Expansion is a value with its variables replaced.
type Expansion struct {
	Text  string
	Unset []string // names of variables that stand for nothing
	Err   *ExpandError
}

// ExpandError is a variable that is not written as one.
type ExpandError struct {
	Offset int // in bytes, of the value
	Msg    string
	Hint   string
}

// Checker holds one document against the schema.
type Checker struct {
	*Findings
	vars     Expander
	remarked map[string]bool // what was already said once for this file
}

// NewChecker makes a checker that adds to f.
func NewChecker(f *Findings, vars Expander) *Checker {
	return &Checker{Findings: f, vars: vars, remarked: make(map[string]bool)}
}

// Document checks a document, also a partial one; nil where it is something else
// altogether.
func (c *Checker) Document(doc *xmldoc.Document) *Node {
	if doc.Doctype != "" && doc.Doctype != RootName {
		c.Fail(doc.DoctypePos, "", "write <!DOCTYPE "+RootName+" ...>", "the DOCTYPE is for %s", doc.Doctype)
	}
	if doc.Root == nil {
		return nil
	}
	if doc.Root.Name != RootName {
		c.Fail(doc.Root.Pos, doc.Root.Name, "the root element is "+RootName, "this is not a broker configuration")
		return nil
	}
	return c.element(doc.Root, elementNamed(RootName), false)
}

// element checks e and everything in it. quiet is set below an element of which it
// was already said that it is not acted on.
func (c *Checker) element(e *xmldoc.Element, spec *element, quiet bool) *Node {
	n := &Node{Name: e.Name, Pos: e.Pos, xml: e, spec: spec, values: make(map[string]value, len(e.Attrs))}
	if spec.status != General && (len(e.Attrs) > 0 || len(e.Children) > 0 || len(e.Texts) > 0) {
		if !quiet {
			c.Remark(spec.status, e.Pos, spec.name, "")
		}
		quiet = true
	}
	if spec.open {
		return n
	}
	c.attributes(n, quiet)
	c.content(n, quiet)
	return n
}

// remark says once a file that something is read but has no effect.
func (c *Checker) Remark(status Kind, pos Pos, element, attr string) {
	key := element + " " + attr
	if c.remarked[key] {
		return
	}
	c.remarked[key] = true
	msg := "read, but not acted on"
	if status == NotBuilt {
		msg = "not built yet: read, but without effect"
	}
	if attr != "" {
		msg = attr + ": " + msg
	}
	c.Warn(status, pos, element, "", "%s", msg)
}

func (c *Checker) attributes(n *Node, quiet bool) {
	seen := make(map[string]Pos, len(n.xml.Attrs))
	meant := make(map[string]bool) // attributes that a misspelt one stands for
	for i := range n.xml.Attrs {
		a := &n.xml.Attrs[i]
		if first, twice := seen[a.Name]; twice {
			c.Fail(a.Pos, n.Name, "keep one of them", "attribute %s stands twice, first at %d:%d", a.Name, first.Line, first.Col)
			n.Flawed = true
			continue
		}
		seen[a.Name] = a.Pos
		spec := n.spec.attr(a.Name)
		if spec == nil {
			names := n.spec.attrNames()
			meant[Suggest(a.Name, names)] = true
			c.Fail(a.Pos, n.Name, DidYouMean(a.Name, names, Allowed("attributes", names)), "%s is not an attribute of %s", a.Name, n.Name)
			n.Flawed = true
			continue
		}
		v, ok := c.value(n, a, spec)
		if !ok {
			n.Flawed = true
			continue
		}
		n.values[a.Name] = v
		if spec.status != General && !quiet && !slices.Contains(spec.quiet, v.text) {
			c.Remark(spec.status, a.Pos, n.Name, a.Name)
		}
	}
	for _, spec := range n.spec.attrs {
		if _, given := seen[spec.name]; spec.required && !given {
			n.Flawed = true
			if !meant[spec.name] {
				c.Fail(n.Pos, n.Name, "add "+form(&spec), "attribute %s is missing", spec.name)
			}
		}
	}
}

// allowed lists names for a hint.
func Allowed(what string, names []string) string {
	if len(names) == 0 {
		return "it has no " + what
	}
	return what + ": " + strings.Join(names, ", ")
}

// form shows how an attribute is written.
func form(a *attribute) string {
	switch a.kind {
	case yesNo:
		return a.name + `="yes|no"`
	case enum:
		return a.name + `="` + strings.Join(a.values, "|") + `"`
	}
	return a.name + `="..."`
}

// value expands an attribute and holds it against its kind.
func (c *Checker) value(n *Node, a *xmldoc.Attr, spec *attribute) (value, bool) {
	v := value{text: a.Value, attr: a, verbatim: true}
	switch spec.kind {
	case literal:
		return v, true
	case pattern:
		if c.vars.Expand(a.Value).Text != a.Value {
			c.Warn(General, a.ValuePos, n.Name, "", "variables are not expanded in the regular expression %s", a.Name)
		}
		return v, true
	}

	var ok bool
	if v.text, ok = c.expand(n, a, c.vars); !ok {
		return v, false
	}
	v.verbatim = v.text == a.Value

	switch spec.kind {
	case yesNo:
		v.text = strings.ToLower(v.text)
		if v.text != "yes" && v.text != "no" {
			c.Fail(a.ValuePos, n.Name, "write yes or no", "%s: %q is neither yes nor no", a.Name, v.text)
			return v, false
		}
	case enum:
		if v.text == "" && spec.mayEmpty {
			return v, true
		}
		i := slices.IndexFunc(spec.values, func(s string) bool { return strings.EqualFold(s, v.text) })
		if i < 0 {
			c.Fail(a.ValuePos, n.Name, enumHint(v.text, spec.values), "%s: %q is not one of %s", a.Name, v.text, strings.Join(spec.values, ", "))
			return v, false
		}
		v.text = spec.values[i]
	case number:
		if v.text == "" && spec.mayEmpty {
			return v, true
		}
		var err error
		if v.number, err = strconv.ParseUint(v.text, 10, 64); err != nil || v.number < spec.min || v.number > spec.max {
			hint := ""
			if spec.max == maxSeconds {
				hint = "write seconds, without a unit"
			}
			c.Fail(a.ValuePos, n.Name, hint, "%s: %q is not a number from %d to %d", a.Name, v.text, spec.min, spec.max)
			return v, false
		}
	}
	return v, true
}

// expand replaces the variables in the value of an attribute.
func (c *Checker) expand(n *Node, a *xmldoc.Attr, vars Expander) (text string, ok bool) {
	expanded := vars.Expand(a.Value)
	if err := expanded.Err; err != nil {
		c.Fail(a.At(err.Offset), n.Name, err.Hint, "%s: %s", a.Name, err.Msg)
		return "", false
	}
	for _, name := range expanded.Unset {
		c.Warn(General, a.ValuePos, n.Name, "", "variable %s in %s is not set and stands for nothing", name, a.Name)
	}
	return expanded.Text, true
}

// Expanded is Get for an attribute that is taken as it stands, with the variables of
// vars replaced. What is wrong with them is reported; ok is false then.
func (c *Checker) Expanded(n *Node, attr string, vars Expander) (text string, ok bool) {
	v, given := n.values[attr]
	if !given {
		return "", false
	}
	return c.expand(n, v.attr, vars)
}

// enumHint knows the one name that people take from the product's feature list, and
// the words of firewalls.
func enumHint(word string, values []string) string {
	called, upper := "", strings.ToUpper(word)
	switch upper {
	case "FTP-SFTP":
		called, upper = "FTP-PROXY", "FTP-SFTP conversion"
	case "DENY", "DROP", "REJECT", "REFUSE":
		called = "BLOCK"
	case "PASS", "ALLOW", "ACCEPT", "PLAIN":
		called = "DIRECT"
	}
	if slices.Contains(values, called) {
		return upper + " is called " + called
	}
	return DidYouMean(word, values, "")
}

// content checks names, number and order of the children, and text.
func (c *Checker) content(n *Node, quiet bool) {
	if !n.spec.text {
		for _, t := range n.xml.Texts {
			c.Fail(t.Pos, n.Name, "a forgotten comment is written <!-- ... -->", "text is not allowed here")
		}
	}
	first := make(map[string]Pos)
	last, lastName := -1, ""
	for _, e := range n.xml.Children {
		i, ok := n.spec.child(e.Name)
		if !ok {
			c.misplaced(n, e)
			continue
		}
		at, twice := first[e.Name]
		switch {
		case twice && n.spec.children[i].occurs == atMostOnce:
			c.Fail(e.Pos, e.Name, "join them", "%s holds a second %s, the first is at %d:%d", n.Name, e.Name, at.Line, at.Col)
		case n.spec.ordered && i < last:
			c.Fail(e.Pos, e.Name, "the order is: "+strings.Join(n.spec.childNames(), ", "), "%s must stand before %s", e.Name, lastName)
		default:
			last, lastName = i, e.Name
		}
		if !twice {
			first[e.Name] = e.Pos
		}
		n.Children = append(n.Children, c.element(e, elementNamed(e.Name), quiet))
	}
}

// misplaced reports an element that its parent cannot hold.
func (c *Checker) misplaced(parent *Node, e *xmldoc.Element) {
	names := parent.spec.childNames()
	hint := DidYouMean(e.Name, names, "")
	if parents := parentsOf(e.Name); hint == "" && len(parents) > 0 {
		hint = "it belongs in " + strings.Join(parents, " or ")
	}
	if hint == "" {
		hint = Allowed("elements", names)
	}
	c.Fail(e.Pos, e.Name, hint, "%s cannot hold an element %s", parent.Name, e.Name)
}
