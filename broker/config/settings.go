package config

import (
	"errors"
	"slices"
	"strings"
	"time"

	"sshbroker/broker/config/schema"
	"sshbroker/profiles"
	"sshbroker/profiles/proxy"
)

// settings are what default-settings and profiles have in common. A nil or empty
// field says nothing and leaves what the level below says.
type settings struct {
	user    string // "": the level below, but for askUser
	askUser bool   // somebody is asked for it

	ciphers, macs, kexs, hostKeyAlgorithms []string

	rekey        *uint64
	methods      []profiles.AuthMethod
	authPassword *password // inside auth-password
	password     *password // of the profile itself, which wins
	identities   []string
	selection    *profiles.KeySelection
	signWith     []string
	proxy        *string
	idle         *time.Duration
	connect      *time.Duration
	keepalive    *time.Duration
	policy       *profiles.HostKeyPolicy
	proof        *profiles.ServerProof
	hostKeyFile  string
	hostKeyText  string
	family       *profiles.AddressFamily
	exclusive    *bool
	transports   *uint64
}

// password is one of three ways to give a password. Its text is never logged.
type password struct{ text, file, command string }

// settings reads the children that default-settings and profile share, and user.
func (r *reader) settings(n *schema.Node) settings {
	var s settings
	s.user, s.askUser = r.user(n)
	if n, ok := n.Number("transports"); ok {
		s.transports = &n
	}
	for _, c := range n.Children {
		switch c.Name {
		case "ciphers":
			s.ciphers = r.names(c)
		case "macs":
			s.macs = r.names(c)
		case "kexs":
			s.kexs = r.names(c)
		case "hostkey-algorithms":
			s.hostKeyAlgorithms = r.names(c)
		case "rekey":
			if bytes, ok := c.Number("bytes"); ok {
				s.rekey = &bytes
			}
		case "authentication-methods":
			r.authentication(c, &s)
		case "user-identities":
			s.identities = r.identities(c)
		case "proxy":
			s.proxy = r.proxy(c)
		case "idle-timeout":
			s.idle = seconds64(c)
		case "tcp-connect-timeout":
			s.connect = seconds64(c)
		case "keepalive-interval":
			s.keepalive = seconds64(c)
		case "server-authentication-methods":
			s.policy, s.proof = r.serverAuthentication(c)
		case "password":
			s.password = r.password(c)
		case "hostkey":
			r.hostKey(c, &s)
		case "exclusive-connection":
			if !c.Flawed {
				on := c.Yes("enable")
				s.exclusive = &on
			}
		case "address-family":
			s.family = addressFamily(c.Str("type"))
		}
	}
	return s
}

// user returns the name to log in with, "" where it is left to the level below, and
// whether somebody is to be asked for it.
func (r *reader) user(n *schema.Node) (name string, ask bool) {
	user, ok := n.Get("user")
	switch {
	case !ok:
		return "", false
	case user == "*" || user == "" && n.Name == "default-settings":
		return "", true
	case user != "":
		r.checkUser(n, "user", user)
	}
	return user, false
}

// checkUser refuses names that cannot be sent to a server.
func (r *reader) checkUser(n *schema.Node, attr, user string) {
	if err := profiles.CheckUser(user); err != nil {
		r.Fail(n.At(attr), n.Name, "", "%s: %v", attr, err)
	}
}

// names returns the members of a list such as ciphers. Which of them can be used is
// found out by the transport; an empty list says nothing.
func (r *reader) names(n *schema.Node) []string {
	var list []string
	for _, c := range n.Children {
		name, ok := c.Get("name")
		switch {
		case !ok:
		case name == "" || strings.ContainsAny(name, ", "):
			r.Fail(c.At("name"), c.Name, "one element for each name", "%q is not the name of one algorithm", name)
		case slices.Contains(list, name):
			r.Warn(schema.General, c.At("name"), c.Name, "", "%s stands twice in the list", name)
		default:
			list = append(list, name)
		}
	}
	return list
}

func seconds64(n *schema.Node) *time.Duration {
	v, ok := n.Number("time")
	if !ok {
		return nil
	}
	d := time.Duration(v) * time.Second
	return &d
}

