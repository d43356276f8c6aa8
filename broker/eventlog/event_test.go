package eventlog

import (
	"regexp"
	"slices"
	"testing"
)

var style = regexp.MustCompile(`^[A-Z][A-Za-z]*(_[a-z]+)*$`)

func TestTable(t *testing.T) {
	names, numbers := map[string]bool{}, map[int]bool{}
	last := 0
	for _, e := range Events() {
		d := e.Definition()
		if names[d.Name] || numbers[d.Number] {
			t.Errorf("%s %d stands twice", d.Name, d.Number)
		}
		names[d.Name], numbers[d.Number] = true, true
		if !style.MatchString(d.Name) || d.Number <= last || d.Severity == 0 || e.String() != d.Name {
			t.Errorf("%d: %+v", e, d)
		}
		last = d.Number
		args := map[ArgName]bool{}
		for _, a := range d.Args {
			if args[a] || !regexp.MustCompile(`^[A-Z][A-Za-z-]*$`).MatchString(string(a)) {
				t.Errorf("%s has %q twice, or it is no name", d.Name, a)
			}
			args[a] = true
		}
		if (len(d.Args) == 0) != d.Never {
			t.Errorf("%s: arguments %v, never raised %t", d.Name, d.Args, d.Never)
		}
	}
	for _, none := range []Event{0, endOfEvents, 255} {
		if d := none.Definition(); d.Name != "" || none.String() == "" {
			t.Errorf("event %d is %+v", none, d)
		}
	}
}

// Numbers are for ever: administrators filter by them.
func TestNumbersOfTectia(t *testing.T) {
	for name, number := range map[string]int{"Server_hostkey": 140, "KEX_failure": 1000, "Algorithm_negotiation_failure": 1001,
		"Algorithm_negotiation_success": 1002, "KEX_success": 1003, "Certificate_validation_failure": 1100, "Certificate_validation_success": 1101} {
		if !slices.ContainsFunc(Events(), func(e Event) bool { return e.String() == name && e.Definition().Number == number }) {
			t.Errorf("%s is not %d", name, number)
		}
	}
}

// A field of the journal that two arguments share, or that is one of the entry's own, would
// hide one of them.
func TestFields(t *testing.T) {
	own := map[string]bool{"SSH_BROKER_EVENT": true, "SSH_BROKER_NUMBER": true, "SSH_BROKER_SEVERITY": true}
	seen := map[string]ArgName{}
	for _, e := range Events() {
		for _, a := range e.Definition().Args {
			f := a.Field()
			if other, ok := seen[f]; ok && other != a || own[f] || !regexp.MustCompile(`^[A-Z][A-Z0-9_]{1,63}$`).MatchString(f) {
				t.Errorf("%s has the field %s", a, f)
			}
			seen[f] = a
		}
	}
}
