package values

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"sshbroker/broker/config/schema"
)

// Value is one value, or an element that is there and says nothing more.
type Value struct {
	Path   string // to this attribute alone, or to an element and what is in it
	Text   string // Hidden, where it is secret
	Secret bool
	Origin Origin
	Pos    schema.Pos  // where Origin is File
	Effect schema.Kind // General: it is acted on
}

// Hidden stands for a value that is not told.
const Hidden = "(secret)"

// ErrNoPath is the class of errors about paths that lead nowhere.
var ErrNoPath = errors.New("there is no such value")

// NotFoundError says where a path ends, and what may have been meant.
type NotFoundError struct {
	Msg, Hint string
}

func (e *NotFoundError) Error() string { return e.Msg }

// Is makes it an ErrNoPath.
func (e *NotFoundError) Is(target error) bool { return target == ErrNoPath }

// Find returns the values at a path: those of the attributes it leads to, or
// everything in the elements it leads to. Its error is a *NotFoundError.
func (t *Tree) Find(p Path) ([]Value, error) {
	found := []place{{e: t.root}}
	for i, s := range p.steps {
		if s.attr {
			return attributes(found, s.name)
		}
		var next []place
		for _, at := range found {
			next = append(next, at.step(s)...)
		}
		if len(next) == 0 {
			return nil, missing(found, Path{p.steps[:i]}, s)
		}
		found = next
	}
	var list []Value
	for _, at := range found {
		list = at.all(list)
	}
	if len(list) == 0 {
		return nil, &NotFoundError{Msg: fmt.Sprintf("no file says anything at %v, and it has no default", p)}
	}
	return list, nil
}

// place is an element and the path to it.
type place struct {
	e    *element
	path string
}

// below returns the children with their paths.
func (at place) below() []place {
	type named struct{ name, id string }
	ids := make(map[named]int)
	for _, c := range at.e.children {
		ids[named{c.name, c.get("id")}]++
	}
	list := make([]place, len(at.e.children))
	count := make(map[string]int)
	for i, c := range at.e.children {
		count[c.name]++
		step, id := c.name, c.get("id")
		switch one := (predicate{attr: "id", equals: true, value: id}); {
		case !many(at.e.name, c.name):
		case id == "" || ids[named{c.name, id}] > 1 || strings.Contains(id, "'") && strings.Contains(id, `"`):
			step += "[" + strconv.Itoa(count[c.name]) + "]"
		default:
			step += "[" + one.String() + "]"
		}
		list[i] = place{c, at.join(step)}
	}
	return list
}

func (at place) join(step string) string {
	if at.path == "" {
		return step
	}
	return at.path + "/" + step
}

// step returns where a step leads from one element.
func (at place) step(s step) []place {
	found := slices.DeleteFunc(at.below(), func(c place) bool { return s.name != "*" && c.e.name != s.name })
	for _, one := range s.predicates {
		found = one.filter(found)
	}
	return found
}

func (one predicate) filter(list []place) []place {
	if one.attr == "" {
		if one.number > len(list) {
			return nil
		}
		return list[one.number-1 : one.number]
	}
	return slices.DeleteFunc(slices.Clone(list), func(at place) bool {
		a := at.e.attr(one.attr)
		return a == nil || a.origin == NotSet || one.equals && (a.secret || a.text != one.value)
	})
}

