package values

import (
	"fmt"
	"slices"
	"strings"

	"sshbroker/broker/config"
	"sshbroker/broker/config/schema"
	"sshbroker/broker/config/xmldoc"
)

// Origin is where a value comes from.
type Origin uint8

// The zero Origin is nowhere.
const (
	NotSet  Origin = iota // it may be given, and is not; it has no default that is a text
	Factory               // the factory default
	File                  // a file has it
)

func (o Origin) String() string {
	switch o {
	case NotSet:
		return "not set"
	case Factory:
		return "factory default"
	case File:
		return "file"
	}
	return fmt.Sprintf("Origin(%d)", uint8(o))
}

// Files are the files that make up a configuration; each may be "".
type Files struct{ Global, User string }

// Tree is all that is in force.
type Tree struct{ root *element }

type element struct {
	name     string
	pos      schema.Pos // zero where no file has it
	attrs    []attr     // every one that the schema has, in its order
	children []*element
	text     string // character data
	textPos  schema.Pos
	effect   schema.Kind
	password *element // of authentication-methods: that of a list below, which still counts
}

type attr struct {
	name   string
	text   string
	origin Origin
	pos    schema.Pos
	effect schema.Kind
	secret bool
}

// secrets are the attributes whose values are never told.
var secrets = map[string]string{"password": "string", "identity": "data"}

// accounts are those that have a secret where an @ is in them: [user:password@]server.
var accounts = map[string]string{"proxy": "ruleset"}

// Load reads the files and merges them. Its error is a config.Problems where a file is
// not well-formed or does not fit the schema.
func Load(files Files, env config.Env) (*Tree, error) {
	global, err := read(files.Global, env)
	if err != nil {
		return nil, err
	}
	user, err := read(files.User, env)
	if err != nil {
		return nil, err
	}
	return &Tree{root: combine(global, user, env)}, nil
}

// read returns what one file says, nil for no file.
func read(name string, env config.Env) (*element, error) {
	if name == "" {
		return nil, nil
	}
	data, err := config.ReadFile(name)
	if err != nil {
		return nil, err
	}
	doc, err := xmldoc.Parse(name, data, xmldoc.DefaultLimits())
	if err != nil {
		return nil, err
	}
	var found schema.Findings
	root := schema.NewChecker(&found, env).Document(doc)
	if bad := found.Sorted().Errors(); len(bad) > 0 {
		return nil, bad
	}
	return said(root, schema.General, env), nil
}

// said is an element as a file has it; effect is that of the elements around it.
func said(n *schema.Node, effect schema.Kind, env config.Env) *element {
	e := empty(n.Name, effect)
	e.pos = n.Pos
	e.text, e.textPos = n.Text()
	for i := range e.attrs {
		a := &e.attrs[i]
		if text, ok := n.Get(a.name); ok {
			a.text, a.origin, a.pos = variables(text, env), File, n.At(a.name)
			a.secret = a.secret || accounts[e.name] == a.name && strings.Contains(text, "@")
			a.effect = max(e.effect, attributeOf(e.name, a.name).Effect(text))
		}
	}
	for _, c := range n.Children {
		e.children = append(e.children, said(c, e.effect, env))
	}
	return e
}

// empty is an element that says nothing.
func empty(name string, effect schema.Kind) *element {
	e := &element{name: name, effect: max(effect, schema.Effect(name))}
	for _, a := range schema.Attributes(name) {
		e.attrs = append(e.attrs, attr{name: a.Name, effect: e.effect, secret: secrets[name] == a.Name})
	}
	return e
}

func attributeOf(element, name string) schema.Attribute {
	list := schema.Attributes(element)
	return list[slices.IndexFunc(list, func(a schema.Attribute) bool { return a.Name == name })]
}

// userDirVariable stands for the user's own directory, in one place only.
const userDirVariable = "%USER_CONFIG_DIRECTORY%"

func variables(text string, env config.Env) string {
	if strings.EqualFold(text, userDirVariable) {
		return env.UserDir()
	}
	return text
}

func (e *element) attr(name string) *attr {
	for i := range e.attrs {
		if e.attrs[i].name == name {
			return &e.attrs[i]
		}
	}
	return nil
}

// get returns the value of an attribute, "" where it is not set.
func (e *element) get(name string) string {
	if a := e.attr(name); a != nil {
		return a.text
	}
	return ""
}

func (e *element) child(names ...string) *element {
	for _, name := range names {
		i := slices.IndexFunc(e.children, func(c *element) bool { return c.name == name })
		if i < 0 {
			return nil
		}
		e = e.children[i]
	}
	return e
}

// many tells whether an element may hold several of that name.
func many(parent, name string) bool {
	return slices.Contains(schema.Children(parent), schema.Child{Name: name, Many: true})
}