// authentication reads both forms, auth-... and authentication-method, in the order
// in which they are to be tried.
func (r *reader) authentication(n *schema.Node, s *settings) {
	for _, c := range n.Children {
		name, attr := strings.TrimPrefix(c.Name, "auth-"), ""
		if c.Name == "authentication-method" {
			name, attr = c.Str("name"), c.Str("name")
		}
		var method profiles.AuthMethod
		switch name {
		case "publickey":
			method = profiles.PublicKey
			if c.Name == "auth-publickey" {
				r.publicKey(c, s)
			}
		case "password":
			method = profiles.Password
			if p := c.Child("password"); p != nil {
				s.authPassword = r.password(p)
			}
		case "keyboard-interactive":
			method = profiles.KeyboardInteractive
		case "certificate":
			r.Fail(c.At("name"), c.Name, "write publickey", "certificate is a method of servers, not of users")
			continue
		case "":
			continue // a bad value, reported already
		default:
			r.Remark(schema.NotActedOn, c.Pos, c.Name, attr)
			continue
		}
		if slices.Contains(s.methods, method) {
			r.Warn(schema.General, c.Pos, c.Name, "", "%s stands twice in the list", name)
			continue
		}
		s.methods = append(s.methods, method)
	}
	if len(n.Children) > 0 && len(s.methods) == 0 && !anyFlawed(n.Children) {
		r.Fail(n.Pos, n.Name, "add auth-publickey, auth-keyboard-interactive or auth-password", "none of these methods can be used")
	}
}

func anyFlawed(list []*schema.Node) bool {
	return slices.ContainsFunc(list, func(n *schema.Node) bool { return n.Flawed })
}

// identities returns key files and hashes. A public key stands for the private one
// beside it.
func (r *reader) identities(n *schema.Node) []string {
	var entries []string
	for _, c := range n.Children {
		if c.Flawed {
			continue
		}
		if c.Given() != 1 {
			r.Fail(c.Pos, c.Name, `write identity-file="..."`, "an identity has exactly one of identity-file, file, hash, id and data")
			continue
		}
		if entry, ok := r.identity(c); ok {
			entries = append(entries, entry)
		}
	}
	return entries
}

func (r *reader) password(n *schema.Node) *password {
	if n.Flawed {
		return nil
	}
	if n.Given() != 1 {
		r.Fail(n.Pos, n.Name, `write file="..."`, "a password has exactly one of string, file and command")
		return nil
	}
	p := &password{text: n.Str("string"), file: r.path(n.Str("file")), command: n.Str("command")}
	if *p == (password{}) {
		r.Fail(n.Pos, n.Name, "", "the password is empty")
		return nil
	}
	return p
}

func (r *reader) proxy(n *schema.Node) *string {
	ruleset, ok := n.Get("ruleset")
	if !ok {
		return nil
	}
	_, err := proxy.Parse(ruleset)
	if bad, ok := errors.AsType[*proxy.SyntaxError](err); ok {
		r.Fail(n.Inside("ruleset", bad.Offset), n.Name, `for example "direct:///10.0.0.0/8; socks5://proxy.example.com:1080/"`, "ruleset: %s", bad.Msg)
		return nil
	}
	return &ruleset
}

func addressFamily(name string) *profiles.AddressFamily {
	var f profiles.AddressFamily
	switch name {
	case "any":
	case "inet":
		f = profiles.OnlyIPv4
	case "inet6":
		f = profiles.OnlyIPv6
	default:
		return nil
	}
	return &f
}

// apply writes what s says over p.
func (s *settings) apply(p *profiles.Profile) {
	if s.user != "" || s.askUser {
		p.User = s.user
	}
	override(&p.Ciphers, s.ciphers)
	override(&p.MACs, s.macs)
	override(&p.KEXs, s.kexs)
	override(&p.HostKeyAlgorithms, s.hostKeyAlgorithms)
	override(&p.AuthMethods, s.methods)
	override(&p.Identities, s.identities)
	override(&p.SignWith, s.signWith)
	set(&p.KeySelection, s.selection)
	for _, secret := range []*password{s.authPassword, s.password} {
		if secret != nil {
			p.PasswordText, p.PasswordFile, p.PasswordCmd = secret.text, secret.file, secret.command
		}
	}
	set(&p.RekeyBytes, s.rekey)
	if s.proxy != nil { // also one that says that there is none
		p.Proxy, p.HTTPSProxy, p.NoProxy = *s.proxy, "", ""
	}
	set(&p.IdleTimeout, s.idle)
	set(&p.ConnectTimeout, s.connect)
	set(&p.KeepaliveInterval, s.keepalive)
	set(&p.HostKeyPolicy, s.policy)
	set(&p.AddressFamily, s.family)
	set(&p.Exclusive, s.exclusive)
	if s.transports != nil {
		p.Transports = int(*s.transports)
	}
	set(&p.ServerProof, s.proof)
	if s.hostKeyFile != "" || s.hostKeyText != "" {
		p.HostKeyFile, p.HostKeyText = s.hostKeyFile, s.hostKeyText
	}
}

func override[T any](dst *[]T, list []T) {
	if len(list) > 0 {
		*dst = list
	}
}

func set[T any](dst *T, v *T) {
	if v != nil {
		*dst = *v
	}
}
