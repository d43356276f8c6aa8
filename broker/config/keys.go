package config

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"sshbroker/broker/config/schema"
	"sshbroker/profiles"
	"sshbroker/profiles/keyfile"
)

// keyStores is what the element key-stores says.
type keyStores struct {
	stores         []profiles.KeyStore // in the order of the file
	userKeys       bool                // some element says where the user's keys are
	identification bool
	remember       profiles.Remember // of the last user-keys
}

func (r *reader) keyStores(n *schema.Node) {
	k := &r.file.general.keys
	for _, c := range n.Children {
		if c.Flawed {
			continue
		}
		switch c.Name {
		case "key-store":
			r.keyStore(c)
		case "user-keys":
			k.userKeys, k.remember = true, remember(c)
			dir := r.path(c.Str("directory"))
			if dir == "" {
				dir = r.userDir
			}
			s := profiles.KeyStore{Dir: dir, Remember: k.remember}
			if dir == r.userDir {
				s.Unless = identificationFile(r.userDir)
			}
			k.stores = append(k.stores, s)
		case "identification":
			k.identification = true
			s := profiles.KeyStore{Index: r.path(c.Str("file")), Base: r.path(c.Str("base-path")), Remember: remember(c)}
			if s.Index == "" {
				s.Index = identificationFile(r.userDir)
			}
			if s.Base == "" {
				s.Base = r.userDir
			}
			k.stores = append(k.stores, s)
		}
	}
}

func identificationFile(userDir string) string {
	if userDir == "" {
		return ""
	}
	return filepath.Join(userDir, "identification")
}

// remember reads the two times of a passphrase.
func remember(n *schema.Node) profiles.Remember {
	hard, _ := n.Number("passphrase-timeout")
	idle, _ := n.Number("passphrase-idle-timeout")
	return profiles.Remember{For: time.Duration(hard) * time.Second, Idle: time.Duration(idle) * time.Second}
}

// What the provider of software keys is told; see ssh-broker-config(5).
var (
	keyFilesInit  = regexp.MustCompile(`^\s*key_files\(\s*([^,()]*?)\s*,\s*([^,()]*?)\s*\)\s*$`)
	directoryInit = regexp.MustCompile(`^\s*directory\(\s*path\(\s*([^()]*?)\s*\)\s*\)\s*$`)
)

// unread are the providers of keys that this program has not.
var unread = map[string]string{
	"pkcs11":  "give the token's keys to an agent: ssh-add -s LIBRARY",
	"mscapi":  "it exists on Windows alone",
	"entrust": "it exists on Windows alone",
	"zos-saf": "it exists on z/OS alone",
}

func (r *reader) keyStore(n *schema.Node) {
	kind, init := n.Str("type"), n.Str("init")
	if hint, ok := unread[kind]; ok {
		r.Fail(n.At("type"), n.Name, hint, "keys of type %s cannot be used here", kind)
		return
	}
	if kind == "" {
		return // reported already
	}
	k := &r.file.general.keys
	if m := keyFilesInit.FindStringSubmatch(init); m != nil && m[2] != "" {
		k.stores = append(k.stores, profiles.KeyStore{File: r.path(m[2]), Public: r.path(m[1])})
	} else if m := directoryInit.FindStringSubmatch(init); m != nil && m[1] != "" {
		k.stores = append(k.stores, profiles.KeyStore{Dir: r.path(m[1])})
	} else if strings.TrimSpace(init) == "" {
		r.Warn(schema.General, n.Pos, n.Name, "write key_files(PUBLIC,PRIVATE) or directory(path(DIRECTORY))", "without init it names no keys")
	} else {
		r.Fail(n.At("init"), n.Name, "write key_files(PUBLIC,PRIVATE) or directory(path(DIRECTORY))", "init: %q names no keys", init)
	}
}

