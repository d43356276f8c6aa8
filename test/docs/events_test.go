package docs

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sshbroker/broker/eventlog"
)

var (
	eventTag = regexp.MustCompile(`^(\d+) (\w+) \(([a-z-]+)\)$`)
	eventArg = regexp.MustCompile(`Arguments: (.*)\. $`)
	argTag   = regexp.MustCompile(`^([\w-]+) \((\w+)\)$`)
)

// TestEventsPageHasEveryEvent holds the page to the table: numbers, severities, arguments
// in their order, and what each argument is called in the journal.
func TestEventsPageHasEveryEvent(t *testing.T) {
	sections := page(t, "ssh-broker-events.5")
	wanted, found := set{}, set{}
	table := map[string]eventlog.Definition{}
	args, explained := set{}, set{}
	for _, e := range eventlog.Events() {
		d := e.Definition()
		table[d.Name] = d
		wanted[d.Name] = true
		for _, a := range d.Args {
			args[string(a)+" "+a.Field()] = true
		}
	}
	for _, s := range below(t, sections, "EVENTS")[1:] {
		for _, entry := range s.entries {
			m := eventTag.FindStringSubmatch(entry.tag)
			if m == nil {
				t.Errorf("tag %q is not NUMBER NAME (SEVERITY)", entry.tag)
				continue
			}
			d := table[m[2]]
			found[m[2]] = true
			if got := m[1] + " " + m[3]; d.Name != "" && got != strconv.Itoa(d.Number)+" "+d.Severity.String() {
				t.Errorf("%s: the page says %s", d.Name, got)
			}
			said := eventArg.FindStringSubmatch(entry.text)
			if said == nil {
				t.Errorf("%s: its arguments are not at the end of %q", d.Name, entry.text)
				continue
			}
			if got := argumentsIn(said[1], table); !slices.Equal(got, d.Args) {
				t.Errorf("%s: the page has the arguments %q, the table %q", d.Name, got, d.Args)
			}
			if d.Never != strings.Contains(strings.ToLower(entry.text), "never raised") {
				t.Errorf("%s: never raised %t, but the page says %q", d.Name, d.Never, entry.text)
			}
		}
	}
	equal(t, "ssh-broker-events.5, EVENTS", wanted, found)
	for _, entry := range below(t, sections, "ARGUMENTS")[0].entries {
		m := argTag.FindStringSubmatch(entry.tag)
		if m == nil || strings.TrimSpace(entry.text) == "" {
			t.Errorf("tag %q is not NAME (FIELD), or nothing is said of it", entry.tag)
			continue
		}
		explained[m[1]+" "+m[2]] = true
	}
	equal(t, "ssh-broker-events.5, ARGUMENTS", args, explained)
}

// argumentsIn reads "A, B", or "those of EVENT, and A, B".
func argumentsIn(text string, table map[string]eventlog.Definition) []eventlog.ArgName {
	var list []eventlog.ArgName
	if rest, ok := strings.CutPrefix(text, "those of "); ok {
		name, more, _ := strings.Cut(rest, ", and ")
		list, text = slices.Clone(table[name].Args), more
	}
	for a := range strings.SplitSeq(text, ", ") {
		if a != "" && a != "none" {
			list = append(list, eventlog.ArgName(a))
		}
	}
	return list
}
