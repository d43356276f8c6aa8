package main

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// table prints rows in columns. A row may have notes below it.
type table struct {
	head  []string
	rows  []tableRow
	align map[int]bool // columns that are set to the right
}

type tableRow struct {
	cells []string
	notes []string
}

func (a *app) newTable(head ...string) *table {
	return &table{head: head, align: map[int]bool{}}
}

func (t *table) right(columns ...int) {
	for _, c := range columns {
		t.align[c] = true
	}
}

func (t *table) add(cells ...string) {
	for i, c := range cells {
		cells[i] = oneLine(c)
	}
	t.rows = append(t.rows, tableRow{cells: cells})
}

// oneLine is printable for what has to stay on its line.
func oneLine(s string) string {
	return strings.NewReplacer("\n", " ", "\t", " ").Replace(printable(s))
}

// note puts a line below the row that was added last.
func (t *table) note(text string) {
	r := &t.rows[len(t.rows)-1]
	r.notes = append(r.notes, strings.ReplaceAll(text, "\n", " "))
}

func (t *table) print(a *app) {
	widths := make([]int, len(t.head))
	for i, h := range t.head {
		widths[i] = utf8.RuneCountInString(h)
		for _, r := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(r.cells[i]))
		}
	}
	if !a.quiet {
		a.line(t.layout(t.head, widths))
	}
	for _, r := range t.rows {
		a.line(t.layout(r.cells, widths))
		for _, n := range r.notes {
			a.line("    " + n)
		}
	}
}

func (t *table) layout(cells []string, widths []int) string {
	var b strings.Builder
	for i, c := range cells {
		pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c))
		if i > 0 {
			b.WriteString("  ")
		}
		if t.align[i] {
			b.WriteString(pad + c)
		} else {
			b.WriteString(c + pad)
		}
	}
	return strings.TrimRight(b.String(), " ")
}

// line prints one line, cut to the terminal unless -w is given.
func (a *app) line(s string) {
	if a.width > 0 && !a.wide && utf8.RuneCountInString(s) > a.width {
		s = string([]rune(s)[:a.width-1]) + "…"
	}
	a.printf("%s\n", s)
}

// size is a number of bytes for people.
func size(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n), 0
	for f >= 999.5 && unit < 6 { // rounded to three digits it would be 1000
		f, unit = f/1000, unit+1
	}
	digits := 0
	switch {
	case f < 9.995:
		digits = 2
	case f < 99.95:
		digits = 1
	}
	return fmt.Sprintf("%.*f %cB", digits, f, " kMGTPE"[unit])
}

// time is t in the local zone and the chosen format, "-" where there is none.
func (a *app) time(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return formatTime(t.Local(), a.timeFormat)
}
