package config

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"sshbroker/broker/config/schema"
	"sshbroker/filter"
	"sshbroker/profiles"
)

// lint warns of what a file without errors says and hardly means. It is for
// check-config alone: a broker that starts has nothing to gain from it.
type lint struct {
	*merged
	file    *file
	resolve func(string) string // makes paths of the file absolute
}

func (l *lint) run() {
	if l.file.root == nil || len(l.file.List.Errors()) > 0 {
		return // of a flawed rule the conditions are not known, nor whom it names
	}
	if l.file.filter != nil {
		l.shadowed()
	}
	l.unusedProfiles()
	l.each(l.file.root, func(n *schema.Node) {
		switch n.Name {
		case "rule", "dns":
			l.unescaped(n, "host")
			if _, err := netip.ParsePrefix(n.Str("ip-address")); err != nil {
				l.unescaped(n, "ip-address")
			}
		case "password":
			l.secret(n)
		case "tls":
			l.certificate(n)
		case "proxy":
			if strings.Contains(n.Str("ruleset"), "@") && l.file.info != nil && forOthers(l.file.info) {
				l.warn(n.At("ruleset"), n.Name, "chmod 600 "+l.file.name, "others can read this account: the file has the mode %04o", l.file.info.Mode().Perm())
			}
		}
	})
}

// each calls look for n and everything in it.
func (l *lint) each(n *schema.Node, look func(*schema.Node)) {
	look(n)
	for _, c := range n.Children {
		l.each(c, look)
	}
}

func (l *lint) warn(at Pos, element, hint, format string, args ...any) {
	l.file.Warn(schema.General, at, element, hint, format, args...)
}

// shadowed warns of rules that never decide.
func (l *lint) shadowed() {
	engine := l.file.filter
	rules := make([]filter.Rule, len(engine.rules))
	for i := range engine.rules {
		rules[i] = engine.rules[i].Rule
	}
	found, all := filter.Shadowed(rules)
	for _, s := range found {
		r, by := engine.rules[s.Rule], engine.rules[s.By]
		hint := "move it before that one, or take it out"
		if r.PseudoIP && !by.PseudoIP { // name queries do not know the port
			hint = "move it before that one; its pseudo-ip may count for names all the same"
		}
		l.warn(r.pos, r.element, hint,
			"it never decides: rule %d, at %d:%d, takes every connection that it could take", by.Number, by.pos.Line, by.pos.Col)
	}
	if !all {
		l.warn(engine.pos, "filter-engine", "", "there are too many rules alike: they were not all compared to find those that never decide")
	}
}

// unusedProfiles warns of profiles that nothing names. Without rules the profiles may
// be for somebody else's.
func (l *lint) unusedProfiles() {
	if l.engine == nil {
		return
	}
	used := make(map[string]bool)
	for _, f := range l.files {
		if f.root == nil {
			continue
		}
		l.each(f.root, func(n *schema.Node) {
			for _, attr := range []string{"profile-id", "profile", "gateway-profile"} {
				used[n.Str(attr)] = true
			}
			if n.Yes("connect-on-startup") {
				used[n.Str("id")] = true
			}
		})
	}
	l.each(l.file.root, func(n *schema.Node) {
		if id, ok := n.Get("id"); ok && n.Name == "profile" && !used[id] {
			l.warn(n.At("id"), n.Name, fmt.Sprintf(`name it in a rule, profile-id="%s", or take it out`, id), "nothing uses the profile %q", id)
		}
	})
}

// unescaped warns of a pattern in which a dot was meant as a dot.
func (l *lint) unescaped(n *schema.Node, attr string) {
	text, given := n.Get(attr)
	if !given {
		return
	}
	if off, cure := bareDot(text, attr == "ip-address"); off >= 0 {
		l.warn(n.Inside(attr, off), n.Name, "write "+cure, `%s: "." matches any character, not only a dot`, attr)
	}
}

// bareDot finds the first dot of a pattern that looks as if just a dot was meant. It
// returns where, below zero for nowhere, and the pattern as it was meant.
func bareDot(pattern string, address bool) (off int, cure string) {
	off = -1
	var b strings.Builder
	for i := 0; i < len(pattern); {
		start := i
		switch pattern[i] {
		case '\\':
			i = min(i+2, len(pattern))
		case '[':
			i = afterSet(pattern, i)
		case '.':
			i++
			if text := meantBy(pattern[:start], pattern[i:], address); text != "" {
				b.WriteString(text)
				if off < 0 {
					off = start
				}
				continue
			}
		default:
			i++
		}
		b.WriteString(pattern[start:i])
	}
	cure = b.String()
	if addr, err := netip.ParseAddr(strings.ReplaceAll(cure, `\.`, ".")); address && off >= 0 && err == nil {
		cure += " or " + netip.PrefixFrom(addr, addr.BitLen()).String()
	}
	return off, cure
}

// meantBy returns what a dot between two parts of a pattern was meant as, "" where it
// may well be meant as it stands: beside another dot, repeated, alone in a group.
func meantBy(before, after string, address bool) string {
	digit := before != "" && '0' <= before[len(before)-1] && before[len(before)-1] <= '9'
	switch {
	case address && digit && after == "": // "10.1."
		return `\..*`
	case address && digit && strings.HasPrefix(after, "*"): // "10.1.*"
		return `\..`
	case after == "" || !profiles.IsHostRune(rune(after[0])) && after[0] != '[' && after[0] != '(' || after[0] == '.':
		return ""
	case before == "" && !address: // ".example.com"
		return `.*\.`
	case before == "" || strings.IndexByte(".(|", before[len(before)-1]) >= 0:
		return ""
	}
	return `\.`
}

// afterSet returns where the bracket set that starts at i ends.
func afterSet(pattern string, i int) int {
	if i++; strings.HasPrefix(pattern[i:], "^") {
		i++
	}
	for first := true; i < len(pattern); first = false {
		switch rest := pattern[i:]; {
		case rest[0] == '\\':
			i++
		case strings.HasPrefix(rest, "[:"):
			if end := strings.Index(rest, ":]"); end > 0 {
				i += end + 1
			}
		case rest[0] == ']' && !first:
			return i + 1
		}
		i++
	}
	return min(i, len(pattern))
}

// secret warns of a password that others than the file's owner can read.
func (l *lint) secret(n *schema.Node) {
	if _, given := n.Get("string"); given && l.file.info != nil && forOthers(l.file.info) {
		l.warn(n.At("string"), n.Name, "chmod 600 "+l.file.name+", or give the password by file or command",
			"others can read this password: the file has the mode %04o", l.file.info.Mode().Perm())
	}
	if name := n.Str("file"); name != "" {
		name = l.resolve(name)
		if info, err := os.Stat(name); err == nil && forOthers(info) {
			l.warn(n.At("file"), n.Name, "chmod 600 "+name, "others can read the password in %s: it has the mode %04o", name, info.Mode().Perm())
		}
	}
}

// forOthers tells whether group or others may read a file.
func forOthers(info fs.FileInfo) bool { return info.Mode().Perm()&0o044 != 0 }
