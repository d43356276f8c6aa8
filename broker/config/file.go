package config

import (
	"crypto/sha256"
	"errors"
	"path/filepath"
	"strings"

	"sshbroker/broker/config/schema"
	"sshbroker/broker/config/xmldoc"
)

// file is what one file says, before it is merged with others.
type file struct {
	schema.Findings
	name     string
	digest   [sha256.Size]byte // of its content
	general  general
	defaults settings
	profiles []profile
	tunnels  []tunnel      // of static-tunnels
	filter   *filterEngine // nil without the element
}

// reader turns the checked elements of one file into a file.
type reader struct {
	*schema.Checker
	file    *file
	env     Env
	userDir string // what relative paths are relative to
}

// readFile parses data and understands as much of it as it can; what is wrong is in
// the findings of the result. After a syntax error only the schema is checked, since
// half a rule means nothing.
func readFile(name string, data []byte, env Env, userDir string) *file {
	f := &file{name: name, digest: sha256.Sum256(data)}
	r := &reader{
		Checker: schema.NewChecker(&f.Findings, env),
		file:    f,
		env:     env,
		userDir: userDir,
	}
	doc, err := xmldoc.Parse(name, data, xmldoc.DefaultLimits())
	root := r.Document(doc)
	if syntax, ok := errors.AsType[*xmldoc.SyntaxError](err); ok {
		f.Fail(syntax.Pos, syntax.Element, syntax.Hint, "%s", syntax.Msg)
		return f
	}
	if root == nil {
		return f
	}
	for _, n := range root.Children {
		switch n.Name {
		case "general":
			r.general(n)
		case "default-settings":
			f.defaults = r.settings(n)
		case "profiles":
			r.profiles(n)
		case "static-tunnels":
			r.staticTunnels(n)
		case "filter-engine":
			f.filter = r.filterEngine(n)
		case "logging":
			r.logging(n)
		}
	}
	return f
}

// path makes the path of a value absolute: "~/" is the home directory, and what is
// relative belongs to the user's configuration directory.
func (r *reader) path(v string) string {
	if rest, ok := strings.CutPrefix(v, "~/"); ok && r.env.Home != "" {
		return filepath.Join(r.env.Home, rest)
	}
	if v == "" || filepath.IsAbs(v) || r.userDir == "" {
		return v
	}
	return filepath.Join(r.userDir, v)
}

// logging checks what the schema cannot say; nothing is kept.
func (r *reader) logging(n *schema.Node) {
	for _, t := range n.Children {
		if t.Name == "log-target" {
			if kind := t.Str("type"); t.Str("file") != "" && (kind == "syslog" || kind == "discard") {
				r.Fail(t.At("file"), t.Name, "take out one of them", "file goes with type file, not with %s", kind)
			}
			continue
		}
		r.logging(t)
	}
}
