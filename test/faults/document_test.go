package faults

import (
	"flag"
	"os"
	"strings"
	"sync"
	"testing"
)

var update = flag.Bool("update", false, "write the tables of docs/reliability.md anew")

const file = "../../docs/reliability.md"

// The tables stand between these lines.
const (
	tablesBegin = "<!-- written by go test ./test/faults -update -->\n"
	tablesEnd   = "<!-- end -->\n"
)

// document is docs/reliability.md, with a line of each table for each fault.
type document struct {
	before, tables, after string

	mu   sync.Mutex
	seen map[string]row // guarded by mu
}

func readDocument(t *testing.T) *document {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), tablesBegin)
	tables, after, ok2 := strings.Cut(rest, tablesEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the tables", file)
	}
	return &document{before: before, tables: tables, after: after, seen: map[string]row{}}
}

// lines are the row's lines of the three tables.
func (r row) lines(detail string) [3]string {
	line := func(cells ...string) string {
		for i, c := range cells {
			cells[i] = cell(c)
		}
		return "| " + strings.Join(cells, " | ") + " |\n"
	}
	return [3]string{
		line(r.fault, detail),
		line(r.fault, r.connect, r.loose, r.live, r.after),
		line(r.fault, r.record, r.liveRecord, r.connections, r.status),
	}
}

var heads = [3]string{
	"### The faults\n\n| fault | what was done |\n|---|---|\n",
	"\n### What programs see\n\n| fault | connect() meanwhile | the same with `fallback-to-plain` | a live flow | connect() afterwards |\n|---|---|---|---|---|\n",
	"\n### What you are told\n\n| fault | record of the connect() | record of the live flow | `list-connections` meanwhile | `status` meanwhile |\n|---|---|---|---|---|\n",
}

func detailOf(name string) string {
	for _, f := range faults {
		if f.name == name {
			return f.detail
		}
	}
	return ""
}

// check holds the document to a row.
func (d *document) check(t *testing.T, r row) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen[r.fault] = r
	if *update {
		return
	}
	for _, line := range r.lines(detailOf(r.fault)) {
		if !strings.Contains(d.tables, line) {
			t.Errorf("%s does not say what was seen; -update has it so:\n%s", file, line)
		}
	}
}

// finish holds it to having no other rows, or writes it. Rows that were not seen in this
// run stay as they are.
func (d *document) finish(t *testing.T) {
	t.Helper()
	var tables [3]string
	for i, head := range heads {
		tables[i] = head
		_, old, _ := strings.Cut(d.tables, head)
		for _, f := range faults {
			if r, ok := d.seen[f.name]; ok {
				tables[i] += r.lines(f.detail)[i]
				continue
			}
			for line := range strings.Lines(old) {
				if strings.HasPrefix(line, "| "+f.name+" |") {
					tables[i] += line
					break
				}
			}
		}
	}
	now := tables[0] + tables[1] + tables[2]
	switch {
	case t.Failed():
	case *update:
		if err := os.WriteFile(file, []byte(d.before+tablesBegin+now+tablesEnd+d.after), 0o644); err != nil {
			t.Fatal(err)
		}
	case now != d.tables:
		t.Errorf("the tables of %s have more, or another order: run with -update", file)
	}
}
