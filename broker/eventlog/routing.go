package eventlog

import "slices"

// Type is what kind of target one is.
type Type uint8

const (
	File Type = iota + 1
	Syslog
	Nowhere // discard
)

func (t Type) String() string {
	switch t {
	case File:
		return "file"
	case Syslog:
		return "syslog"
	}
	return "discard"
}

// Target is a place that events go to.
type Target struct {
	Type Type
	Path string // of a File, absolute
}

// String names the target for messages.
func (t Target) String() string {
	if t.Type == File {
		return "file " + t.Path
	}
	return t.Type.String()
}

// Rule is one element log-events.
type Rule struct {
	Names    []string // patterns with * and ?; empty: every event that no Rule before names
	Facility Facility // 0: the event's own
	Severity Severity // 0: the event's own
	Targets  []Target // in place of the general ones; empty: those
}

// Routing is one element logging. The zero Routing logs nothing.
type Routing struct {
	Targets []Target // the general ones
	Rules   []Rule   // the first that names an event counts
}

// Takes reports whether the rule names the event of that name.
func (r Rule) Takes(name string) bool {
	return len(r.Names) == 0 || slices.ContainsFunc(r.Names, func(p string) bool { return Match(p, name) })
}

// Match reports whether the whole of name fits the pattern, in which * stands for any
// characters and ? for one. Case counts.
func Match(pattern, name string) bool {
	star, mark := -1, 0 // the last * and how much of name it takes
	p, n := 0, 0
	for n < len(name) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, n
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == name[n]):
			p, n = p+1, n+1
		case star >= 0:
			mark++
			p, n = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// Route is what becomes of one event.
type Route struct {
	Rule     int // index of the Rule that names it, -1 for none
	Severity Severity
	Facility Facility
	Targets  []Target // empty: it is not logged; each once
}

// Route says what becomes of e. Where there is no general target, an event that a Rule
// names goes to the system's log, as its facility and severity have a meaning there, and
// what no Rule names is not logged, which is the default of the broker.
func (r Routing) Route(e Event) Route {
	d := e.Definition()
	route := Route{Rule: -1, Severity: d.Severity, Facility: Normal}
	targets := r.Targets
	for i, rule := range r.Rules {
		if !rule.Takes(d.Name) {
			continue
		}
		route.Rule = i
		if rule.Severity != 0 {
			route.Severity = rule.Severity
		}
		if rule.Facility != 0 {
			route.Facility = rule.Facility
		}
		switch {
		case len(rule.Targets) > 0:
			targets = rule.Targets
		case len(targets) == 0:
			targets = []Target{{Type: Syslog}}
		}
		break
	}
	if route.Facility == Discard || d.Never || d.Name == "" {
		return route
	}
	for _, t := range targets {
		if t.Type != Nowhere && !slices.Contains(route.Targets, t) {
			route.Targets = append(route.Targets, t)
		}
	}
	return route
}
