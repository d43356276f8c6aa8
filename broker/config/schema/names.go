package schema

import "slices"

// Attribute is what the table says of one attribute, for those who write files or print
// what they say.
type Attribute struct {
	Name     string
	Required bool
	Default  string   // variables not expanded; "" where it has none, or one that has no text
	Values   []string // of an enumeration, yes and no of a switch, else nil
	YesNo    bool     // a switch

	spec *attribute
}

// Effect is what the checker has to say of a value: NotActedOn or NotBuilt, else
// General.
func (a Attribute) Effect(value string) Kind {
	if slices.Contains(a.spec.quiet, value) {
		return General
	}
	return a.spec.status
}

// Attributes returns the attributes of an element in the order of the table, nil for
// one that the schema does not have.
func Attributes(element string) []Attribute {
	spec := elementNamed(element)
	if spec == nil {
		return nil
	}
	list := make([]Attribute, len(spec.attrs))
	for i := range spec.attrs {
		a := &spec.attrs[i]
		list[i] = Attribute{Name: a.name, Required: a.required, Default: a.def, Values: slices.Clone(a.values), YesNo: a.kind == yesNo, spec: a}
		if a.kind == yesNo {
			list[i].Values = []string{"yes", "no"}
		}
	}
	return list
}

// Child is an element that another may hold.
type Child struct {
	Name string
	Many bool // it may stand more than once
}

// Children returns what an element may hold, in the order of the table.
func Children(element string) []Child {
	spec := elementNamed(element)
	if spec == nil {
		return nil
	}
	list := make([]Child, len(spec.children))
	for i, c := range spec.children {
		list[i] = Child{c.name, c.occurs == anyNumber}
	}
	return list
}

// Effect is what the checker has to say of an element as a whole, whatever it holds.
func Effect(element string) Kind {
	if spec := elementNamed(element); spec != nil {
		return spec.status
	}
	return General
}
