package top

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rivo/uniseg"
)

// key is a column, by which rows are sorted as well.
type key int

// The columns, in the order in which they are shown.
const (
	byID key = iota
	byOwner
	byProgram
	byTarget
	byAddress
	byRule
	byAction
	byProfile
	byAge
	byUp
	byDown
	byState
	byProblem
	endOfKeys
)

// column is one of the table.
type column struct {
	head     string
	min, max int  // cells
	right    bool // set to the right
	gone     int  // where there is no room for all, the highest goes first; 0: none
	falling  bool // sorted, the largest comes first
	text     func(*flow) string
	compare  func(a, b *flow) int
}

// columns is indexed by key and never written to.
var columns = [endOfKeys]column{
	byID:      {head: "ID", min: 4, max: 8, right: true, gone: 3, text: func(f *flow) string { return strconv.FormatUint(f.ID, 10) }, compare: by(func(f *flow) uint64 { return f.ID })},
	byOwner:   {head: "USER", min: 5, max: 12, gone: 6, text: func(f *flow) string { return cmp.Or(f.Owner, "-") }, compare: by(func(f *flow) string { return f.Owner })},
	byProgram: {head: "PROGRAM", min: 7, max: 20, text: program, compare: by(program)},
	byTarget:  {head: "TO", min: 12, max: 42, text: target, compare: by(target)},
	byAddress: {head: "ADDRESS", min: 13, max: 47, gone: 10, text: address, compare: by(address)},
	byRule:    {head: "RULE", min: 4, max: 7, right: true, gone: 8, text: rule, compare: by(ruleNumber)},
	byAction:  {head: "ACTION", min: 6, max: 10, gone: 7, text: func(f *flow) string { return cmp.Or(f.Action, "-") }, compare: by(func(f *flow) string { return f.Action })},
	byProfile: {head: "PROFILE", min: 7, max: 16, gone: 5, text: func(f *flow) string { return cmp.Or(f.Profile, "-") }, compare: by(func(f *flow) string { return f.Profile })},
	byAge:     {head: "AGE", min: 5, max: 5, right: true, gone: 4, falling: true, text: func(f *flow) string { return age(f.age) }, compare: by(func(f *flow) time.Duration { return f.age })},
	byUp:      {head: "UP/S", min: 7, max: 7, right: true, gone: 1, falling: true, text: func(f *flow) string { return size(f.up) }, compare: by(func(f *flow) float64 { return f.up })},
	byDown:    {head: "DOWN/S", min: 7, max: 7, right: true, gone: 1, falling: true, text: func(f *flow) string { return size(f.down) }, compare: by(func(f *flow) float64 { return f.down })},
	byState:   {head: "STATE", min: 8, max: 8, gone: 2, text: func(f *flow) string { return f.State }, compare: by(func(f *flow) string { return f.State })},
	byProblem: {head: "LAST ERROR", min: 10, max: 200, gone: 9, text: func(f *flow) string { return cmp.Or(f.problem, "-") }, compare: by(func(f *flow) string { return f.problem })},
}

func by[T cmp.Ordered](value func(*flow) T) func(a, b *flow) int {
	return func(a, b *flow) int { return cmp.Compare(value(a), value(b)) }
}

func program(f *flow) string {
	if f.Program == "" {
		return "?"
	}
	return filepath.Base(f.Program) + "[" + strconv.Itoa(f.PID) + "]"
}

func colon(s string) int {
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		return i
	}
	return len(s)
}

// target is where the program wanted to go, by name where there is one.
func target(f *flow) string {
	if f.Name == "" {
		return f.Dst
	}
	return f.Name + f.Dst[colon(f.Dst):]
}

func address(f *flow) string { return f.Dst[:colon(f.Dst)] }

// rule is the rule without the place where it stands.
func rule(f *flow) string {
	number, _, _ := strings.Cut(f.Rule, " ")
	return cmp.Or(number, "-")
}

func ruleNumber(f *flow) int {
	n, _ := strconv.Atoi(rule(f)) // 0 for the default
	return n
}

// age is a time in five cells.
func age(d time.Duration) string {
	s := int(d.Seconds())
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%d:%02d", s/60, s%60)
	case s < 24*3600:
		return fmt.Sprintf("%dh%02d", s/3600, s/60%60)
	case s < 1000*24*3600:
		return fmt.Sprintf("%dd", s/(24*3600))
	}
	return ">2y"
}

// size is a number of bytes in seven cells.
func size(n float64) string {
	unit := 0
	for n >= 999.5 && unit < 6 {
		n, unit = n/1000, unit+1
	}
	if unit == 0 {
		return fmt.Sprintf("%.0f B", n)
	}
	digits := 0
	if n < 99.5 {
		digits = 1
	}
	return fmt.Sprintf("%.*f %cB", digits, n, " kMGTPE"[unit])
}

// placed is a column with its width.
type placed struct {
	key
	width int
}

// gap is what is between two columns.
const gap = 2

// fit chooses the columns for a width, 0 for no bound, and gives them what they need of
// it.
func fit(rows []*flow, width int) []placed {
	owned := slices.ContainsFunc(rows, func(f *flow) bool { return f.Owner != "" })
	var list []placed
	for k := range endOfKeys {
		if k != byOwner || owned {
			list = append(list, placed{k, columns[k].min})
		}
	}
	for width > 0 && total(list) > width {
		worst := -1
		for i, p := range list {
			if g := columns[p.key].gone; g > 0 && (worst < 0 || g >= columns[list[worst].key].gone) {
				worst = i
			}
		}
		if worst < 0 {
			break
		}
		list = slices.Delete(list, worst, worst+1)
	}
	for i := range list {
		c := &columns[list[i].key]
		need := uniseg.StringWidth(c.head)
		for _, f := range rows {
			need = max(need, uniseg.StringWidth(c.text(f)))
		}
		grown := max(c.min, min(need, c.max))
		if width > 0 {
			grown = min(grown, list[i].width+max(0, width-total(list)))
		}
		list[i].width = max(list[i].width, grown)
	}
	return list
}

func total(list []placed) int {
	sum := gap * (len(list) - 1)
	for _, p := range list {
		sum += p.width
	}
	return sum
}

// line lays a row out; nil is the heading.
func line(f *flow, list []placed) string {
	var b strings.Builder
	for i, p := range list {
		c := &columns[p.key]
		text := c.head
		if f != nil {
			text = c.text(f)
		}
		text, used := cut(text, p.width)
		if i > 0 {
			b.WriteString(strings.Repeat(" ", gap))
		}
		pad := strings.Repeat(" ", p.width-used)
		if c.right {
			b.WriteString(pad + text)
		} else {
			b.WriteString(text + pad)
		}
	}
	return strings.TrimRight(b.String(), " ")
}

// cut shortens s to that many cells, and returns how many it takes.
func cut(s string, width int) (string, int) {
	if n := uniseg.StringWidth(s); n <= width {
		return s, n
	}
	var b strings.Builder
	used, state := 0, -1
	for s != "" {
		var cluster string
		var n int
		cluster, s, n, state = uniseg.FirstGraphemeClusterInString(s, state)
		if used+n > width-1 {
			break
		}
		b.WriteString(cluster)
		used += n
	}
	if width > 0 {
		b.WriteString("…")
		used++
	}
	return b.String(), used
}
