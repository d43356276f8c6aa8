package comparison

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"sshbroker/test/netns"
)

var update = flag.Bool("update", false, "write the table of docs/comparison.md anew")

const file = "../../docs/comparison.md"

// The table stands between these lines.
const (
	tableBegin = "<!-- written by make compare -->\n"
	tableEnd   = "<!-- end -->\n"
)

func TestComparison(t *testing.T) {
	if !*update && os.Getenv("SSHBROKER_LONG") != "1" {
		t.Skip("it takes a minute and is about others: SSHBROKER_LONG=1 or make compare has it")
	}
	netns.RequireRoot(t)
	t.Run("on the bastion", func(t *testing.T) {
		w := newWorld(t)
		c := &client{world: w, way: &way{name: "none"}, on: w.Server}
		for _, b := range behaviours {
			if !b.onBastion {
				continue
			}
			if got := b.see(t, c); got != b.truth {
				t.Errorf("%s: %s, and the table says that it should be %s", b.name, got, b.truth)
			}
		}
	})
	cells := map[string][]string{}
	for i := range ways {
		way := &ways[i]
		t.Run(way.name, func(t *testing.T) {
			netns.RequireProgram(t, way.program, way.pkg)
			w := newWorld(t)
			c := &client{world: w, way: way, on: w.Client}
			c.kill = way.start(t, c.world)
			for _, b := range behaviours {
				got := b.see(t, c)
				t.Logf("%s: %s", b.name, got)
				cells[b.name] = append(cells[b.name], got)
			}
		})
	}
	if t.Failed() {
		return
	}
	table := head()
	for _, b := range behaviours {
		if len(cells[b.name]) != len(ways) {
			t.Fatalf("%s: %d of %d ways were tried", b.name, len(cells[b.name]), len(ways))
		}
		table += line(append([]string{b.name, b.truth}, cells[b.name]...))
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), tableBegin)
	old, after, ok2 := strings.Cut(rest, tableEnd)
	switch {
	case !ok || !ok2:
		t.Fatalf("%s has no place for the table", file)
	case *update:
		fmt.Print(table)
		if err := os.WriteFile(file, []byte(before+tableBegin+table+tableEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
	case old != table:
		t.Errorf("%s does not say what was seen; make compare has it so:\n%s", file, table)
	}
}

func head() string {
	names := []string{"", "it should be"}
	for _, w := range ways {
		names = append(names, w.name)
	}
	return line(names) + strings.Repeat("|---", len(names)) + "|\n"
}

func line(cells []string) string { return "| " + strings.Join(cells, " | ") + " |\n" }
