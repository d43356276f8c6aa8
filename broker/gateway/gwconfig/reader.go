package gwconfig

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"sshbroker/broker/config/schema"
)

// reader turns the nodes of one file into values, and notes down all that is wrong.
type reader struct {
	schema.Findings
	name  string // of the file
	dir   string // what relative paths are relative to
	nodes int    // looked at so far
	wrong int    // errors so far
}

// value is what stands at one place.
type value struct {
	node *yaml.Node // with aliases followed; nil where nothing is said
	pos  schema.Pos // where it stands; where nothing is said, where it could
	path string     // for people: services[0].backend
	row  string     // in the table of keys: services[].backend
}

// given tells whether something is said.
func (v value) given() bool { return v.node != nil }

func (r *reader) fail(v value, hint, format string, args ...any) {
	r.wrong++
	r.Fail(v.pos, v.path, hint, format, args...)
}

func (r *reader) warn(v value, hint, format string, args ...any) {
	r.Warn(schema.General, v.pos, v.path, hint, format, args...)
}

// value makes one of a node, behind an alias or not. What is null, or beyond the bounds, is
// an error, and then as if nothing was said.
func (r *reader) value(n *yaml.Node, path, row string) value {
	v := value{nil, schema.Pos{File: r.name, Line: n.Line, Col: n.Column}, path, row}
	if r.nodes++; r.nodes > maxNodes {
		if r.nodes == maxNodes+1 {
			r.fail(v, "use fewer aliases, or split the file", "the file has more than %d values", maxNodes)
		}
		return v
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
		if n.Kind == yaml.AliasNode {
			return v
		}
	}
	if n.Style&yaml.TaggedStyle != 0 {
		r.fail(v, "remove it", "the tag %s is not read", n.Tag)
		return v
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		r.fail(v, "give it one, or remove the key", "it has no value")
		return v
	}
	v.node = n
	return v
}

// kind is what a value is, for people.
func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.Tag {
	case "!!str":
		return "text"
	case "!!bool":
		return "true or false"
	case "!!int", "!!float":
		return "a number"
	case "!!timestamp":
		return "a date"
	}
	return "something else"
}

func (r *reader) wrongType(v value, wanted string) {
	hint := ""
	if v.node.Kind == yaml.ScalarNode {
		switch {
		case v.node.Tag != "!!str" && strings.HasPrefix(wanted, "text"):
			hint = fmt.Sprintf("put it in quotes: %q", v.node.Value)
		case v.node.Tag == "!!str" && v.node.Style != 0:
			hint = "remove the quotes"
		}
	}
	r.fail(v, hint, "this is %s, and has to be %s", kind(v.node), wanted)
}

// pair is an entry of a mapping.
type pair struct {
	key, value value
	name       string
}

// pairs returns the entries of a mapping, each name once.
func (r *reader) pairs(v value) []pair {
	if !v.given() {
		return nil
	}
	if v.node.Kind != yaml.MappingNode {
		r.wrongType(v, "a mapping")
		return nil
	}
	var list []pair
	first := make(map[string]schema.Pos)
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		key := r.value(v.node.Content[i], v.path, v.row)
		if !key.given() {
			continue
		}
		if key.node.Kind != yaml.ScalarNode {
			r.fail(key, "", "a key is %s, and has to be text", kind(key.node))
			continue
		}
		name := key.node.Value
		if key.node.Tag == "!!merge" {
			r.fail(key, "write the keys out", "merging mappings is not read")
			continue
		}
		path := strings.TrimPrefix(v.path+"."+name, ".")
		if at, ok := first[name]; ok {
			key.path = path
			r.fail(key, "remove one of them", "the key stands here a second time; the first is at %d:%d", at.Line, at.Col)
			continue
		}
		first[name] = key.pos
		list = append(list, pair{key, r.value(v.node.Content[i+1], path, strings.TrimPrefix(v.row+"."+name, ".")), name})
	}
	return list
}

// object is a mapping with the keys of the table.
type object struct {
	value
	fields   map[string]value
	misspelt bool // it has keys that are not known, so that others may only seem to be missing
}

// object reads a mapping whose keys are those of its row; also maps other spellings of
// keys to those. It is false where there is none.
func (r *reader) object(v value, also map[string]string) (object, bool) {
	o := object{value: v, fields: make(map[string]value)}
	if !v.given() || v.node.Kind != yaml.MappingNode {
		r.pairs(v)
		return o, false
	}
	names := make([]string, 0, len(children[v.row]))
	for _, k := range children[v.row] {
		names = append(names, k.Name())
	}
	meant := make(map[string]bool)
	for _, p := range r.pairs(v) {
		name := p.name
		if other, ok := also[name]; ok {
			name = other
			p.value.row = v.row + "." + name
		}
		if _, ok := table[p.value.row]; !ok {
			o.misspelt = true
			meant[schema.Suggest(name, names)] = true
			r.fail(p.key, schema.DidYouMean(name, names, "keys here: "+strings.Join(names, ", ")), "there is no key %s", p.name)
			continue
		}
		if _, ok := o.fields[name]; ok {
			r.fail(p.key, "remove one of them", "%s stands here in two spellings", name)
			continue
		}
		o.fields[name] = p.value
	}
	for _, k := range children[v.row] {
		if _, ok := o.fields[k.Name()]; !ok && k.Required && !meant[k.Name()] {
			r.fail(v, "add "+k.Name()+": ("+k.Type+")", "%s is missing", k.Name())
		}
	}
	return o, true
}

