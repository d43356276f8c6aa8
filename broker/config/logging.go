package config

import (
	"path/filepath"
	"strings"
	"unicode"

	"sshbroker/broker/config/schema"
	"sshbroker/broker/eventlog"
)

// More of these nobody writes, and each costs time when the file is read.
const (
	maxLogEvents  = 200 // elements
	maxEventNames = 200 // in one of them
)

// logging reads the element of that name. The user's replaces the global one as a whole.
// A target that cannot be written to is no error: rules must not be given up for a log.
func (r *reader) logging(n *schema.Node) *eventlog.Routing {
	routing := &eventlog.Routing{}
	var all *schema.Node // the log-events that takes whatever is left
	for _, c := range n.Children {
		if c.Name == "log-target" {
			routing.Targets = append(routing.Targets, r.logTarget(c)...)
			continue
		}
		if len(routing.Rules) == maxLogEvents {
			r.Fail(c.Pos, c.Name, "", "there are more than %d of them", maxLogEvents)
			break
		}
		rule, ok := r.logEvents(c, all == nil)
		switch {
		case !ok:
			continue
		case all != nil:
			r.Warn(schema.General, c.Pos, c.Name, "put the one without names last",
				"it never counts: the one at %d:%d takes every event that is left", all.Pos.Line, all.Pos.Col)
		case len(rule.Names) == 0:
			all = c
		case !takesMore(routing.Rules, rule):
			r.Warn(schema.General, c.Pos, c.Name, "", "it never counts: those before it have all its events")
		}
		routing.Rules = append(routing.Rules, rule)
	}
	return routing
}

// takesMore reports whether the rule takes an event that none of the rules before does.
// One that names no event at all was warned of already.
func takesMore(before []eventlog.Rule, rule eventlog.Rule) bool {
	named := false
	for _, e := range eventlog.Events() {
		if !rule.Takes(e.String()) {
			continue
		}
		named = true
		if (eventlog.Routing{Rules: before}).Route(e).Rule < 0 {
			return true
		}
	}
	return !named
}

// logTarget returns the target, none where it is wrong.
func (r *reader) logTarget(n *schema.Node) []eventlog.Target {
	kind, path := n.Str("type"), n.Str("file")
	if n.Flawed {
		return nil
	}
	switch {
	case path != "" && (kind == "syslog" || kind == "discard"):
		r.Fail(n.At("file"), n.Name, "take out one of them", "file goes with type file, not with %s", kind)
		return nil
	case kind == "syslog":
		return []eventlog.Target{{Type: eventlog.Syslog}}
	case kind == "discard":
		return []eventlog.Target{{Type: eventlog.Nowhere}}
	case path == "":
		r.Fail(n.Pos, n.Name, `add file="...", or write type="syslog"`, "it says no file to log to")
		return nil
	}
	if path = r.path(path); !filepath.IsAbs(path) {
		r.Fail(n.At("file"), n.Name, "", "file: %q is not absolute", path)
		return nil
	}
	if err := eventlog.CheckFile(path); err != nil {
		r.Warn(schema.General, n.At("file"), n.Name, "connections go on without this log; see it in ssh-broker-ctl status",
			"%s cannot be logged to: %v", path, err)
	}
	return []eventlog.Target{{Type: eventlog.File, Path: filepath.Clean(path)}}
}

// logEvents returns one element log-events; ok is false where it is wrong. strict has
// names looked up that no event has.
func (r *reader) logEvents(n *schema.Node, strict bool) (rule eventlog.Rule, ok bool) {
	list := words(n)
	if len(list) > maxEventNames {
		r.Fail(n.Pos, n.Name, "use * and ?", "it names more than %d events", maxEventNames)
		return rule, false
	}
	for _, w := range list {
		rule.Names = append(rule.Names, w.text)
		if strict && !known(w.text) {
			r.Warn(schema.General, w.pos, n.Name, unknownHint(w.text), "there is no event %s", w.text)
		}
	}
	for _, t := range n.All("log-target") {
		rule.Targets = append(rule.Targets, r.logTarget(t)...)
	}
	// The schema has refused what these do not know.
	if word, given := n.Get("facility"); given {
		_ = rule.Facility.UnmarshalText([]byte(word))
	}
	if word, given := n.Get("severity"); given {
		_ = rule.Severity.UnmarshalText([]byte(word))
	}
	return rule, !n.Flawed
}

// word is one name in the text of an element.
type word struct {
	text string
	pos  Pos
}

// words splits the text of an element. Positions are those of the characters as read:
// names hold no references.
func words(n *schema.Node) []word {
	var list []word
	for _, run := range n.Texts() {
		text := strings.TrimLeftFunc(run.Data, unicode.IsSpace)
		pos, start := run.Pos, -1
		for i, c := range text {
			if space := unicode.IsSpace(c); space != (start < 0) {
				if space {
					list[len(list)-1].text = text[start:i]
					start = -1
				} else {
					list, start = append(list, word{text[i:], pos}), i
				}
			}
			if pos.Col++; c == '\n' {
				pos.Line, pos.Col = pos.Line+1, 1
			}
		}
	}
	return list
}

func known(pattern string) bool {
	for _, e := range eventlog.Events() {
		if eventlog.Match(pattern, e.String()) {
			return true
		}
	}
	return false
}

// unknownHint names the nearest event.
func unknownHint(name string) string {
	var names []string
	for _, e := range eventlog.Events() {
		names = append(names, e.String())
	}
	return schema.DidYouMean(name, names, "ssh-broker-events(5) lists them all")
}
