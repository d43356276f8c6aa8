package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sshbroker/broker/config/schema"
	"sshbroker/profiles"
	"sshbroker/profiles/keyfile"
)

// globalHostKeys is where an administrator keeps the keys of servers for all users.
const globalHostKeys = "/etc/ssh2/hostkeys/"

// hostKeyPlace is one known-hosts element.
type hostKeyPlace struct {
	directory, path, file string // absolute; a directory ends in a slash
	names                 bool   // one of them was given, be it empty
	format                string // filename-format; "" where it is not given
}

// knownHosts reads one known-hosts element.
func (r *reader) knownHosts(n *schema.Node) {
	var p hostKeyPlace
	for _, a := range []struct {
		name string
		to   *string
	}{{"directory", &p.directory}, {"path", &p.path}, {"file", &p.file}} {
		value, given := n.Get(a.name)
		p.names = p.names || given
		if value != "" {
			*a.to = r.path(value)
		}
	}
	if p.directory != "" {
		if st, err := os.Stat(p.directory); err == nil && !st.IsDir() {
			r.Warn(schema.General, n.At("directory"), n.Name, "", "directory: %s is a file: host keys cannot be stored there", p.directory)
		}
		p.directory = slashed(p.directory)
	}
	if p.path != "" && (strings.HasSuffix(n.Str("path"), "/") || isDir(p.path)) {
		p.path = slashed(p.path)
	}
	if p.file != "" && isDir(p.file) {
		r.Fail(n.At("file"), n.Name, `write directory="..."`, "file: %s is a directory", p.file)
	}
	if !n.Flawed {
		p.format = n.Str("filename-format")
	}
	g := &r.file.general
	g.hostKeys = append(g.hostKeys, p)
}

func slashed(dir string) string { return filepath.Clean(dir) + "/" }

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// placeHostKeys says where p's keys of servers are looked up and where new ones go. It
// finds OpenSSH's default files in p.KnownHosts.
//
// Elements are searched in order. Those that name anything replace OpenSSH's default
// files; they leave the default directories, which come after them, unless one of them
// is a directory. The last one says where new keys go. OpenSSH files are never written:
// where it is one, that is the user's own directory.
func placeHostKeys(p *profiles.Profile, elements []hostKeyPlace, userDir string) {
	var defaults []string
	if userDir != "" {
		p.StoreKnownHost = slashed(filepath.Join(userDir, "hostkeys"))
		defaults = append(defaults, p.StoreKnownHost)
	}
	defaults = append(defaults, globalHostKeys)
	var listed []string
	format, named, directories := "", false, false
	for _, e := range elements {
		if !e.names {
			format = e.format // of what follows
			continue
		}
		named = true
		if e.format == "" {
			e.format = format
		}
		for _, place := range []string{e.directory, e.path, e.file} {
			if place != "" && !slices.Contains(listed, place) {
				listed = append(listed, place)
			}
			directories = directories || strings.HasSuffix(place, "/")
		}
		store := e.directory
		if store == "" && strings.HasSuffix(e.path, "/") {
			store = e.path
		}
		if store == "" && userDir != "" {
			store = slashed(filepath.Join(userDir, "hostkeys"))
		}
		p.StoreKnownHost, p.PlainKeyNames = store, e.format == "plain"
	}
	switch {
	case !named:
		p.KnownHosts = slices.Concat(defaults, p.KnownHosts)
		p.PlainKeyNames = format == "plain"
	case directories:
		p.KnownHosts = listed
	default:
		p.KnownHosts = slices.Concat(listed, defaults)
	}
}

// serverAuthentication reads both forms: the policy and how a server has to prove
// itself, nil where nothing is said. Of both ways a certificate counts where the server
// has one; a single one is mandatory.
func (r *reader) serverAuthentication(n *schema.Node) (policy *profiles.HostKeyPolicy, proof *profiles.ServerProof) {
	var byKey, byCertificate bool
	for _, c := range n.Children {
		switch c.Name {
		case "auth-server-publickey":
			byKey = true
			policy = hostKeyPolicy(c.Str("policy"))
		case "auth-server-certificate":
			byCertificate = true
		case "authentication-method":
			switch name := c.Str("name"); name {
			case "publickey":
				byKey = true
			case "certificate":
				byCertificate = true
			case "":
				byKey = true // a bad value, reported already
			default:
				r.Fail(c.At("name"), c.Name, "write publickey or certificate", "%s is a method of users, not of servers", name)
			}
		}
	}
	var how profiles.ServerProof
	switch {
	case byKey && byCertificate:
		how = profiles.AnyProof
	case byKey:
		how = profiles.KeyProof
	case byCertificate:
		how = profiles.CertificateProof
	default:
		return policy, nil
	}
	return policy, &how
}

func hostKeyPolicy(name string) *profiles.HostKeyPolicy {
	var p profiles.HostKeyPolicy
	switch name {
	case "strict":
		p = profiles.Strict
	case "ask":
		p = profiles.Ask
	case "tofu", "trust-on-first-use":
		p = profiles.TOFU
	case "advisory":
		p = profiles.Advisory
	default:
		return nil
	}
	return &p
}

// hostKey reads the one trusted key: a file with it, or itself.
func (r *reader) hostKey(n *schema.Node, s *settings) {
	file, given := n.Get("file")
	text, at := n.Text()
	switch {
	case n.Flawed:
	case text != "" && given:
		r.Fail(at, n.Name, "take out one of them", "the host key is given twice, as a file and in the text")
	case text != "":
		if _, err := keyfile.ParseInline(text); err != nil {
			r.Fail(at, n.Name, `write the base64 of the public key, or save it and write file="..."`, "%v", err)
		}
		s.hostKeyText = text
	case !given || file == "":
		r.Fail(n.Pos, n.Name, `write file="..."`, "no host key is named")
	}
	s.hostKeyFile = r.path(file)
}
