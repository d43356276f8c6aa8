package schema

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"sshbroker/broker/config/xmldoc"
)

// Pos is a place in a file; see xmldoc.Pos.
type Pos = xmldoc.Pos

// Kind sorts warnings, so that a broker can keep quiet about what only check-config
// has to list.
type Kind uint8

const (
	// General is everything that deserves attention whenever the file is loaded. All
	// errors are of this kind.
	General Kind = iota
	// NotActedOn marks what is read for compatibility and never will be acted on.
	NotActedOn
	// NotBuilt marks what this version does not do yet.
	NotBuilt
)

func (k Kind) String() string {
	switch k {
	case General:
		return "general"
	case NotActedOn:
		return "not acted on"
	case NotBuilt:
		return "not built yet"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Problem is one finding in a file.
type Problem struct {
	Pos     Pos
	Element string // the element's name, "" outside of any
	Msg     string // what is wrong
	Hint    string // how to cure it; may be ""
	Warning bool   // the file can be used all the same
	Kind    Kind   // of a warning
}

// String is "file:line:col: element: what is wrong", where there is a cure followed
// by a line "hint: ...".
func (p Problem) String() string {
	var b strings.Builder
	if at := p.Pos.String(); at != "" {
		b.WriteString(at + ": ")
	}
	if p.Warning {
		b.WriteString("warning: ")
	}
	if p.Element != "" {
		b.WriteString(p.Element + ": ")
	}
	b.WriteString(p.Msg)
	if p.Hint != "" {
		b.WriteString("\nhint: " + p.Hint)
	}
	return b.String()
}

// Problems is what was found, in the order of the files and of their lines. As an
// error it is never empty.
type Problems []Problem

// Error lists everything, one finding after the other.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Errors returns what makes a file unusable.
func (ps Problems) Errors() Problems { return ps.only(func(p Problem) bool { return !p.Warning }) }

// Warnings returns the rest.
func (ps Problems) Warnings() Problems { return ps.only(func(p Problem) bool { return p.Warning }) }

// OfKind returns the warnings of one kind.
func (ps Problems) OfKind(k Kind) Problems {
	return ps.only(func(p Problem) bool { return p.Warning && p.Kind == k })
}

func (ps Problems) only(keep func(Problem) bool) Problems {
	var out Problems
	for _, p := range ps {
		if keep(p) {
			out = append(out, p)
		}
	}
	return out
}

// maxProblems bounds the errors of one file, and its warnings: past it nobody reads
// on, and a hostile file must not cost memory.
const maxProblems = 1000

// Findings collects the problems of one file. The zero Findings is empty.
type Findings struct {
	List             Problems
	errors, warnings int
}

func (f *Findings) add(p Problem) {
	count := &f.errors
	if p.Warning {
		count = &f.warnings
	}
	*count++
	if *count == maxProblems+1 {
		p = Problem{Pos: Pos{File: p.Pos.File}, Warning: p.Warning, Msg: fmt.Sprintf("there is more; only the first %d are listed", maxProblems)}
	}
	if *count <= maxProblems+1 {
		f.List = append(f.List, p)
	}
}

// Fail adds an error; hint may be empty.
func (f *Findings) Fail(pos Pos, element, hint, format string, args ...any) {
	f.add(Problem{Pos: pos, Element: element, Msg: fmt.Sprintf(format, args...), Hint: hint})
}

// Warn adds a warning; hint may be empty.
func (f *Findings) Warn(kind Kind, pos Pos, element, hint, format string, args ...any) {
	f.add(Problem{Pos: pos, Element: element, Msg: fmt.Sprintf(format, args...), Hint: hint, Warning: true, Kind: kind})
}

// Sorted returns the list by position; findings about the file as a whole come last.
func (f *Findings) Sorted() Problems {
	slices.SortStableFunc(f.List, func(a, b Problem) int {
		if (a.Pos.Line == 0) != (b.Pos.Line == 0) {
			return cmp.Compare(b.Pos.Line, a.Pos.Line)
		}
		return cmp.Or(cmp.Compare(a.Pos.Line, b.Pos.Line), cmp.Compare(a.Pos.Col, b.Pos.Col))
	})
	return f.List
}
