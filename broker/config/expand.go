package config

import (
	"path/filepath"
	"strconv"
	"strings"

	"sshbroker/broker/config/schema"
)

// Env is what the values of a configuration may refer to. The zero Env has nothing.
type Env struct {
	Home    string // home directory
	User    string // login name
	Group   string // name of the primary group
	UID     int
	GID     int
	Environ []string // NAME=value, as from os.Environ

	// UserName and GroupName find the name of an account by its number, "" where it
	// has none; nil: rules that give a number match no account that has a name.
	UserName, GroupName func(id string) string
}

// Lookup returns the value of an environment variable.
func (e Env) Lookup(name string) (string, bool) { return e.lookup(name, false) }

// lookup looks for name as written, then, where fold is set, in any case.
func (e Env) lookup(name string, fold bool) (string, bool) {
	for _, kv := range e.Environ {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			return v, true
		}
	}
	if fold {
		for _, kv := range e.Environ {
			if k, v, ok := strings.Cut(kv, "="); ok && strings.EqualFold(k, name) {
				return v, true
			}
		}
	}
	return "", false
}

// UserDir is where the user's own files are: $HOME/.ssh2, "" without a home.
func (e Env) UserDir() string {
	if e.Home == "" {
		return ""
	}
	return filepath.Join(e.Home, ".ssh2")
}

// short returns a variable by its short name, in which case counts.
func (e Env) short(name string) (string, bool) {
	switch name {
	case "U":
		return e.User, e.User != ""
	case "G":
		return e.Group, e.Group != ""
	case "D":
		return e.Home, e.Home != ""
	case "IU":
		return strconv.Itoa(e.UID), true
	case "IG":
		return strconv.Itoa(e.GID), true
	}
	return "", false
}

// long returns a variable by its long name, in any case.
func (e Env) long(name string) (string, bool) {
	switch strings.ToLower(name) {
	case "username", "username-without-domain":
		return e.short("U")
	case "groupname":
		return e.short("G")
	case "homedir":
		return e.short("D")
	case "userid":
		return e.short("IU")
	case "groupid":
		return e.short("IG")
	}
	return "", false
}

// value returns what $name stands for: the environment wins over our own variables.
func (e Env) value(name string) (string, bool) {
	if v, ok := e.Lookup(name); ok {
		return v, true
	}
	if v, ok := e.short(name); ok {
		return v, true
	}
	return e.long(name)
}

// Expand replaces the variables in text, as section "VARIABLE EXPANSION" of
// ssh-broker-config(5) has it:
//
//	%NAME%           environment in any case; unknown: stays as it is
//	%U %G %D %IU %IG our own variables, case counts
//	$NAME            environment, case counts; unknown: nothing
//	${NAME}          the same, with an end that needs no other character
//	${NAME:-default} default where NAME is unknown
//
// What a variable holds is not expanded again.
func (e Env) Expand(text string) schema.Expansion {
	var out schema.Expansion
	if !strings.ContainsAny(text, "%$") {
		out.Text = text
		return out
	}
	var b strings.Builder
	for i := 0; i < len(text); {
		var v string
		n := 0 // bytes that v stands for
		switch {
		case text[i] == '%':
			v, n = e.percent(text[i:])
		case strings.HasPrefix(text[i:], "${"):
			if v, n = e.braces(text[i:], &out); n == 0 && out.Err == nil {
				out.Err = &schema.ExpandError{Offset: i, Msg: "a variable has no name or no closing brace", Hint: "write ${NAME} or ${NAME:-default}"}
			}
		case text[i] == '$':
			if name := variableName(text[i+1:]); name != "" {
				var ok bool
				if v, ok = e.value(name); !ok {
					out.Unset = append(out.Unset, name)
				}
				n = 1 + len(name)
			}
		}
		if n == 0 {
			v, n = text[i:i+1], 1
		}
		b.WriteString(v)
		i += n
	}
	out.Text = b.String()
	return out
}

// percent reads %NAME% or a short form at the start of s; n is 0 where s stays as it
// is.
func (e Env) percent(s string) (v string, n int) {
	name := variableName(s[1:])
	if rest := s[1+len(name):]; strings.HasPrefix(rest, "%") && name != "" {
		if v, ok := e.lookup(name, true); ok {
			return v, len(name) + 2
		}
		if v, ok := e.long(name); ok {
			return v, len(name) + 2
		}
	}
	const domainless = "%username-without-domain%" // the one name with hyphens
	if len(s) >= len(domainless) && strings.EqualFold(s[:len(domainless)], domainless) {
		if v, ok := e.short("U"); ok {
			return v, len(domainless)
		}
	}
	if v, ok := e.short(name); ok {
		return v, len(name) + 1
	}
	return "", 0
}

// braces reads ${NAME} or ${NAME:-default} at the start of s.
func (e Env) braces(s string, out *schema.Expansion) (v string, n int) {
	name := variableName(s[2:])
	rest := s[2+len(name):]
	body, _, closed := strings.Cut(rest, "}")
	fallback, hasFallback := strings.CutPrefix(body, ":-")
	if name == "" || !closed || body != "" && !hasFallback {
		return "", 0
	}
	n = 2 + len(name) + len(body) + 1
	v, ok := e.value(name)
	if !ok && hasFallback {
		return fallback, n
	}
	if !ok {
		out.Unset = append(out.Unset, name)
	}
	return v, n
}

// variableName returns the letters, digits and underscores that s starts with.
func variableName(s string) string {
	for i := range len(s) {
		if c := s[i]; c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return s[:i]
		}
	}
	return s
}

// either returns the first of two variables that is set to something.
func (e Env) either(name, other string) string {
	if v, _ := e.Lookup(name); v != "" {
		return v
	}
	v, _ := e.Lookup(other)
	return v
}
