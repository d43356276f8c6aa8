package names

import (
	"errors"
	"strings"
)

// ErrBadName is returned for a name that may reach neither a file name nor a command
// line nor a log.
var ErrBadName = errors.New("name cannot be used")

const (
	maxName  = 253 // RFC 1035 section 2.3.4, without the root's dot
	maxLabel = 63
)

// Normalize returns name in lower case and without its trailing dot, or ErrBadName.
// Letters, digits, hyphen and underscore make a label; none begins with a hyphen.
func Normalize(name string) (string, error) {
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > maxName {
		return "", ErrBadName
	}
	start := 0
	for i := 0; i <= len(name); i++ {
		if i == len(name) || name[i] == '.' {
			if i == start || i-start > maxLabel || name[start] == '-' {
				return "", ErrBadName
			}
			start = i + 1
			continue
		}
		c := name[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return "", ErrBadName
		}
	}
	return strings.ToLower(name), nil
}

// serviceHost returns the host that an HTTPS or SVCB name speaks of: those of other
// ports are spelt "_8443._https.host" (RFC 9460 section 9.1).
func serviceHost(name string) string {
	for strings.HasPrefix(name, "_") {
		_, rest, found := strings.Cut(name, ".")
		if !found {
			break
		}
		name = rest
	}
	return name
}