// publicKey reads how keys are chosen.
func (r *reader) publicKey(n *schema.Node, s *settings) {
	for name := range strings.FieldsFuncSeq(n.Str("signature-algorithms"), func(c rune) bool { return c == ',' || c == ' ' }) {
		s.signWith = append(s.signWith, name)
	}
	if text, given := n.Get("signature-algorithms"); given && len(s.signWith) == 0 {
		r.Fail(n.At("signature-algorithms"), n.Name, "write names with commas, or leave it out", "signature-algorithms: %q names none", text)
	}
	sel := n.Child("key-selection")
	if sel == nil {
		return
	}
	choice := profiles.KeySelection{Shy: sel.Str("policy") == "interactive-shy"}
	for _, c := range sel.Children {
		switch c.Name {
		case "public-key":
			form := profiles.PlainKey
			if c.Str("type") == "certificate" {
				form = profiles.CertifiedKey
			}
			if !c.Flawed && !slices.Contains(choice.Types, form) {
				choice.Types = append(choice.Types, form)
			}
		case "issuer-name":
			r.issuer(c, &choice)
		}
	}
	s.selection = &choice
}

// issuer reads an authority whose certificates may be used. Ours have no names, but
// keys; a file made for X.509 names one that no certificate here is of.
func (r *reader) issuer(n *schema.Node, choice *profiles.KeySelection) {
	choice.IssuerOfServer = choice.IssuerOfServer || n.Yes("match-server-certificate")
	name, given := n.Get("name")
	switch {
	case given && strings.HasPrefix(name, "SHA256:") && keyfile.CheckHash(name) == nil:
		choice.Issuers = append(choice.Issuers, name)
	case given && name != "":
		r.Warn(schema.General, n.At("name"), n.Name, "write the SHA256:... fingerprint of the authority's key, as ssh-keygen -l prints it",
			"no OpenSSH certificate has an issuer of this name, and X.509 certificates are not used: no certificate will fit")
		choice.Issuers = append(choice.Issuers, name)
	case !n.Yes("match-server-certificate"):
		r.Fail(n.Pos, n.Name, `write name="SHA256:..." or match-server-certificate="yes"`, "no issuer is named")
	}
}

// identity returns one entry of Profile.Identities.
func (r *reader) identity(n *schema.Node) (entry string, ok bool) {
	for _, name := range []string{"identity-file", "file"} {
		file, given := n.Get(name)
		switch {
		case !given:
		case file == "":
			r.Fail(n.At(name), n.Name, "", "%s is empty", name)
		case strings.HasSuffix(file, "-cert.pub"):
			return r.path(file), true
		default:
			return r.path(strings.TrimSuffix(file, ".pub")), true
		}
	}
	for _, name := range []string{"hash", "id"} {
		hash, given := n.Get(name)
		if !given {
			continue
		}
		if err := keyfile.CheckHash(hash); err != nil {
			r.Fail(n.At(name), n.Name, "ssh-broker-ctl list-keys has the hashes of the keys that there are", "%s: %v", name, err)
			continue
		}
		return "#" + strings.TrimPrefix(strings.TrimSpace(hash), "#"), true
	}
	if _, given := n.Get("data"); given {
		r.Remark(schema.NotActedOn, n.At("data"), n.Name, "data")
	}
	return "", false
}

// build completes the stores with those that are there unless a file says otherwise.
func (k keyStores) build(p *profiles.Profile, userDir string) {
	p.KeyStores = slices.Clone(k.stores)
	if userDir != "" {
		if !k.identification {
			p.KeyStores = append(p.KeyStores, profiles.KeyStore{Index: identificationFile(userDir), Base: userDir})
		}
		if !k.userKeys {
			p.KeyStores = append(p.KeyStores, profiles.KeyStore{Dir: userDir, Unless: identificationFile(userDir)})
		}
	}
	p.Remember = k.remember
	// Keys that key-store names have no times of their own.
	for i := range p.KeyStores {
		if s := &p.KeyStores[i]; s.Index == "" && s.Unless == "" && s.Remember == (profiles.Remember{}) {
			s.Remember = k.remember
		}
	}
}

// combine adds what a later file says.
func (k keyStores) combine(later keyStores) keyStores {
	if later.userKeys {
		k.remember = later.remember
	}
	return keyStores{
		stores:         slices.Concat(k.stores, later.stores),
		userKeys:       k.userKeys || later.userKeys,
		identification: k.identification || later.identification,
		remember:       k.remember,
	}
}