// attributes returns the values of one attribute of each element, or of all.
func attributes(found []place, name string) ([]Value, error) {
	var list []Value
	var names, elements []string
	for _, at := range found {
		elements = append(elements, at.e.name)
		for _, a := range at.e.attrs {
			names = append(names, a.name)
			if name == a.name || name == "*" && a.origin != NotSet {
				list = append(list, at.value(a))
			}
		}
	}
	slices.Sort(elements)
	owner := strings.Join(slices.Compact(elements), ", ")
	switch {
	case len(list) > 0:
		return list, nil
	case name == "*":
		return nil, &NotFoundError{Msg: "no attribute of " + owner + " is set"}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return nil, &NotFoundError{Msg: fmt.Sprintf("%s has no attribute %s", owner, name), Hint: schema.DidYouMean(name, names, schema.Allowed("attributes", names))}
}

func (at place) value(a attr) Value {
	v := Value{Path: at.join("@" + a.name), Text: a.text, Origin: a.origin, Pos: a.pos, Effect: a.effect}
	if a.secret && a.origin != NotSet {
		v.Text, v.Secret = Hidden, true
	}
	return v
}

// all adds everything that is said in an element.
func (at place) all(list []Value) []Value {
	before := len(list)
	for _, a := range at.e.attrs {
		if a.origin != NotSet {
			list = append(list, at.value(a))
		}
	}
	if at.e.text != "" {
		list = append(list, Value{Path: at.path, Text: at.e.text, Origin: File, Pos: at.e.textPos, Effect: at.e.effect})
	}
	for _, c := range at.below() {
		list = c.all(list)
	}
	if at.e.pos.Line > 0 && at.path != "" && !slices.ContainsFunc(list[before:], func(v Value) bool { return v.Origin == File }) {
		list = slices.Insert(list, before, Value{Path: at.path, Origin: File, Pos: at.e.pos, Effect: at.e.effect})
	}
	return list
}

// missing explains why a step leads nowhere from the elements found so far.
func missing(found []place, path Path, s step) error {
	var names, near []string
	var parents []string
	for _, at := range found {
		for _, c := range schema.Children(at.e.name) {
			names = append(names, c.Name)
		}
		for _, c := range at.e.children {
			if c.name == s.name {
				near = append(near, c.name)
			}
		}
		parents = append(parents, at.e.name)
	}
	slices.Sort(parents)
	parent := strings.Join(slices.Compact(parents), ", ")
	slices.Sort(names)
	names = slices.Compact(names)
	switch {
	case s.name == "*" && len(s.predicates) == 0:
		return &NotFoundError{Msg: fmt.Sprintf("there is no element in %s", parent)}
	case s.name != "*" && !slices.Contains(names, s.name):
		return &NotFoundError{Msg: fmt.Sprintf("%s has no element %s", parent, s.name), Hint: schema.DidYouMean(s.name, names, schema.Allowed("elements", names))}
	case len(near) == 0 && s.name != "*":
		return &NotFoundError{Msg: fmt.Sprintf("no file has an element %s in %s", s.name, parent)}
	}
	for n := range s.predicates {
		before := step{name: s.name, predicates: s.predicates[:n]}
		var list, left []place
		for _, at := range found {
			of := at.step(before)
			list = append(list, of...)
			left = append(left, s.predicates[n].filter(of)...)
		}
		if len(left) == 0 {
			return unlike(list, path, before, s.predicates[n])
		}
	}
	return &NotFoundError{Msg: fmt.Sprintf("there is no %v", s.name)}
}

// unlike explains why none of list fits a predicate.
func unlike(list []place, path Path, before step, one predicate) error {
	what := Path{append(slices.Clone(path.steps), before)}
	if one.attr == "" {
		return &NotFoundError{Msg: fmt.Sprintf("there is no %v[%d]", what, one.number), Hint: fmt.Sprintf("they are counted to %d", len(list))}
	}
	var have, names []string
	for _, at := range list {
		for _, a := range at.e.attrs {
			names = append(names, a.name)
		}
		if a := at.e.attr(one.attr); a != nil && a.origin != NotSet && !a.secret {
			have = append(have, a.text)
		}
	}
	slices.Sort(names)
	if names = slices.Compact(names); !slices.Contains(names, one.attr) {
		return &NotFoundError{Msg: fmt.Sprintf("%s has no attribute %s", before.name, one.attr), Hint: schema.DidYouMean(one.attr, names, schema.Allowed("attributes", names))}
	}
	slices.Sort(have)
	have = slices.Compact(have)
	const most = 20
	hint := ""
	if len(have) > 0 && len(have) <= most {
		hint = one.attr + " is one of: " + strings.Join(have, ", ")
	}
	return &NotFoundError{Msg: fmt.Sprintf("there is no %v[%v]", what, one), Hint: schema.DidYouMean(one.value, have, hint)}
}
