package main

import (
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// colour is an SGR parameter of ECMA-48.
type colour string

const (
	noColour colour = ""
	red      colour = "31"
	green    colour = "32"
	yellow   colour = "33"
)

// report prints rows as they come, the first column in colour where somebody looks at it.
type report struct {
	app     *app
	head    []string
	colours bool
	begun   bool
}

func (a *app) newReport(head ...string) *report {
	return &report{app: a, head: head, colours: a.colours()}
}

// colours says whether the output is a terminal that is to have colours: https://no-color.org.
func (a *app) colours() bool {
	f, ok := a.out.w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb"
}

// reportWidths are those of all columns but the last: what follows is not known yet.
var reportWidths = []int{12, 16}

// row prints a line, and those below it, each broken to the terminal's width.
func (r *report) row(c colour, notes []string, cells ...string) {
	if !r.begun && !r.app.quiet {
		r.app.line(r.layout(noColour, r.head))
	}
	r.begun = true
	line := r.layout(c, cells)
	if c != noColour && r.colours { // its own escape sequences are not for printable
		_, _ = r.app.out.Write([]byte(line + "\n"))
	} else {
		r.app.line(line)
	}
	for _, n := range notes {
		r.app.printf("    %s\n", strings.ReplaceAll(n, "\n", "\n    "))
	}
}

func (r *report) layout(c colour, cells []string) string {
	var b strings.Builder
	for i, cell := range cells {
		cell = printable(strings.ReplaceAll(cell, "\n", " "))
		pad := ""
		if i < len(cells)-1 {
			pad = strings.Repeat(" ", max(0, reportWidths[min(i, len(reportWidths)-1)]-utf8.RuneCountInString(cell))+2)
		}
		if i == 0 && c != noColour && r.colours {
			cell = "\x1b[" + string(c) + "m" + cell + "\x1b[0m"
		}
		b.WriteString(cell + pad)
	}
	return b.String()
}
