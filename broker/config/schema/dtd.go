package schema

import (
	"fmt"
	"slices"
	"strings"
)

// DTD writes the schema as the document type definition that is installed as
// ssh-broker-ng-config-1.dtd, for editors and validators. It can say less than the
// schema: ranges of numbers, and elements of which nothing is published (ANY), are
// left to check-config, and yes/no in mixed case is only accepted by us.
func DTD() string {
	var b strings.Builder
	b.WriteString("<!-- ssh-broker-ng-config-1.dtd: the elements and attributes of ssh-broker-config.xml.\n" +
		"     Written from the schema table in broker/config; a test keeps the two equal. -->\n")
	for i := range schema {
		e := &schema[i]
		fmt.Fprintf(&b, "\n<!ELEMENT %s %s>\n", e.name, contentModel(e))
		if len(e.attrs) == 0 {
			continue
		}
		fmt.Fprintf(&b, "<!ATTLIST %s", e.name)
		for j := range e.attrs {
			fmt.Fprintf(&b, "\n  %s", attributeModel(&e.attrs[j]))
		}
		b.WriteString(">\n")
		for _, a := range e.attrs {
			if a.def != "" {
				fmt.Fprintf(&b, "<!-- default of %s/@%s: %s -->\n", e.name, a.name, a.def)
			}
		}
	}
	return b.String()
}

func contentModel(e *element) string {
	var parts []string
	for _, c := range e.children {
		mark := ""
		switch {
		case e.ordered && c.occurs == anyNumber:
			mark = "*"
		case e.ordered:
			mark = "?"
		}
		parts = append(parts, c.name+mark)
	}
	switch {
	case e.open:
		return "ANY"
	case e.text:
		if len(parts) == 0 {
			return "(#PCDATA)"
		}
		return "(#PCDATA | " + strings.Join(parts, " | ") + ")*"
	case len(parts) == 0:
		return "EMPTY"
	case e.ordered:
		return "(" + strings.Join(parts, ", ") + ")"
	}
	return "(" + strings.Join(parts, " | ") + ")*"
}

// attributeModel has no default value: the broker has to see what is not said, as
// the user's file overrides the global one only where it says something.
func attributeModel(a *attribute) string {
	kind := "CDATA"
	values := a.values
	if a.kind == yesNo {
		values = []string{"yes", "no"}
	}
	if len(values) > 0 && !a.mayEmpty {
		var spellings []string
		for _, fold := range []func(string) string{strings.ToLower, strings.ToUpper} {
			for _, v := range values {
				if s := fold(v); !slices.Contains(spellings, s) {
					spellings = append(spellings, s)
				}
			}
		}
		kind = "(" + strings.Join(spellings, "|") + ")"
	}
	if a.required {
		return a.name + " " + kind + " #REQUIRED"
	}
	return a.name + " " + kind + " #IMPLIED"
}
