package schema

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"sshbroker/broker/config/xmldoc"
)

// FuzzDocument holds for any bytes: no panic; every finding says something and has a
// place in the file; where there is none against an element its attributes are what
// the table lets them be, and its children those that the table knows.
func FuzzDocument(f *testing.F) {
	for _, pattern := range []string{"../testdata/*.xml", "../testdata/*/*.xml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			f.Fatalf("%s: %d files (%v)", pattern, len(files), err)
		}
		for _, name := range files {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		doc, err := xmldoc.Parse("f", data, xmldoc.DefaultLimits())
		if err != nil && doc.Root == nil {
			return
		}
		var found Findings
		root := NewChecker(&found, none{}).Document(doc)
		for _, p := range found.List {
			if p.Msg == "" || p.Pos.File != "f" || p.Pos.Line == 0 && len(found.List) <= maxProblems {
				t.Fatalf("finding %+v", p)
			}
		}
		if root == nil {
			if len(found.List.Errors()) == 0 {
				t.Fatal("no root and no error")
			}
			return
		}
		flawed := false
		var walk func(n *Node)
		walk = func(n *Node) {
			spec := elementNamed(n.Name)
			flawed = flawed || n.Flawed
			for _, a := range spec.attrs {
				v, given := n.values[a.name]
				if !given {
					if a.required && !n.Flawed && !spec.open {
						t.Fatalf("%s at %v: %s is missing, and it is not flawed", n.Name, n.Pos, a.name)
					}
					continue
				}
				switch {
				case v.text == "" && a.mayEmpty:
				case a.kind == yesNo && v.text != "yes" && v.text != "no",
					a.kind == enum && !slices.Contains(a.values, v.text),
					a.kind == number && (v.number < a.min || v.number > a.max):
					t.Fatalf("%s/@%s is %q", n.Name, a.name, v.text)
				}
			}
			for _, c := range n.Children {
				if _, known := spec.child(c.Name); !known {
					t.Fatalf("%s in %s", c.Name, n.Name)
				}
				walk(c)
			}
		}
		walk(root)
		if flawed && len(found.List.Errors()) == 0 {
			t.Fatal("an element is flawed, and no error says why")
		}
	})
}
