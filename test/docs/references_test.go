package docs

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sshbroker/broker/audit"
)

// TestReasonsInTheGuide: those that it explains failures by are reasons of the record.
func TestReasonsInTheGuide(t *testing.T) {
	reasons := set{}
	for _, r := range audit.Reasons() {
		reasons[r.String()] = true
	}
	_, table, _ := strings.Cut(read(t, "docs/guide.md"), "| the program says | reason in the record |")
	table, _, _ = strings.Cut(table, "\n\n")
	found := 0
	for _, m := range regexp.MustCompile("(?m)^\\|[^|]*\\| `([a-z-]+)`").FindAllStringSubmatch(table, -1) {
		found++
		if !reasons[m[1]] {
			t.Errorf("docs/guide.md: there is no reason %s", m[1])
		}
	}
	if found < 6 {
		t.Errorf("only %d reasons were found", found)
	}
}

// TestNamesInDocuments: a document that names a test as its proof has to name one that
// is there, and so with files of the tree, functions of Go in backticks, and manual pages.
func TestNamesInDocuments(t *testing.T) {
	functions := set{}
	out, err := exec.Command("grep", "-rhoE", "--include=*_test.go", `^func (Test|Fuzz|Benchmark)[A-Za-z0-9_]+`, root).Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		functions[strings.TrimSpace(strings.TrimPrefix(line, "func "))] = true
	}
	var (
		function = regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z][A-Za-z0-9_]*\*?`)
		path     = regexp.MustCompile(`^(?:cmd|broker|capture|filter|profiles|etc|test|docs|\.ci)/[\w./*-]+$`)
		manPage  = regexp.MustCompile(`\b(ssh-(?:broker|capture|captured|gateway)[\w.-]*)\(([158])\)`)
	)
	named := 0
	for _, doc := range documents {
		for number, line := range strings.Split(read(t, doc), "\n") {
			for _, name := range function.FindAllString(line, -1) {
				named++
				start, many := strings.CutSuffix(name, "*")
				if many {
					many = false
					for f := range functions {
						many = many || strings.HasPrefix(f, start)
					}
				}
				if !functions[name] && !many {
					t.Errorf("%s:%d: there is no %s", doc, number+1, name)
				}
			}
			for _, m := range inlineCode.FindAllStringSubmatch(line, -1) {
				if !path.MatchString(m[1]) || strings.HasPrefix(line, "| no `") {
					continue
				}
				if found, err := filepath.Glob(filepath.Join(root, m[1])); err != nil || len(found) == 0 {
					t.Errorf("%s:%d: there is no %s", doc, number+1, m[1])
				}
			}
			for _, m := range manPage.FindAllStringSubmatch(line, -1) {
				if found, err := filepath.Glob(filepath.Join(root, "docs/man", m[1]+"."+m[2])); err != nil || len(found) == 0 {
					t.Errorf("%s:%d: there is no page %s", doc, number+1, m[0])
				}
			}
		}
	}
	if named < 10 {
		t.Errorf("only %d tests are named", named)
	}
}
