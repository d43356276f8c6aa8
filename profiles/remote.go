package profiles

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// RemoteText makes a text that a server sent fit for a log line or a terminal:
// control characters and whatever else does not print become a question mark, line
// ends stay where keepLines is set, and no more than max bytes are kept.
func RemoteText(s string, max int, keepLines bool) string {
	cut := false
	if len(s) > max {
		for max > 0 && !utf8.RuneStart(s[max]) {
			max--
		}
		s, cut = s[:max], true
	}
	s = strings.ReplaceAll(s, "\r\n", "\n")
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' && keepLines:
			return r
		case r == '\t' || r == '\n':
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, s)
	if cut {
		s += "..."
	}
	return s
}