// get returns the value of a key, one that is not given where it is missing.
func (o object) get(name string) value {
	if v, ok := o.fields[name]; ok {
		return v
	}
	return value{nil, o.pos, strings.TrimPrefix(o.path+"."+name, "."), strings.TrimPrefix(o.row+"."+name, ".")}
}

// list returns the entries of a list. One that is empty is an error: it could be taken for
// all as well as for none.
func (r *reader) list(v value) []value {
	if !v.given() {
		return nil
	}
	if v.node.Kind != yaml.SequenceNode {
		r.wrongType(v, "a list")
		return nil
	}
	if emptyList(v) {
		r.fail(v, "list something, or remove the key", "the list is empty")
	}
	var list []value
	for i, n := range v.node.Content {
		if entry := r.value(n, fmt.Sprintf("%s[%d]", v.path, i), v.row+"[]"); entry.given() {
			list = append(list, entry)
		}
	}
	return list
}

func emptyList(v value) bool {
	return v.given() && v.node.Kind == yaml.SequenceNode && len(v.node.Content) == 0
}

// oneOrMore is list for what may also be given alone.
func (r *reader) oneOrMore(v value) []value {
	if v.given() && v.node.Kind == yaml.ScalarNode {
		return []value{v}
	}
	return r.list(v)
}

// scalar returns the text of a value of the wanted type, or the default of its row where
// nothing is said. It is false where there is neither, and after an error.
func (r *reader) scalar(v value, wanted string, tags ...string) (string, bool) {
	if !v.given() {
		def := table[v.row].Default
		return def, def != ""
	}
	if v.node.Kind == yaml.ScalarNode && slices.Contains(tags, v.node.Tag) {
		return v.node.Value, true
	}
	r.wrongType(v, wanted)
	return "", false
}

const maxText = 1024 // bytes of a text

// text returns text on one line, "" where nothing is said and after an error.
func (r *reader) text(v value) string {
	s, ok := r.scalar(v, "text", "!!str")
	switch {
	case !ok:
		return ""
	case s == "" && v.given():
		r.fail(v, "say something, or remove it", "the text is empty")
	case strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f }):
		r.fail(v, "", "it has a control character or more than one line")
	case len(s) > maxText:
		r.fail(v, "", "it has more than %d bytes", maxText)
	default:
		return s
	}
	return ""
}

var goodName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// ident returns a name of ours: of a service, a role, a policy.
func (r *reader) ident(v value) string {
	s := r.text(v)
	if s != "" && !goodName.MatchString(s) {
		r.fail(v, "use letters, digits, dots, hyphens and underscores, 63 at most, and begin with a letter or digit", "%q is not a name", s)
		return ""
	}
	return s
}

// file returns a path; one that is relative belongs to the directory of the file.
func (r *reader) file(v value) string {
	s := r.text(v)
	if s != "" && !filepath.IsAbs(s) {
		return filepath.Join(r.dir, s)
	}
	return s
}

func (r *reader) yes(v value) bool {
	s, _ := r.scalar(v, "true or false", "!!bool")
	return strings.EqualFold(s, "true")
}

// number returns a decimal number between two bounds, 0 after an error.
func (r *reader) number(v value, low, high int) int {
	s, ok := r.scalar(v, "a whole number", "!!int")
	if !ok {
		return 0
	}
	return r.decimal(v, s, "number", low, high)
}

// port returns a port, 0 where nothing is said and after an error. It may stand in quotes,
// as Banyan writes it.
func (r *reader) port(v value) uint16 {
	s, ok := r.scalar(v, "a port", "!!int", "!!str")
	if !ok {
		return 0
	}
	return uint16(r.decimal(v, s, "port", 1, 65535))
}

// plain is a number that YAML 1.1, YAML 1.2 and people read alike: 010 is not one.
var plain = regexp.MustCompile(`^(0|[1-9][0-9]*)$`)

func (r *reader) decimal(v value, s, what string, low, high int) int {
	n, err := strconv.Atoi(s)
	if err != nil || !plain.MatchString(s) || n < low || n > high {
		r.fail(v, "", "%q is not a %s from %d to %d", s, what, low, high)
		return 0
	}
	return n
}

// duration returns one between two bounds, 0 after an error.
func (r *reader) duration(v value, low, high time.Duration) time.Duration {
	const cure = "write a number with a unit, as 10s, 5m or 1h"
	s, ok := r.scalar(v, "a duration", "!!str", "!!int")
	if !ok {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < low || d > high || s != "0" && v.given() && v.node.Tag == "!!int" {
		r.fail(v, cure, "%q is not a duration from %v to %v", s, low, high)
		return 0
	}
	return d
}

// choice returns one of the words of the type of its row, "" after an error.
func (r *reader) choice(v value) string {
	s := r.text(v)
	words := strings.Split(table[v.row].Type, " | ")
	if s == "" || slices.Contains(words, s) {
		return s
	}
	r.fail(v, schema.DidYouMean(s, words, "write one of them"), "%q is not one of %s", s, strings.Join(words, ", "))
	return ""
}
