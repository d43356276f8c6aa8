package config

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"sshbroker/broker/config/schema"
	"sshbroker/broker/config/xmldoc"
	"sshbroker/broker/eventlog"
)

// file is what one file says, before it is merged with others.
type file struct {
	schema.Findings
	name     string
	info     fs.FileInfo       // of what was read; nil where it is not from a file
	digest   [sha256.Size]byte // of its content
	root     *schema.Node      // nil where it has none; for lint
	general  general
	defaults settings
	profiles []profile
	tunnels  []tunnel      // of static-tunnels
	filter   *filterEngine // nil without the element
	logging  *eventlog.Routing
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
	f.root = root
	r.version(root)
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
			f.logging = r.logging(n)
		}
	}
	return f
}

// version remarks on a file that is for another product than those whose files are
// known, 1.0 to 6.6. It is read all the same: strictness finds what is new in it.
func (r *reader) version(n *schema.Node) {
	v, given := n.Get("version")
	if !given || v == "" {
		return
	}
	major, rest, _ := strings.Cut(v, ".")
	minor, _, _ := strings.Cut(rest, ".")
	x, errX := strconv.ParseUint(major, 10, 16)
	y, errY := strconv.ParseUint(cmp.Or(minor, "0"), 10, 16)
	if errX != nil || errY != nil || x < 1 || x > 6 || x == 6 && y > 6 {
		r.Warn(schema.General, n.At("version"), n.Name, `write version="1.0"`, "the file has the version %q; those from 1.0 to 6.6 are known, and it is read as one of them", v)
	}
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
