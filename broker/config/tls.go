package config

import (
	"os"
	"slices"
	"strings"
	"time"

	"sshbroker/broker/config/schema"
	"sshbroker/profiles"
	"sshbroker/profiles/certfile"
)

const (
	// tlsPort is the port of a profile of protocol tls that gives none.
	tlsPort = 443
	// tlsRekey is how much one connection of TLS carries where the profile gives no rekey:
	// AES-GCM is good for 2^24.5 records of 16 KiB (RFC 8446 section 5.5), and crypto/tls
	// renews no keys.
	tlsRekey = 64 << 30
	// expiresSoon is how long before its end check-config warns of a certificate, where
	// that was made to live longer.
	expiresSoon = 14 * 24 * time.Hour
)

// ofSSH are the elements of a profile that mean nothing to TLS.
var ofSSH = []string{"hostkey", "ciphers", "macs", "kexs", "hostkey-algorithms", "authentication-methods", "user-identities",
	"compression", "server-banners", "forwards", "remote-environment", "server-authentication-methods"}

// tls reads what makes a profile one of protocol tls, and refuses what does not go with
// that.
func (r *reader) tls(n *schema.Node, p *profile) {
	t := n.Child("tls")
	if n.Str("protocol") != "tls" {
		if t != nil && !n.Flawed {
			r.Fail(t.Pos, t.Name, `write <profile protocol="tls" ...>`, "the element is for profiles of protocol tls")
		}
		return
	}
	p.protocol, p.port = profiles.TLS, tlsPort
	if t == nil {
		r.Fail(n.At("protocol"), n.Name, `add <tls ca-file="..." certificate="..." key="..."/>`, "a profile of protocol tls needs an element tls")
		return
	}
	for _, c := range n.Children {
		if slices.Contains(ofSSH, c.Name) {
			r.Fail(c.Pos, c.Name, "take it out", "it is of SSH, and means nothing in a profile of protocol tls")
		}
	}
	if p.host == "" || p.host == "*" {
		r.Fail(n.At("host"), n.Name, "name the gateway or the proxy", "host: a profile of protocol tls names its server")
	}
	r.tlsElement(t, p)
	secret := n.Child("password")
	_, named := n.Get("user")
	switch {
	case !p.tls.Proxy && named:
		r.Fail(n.At("user"), n.Name, "take it out: the certificate says who we are", "user: nobody logs in at an ssh-gateway")
	case !p.tls.Proxy && secret != nil:
		r.Fail(secret.Pos, secret.Name, "take it out: the certificate says who we are", `a password is for proxies alone, with carrier="connect"`)
	case p.askUser:
		r.Fail(n.At("user"), n.Name, "write the name, with a password, or neither", "user: nobody is asked for the user of a proxy")
	case secret != nil && p.user == "":
		r.Fail(secret.Pos, secret.Name, "add user to the profile", "a password for a proxy needs a user")
	case secret == nil && p.user != "":
		r.Fail(n.At("user"), n.Name, `add <password file="..."/>`, "user: the user of a proxy needs a password")
	}
}

func (r *reader) tlsElement(t *schema.Node, p *profile) {
	for name := range strings.SplitSeq(t.Str("ca-file"), ",") {
		if name = strings.TrimSpace(name); name != "" {
			p.tls.CAFiles = append(p.tls.CAFiles, r.path(name))
		}
	}
	p.tls.SystemRoots = t.Yes("system-ca")
	p.tls.Certificate, p.tls.Key = r.path(t.Str("certificate")), r.path(t.Str("key"))
	p.tls.ServerName, p.tls.Service = t.Str("server-name"), t.Str("service")
	p.tls.Proxy = t.Str("carrier") == "connect"
	if t.Flawed {
		return
	}
	if len(p.tls.CAFiles) == 0 && !p.tls.SystemRoots {
		r.Fail(t.Pos, t.Name, `write ca-file="...", or system-ca="yes" for a server with a certificate of a public authority`, "no authority is given that the server's certificate has to come from")
	}
	switch {
	case (p.tls.Certificate == "") != (p.tls.Key == ""):
		r.Fail(t.Pos, t.Name, `write certificate="..." key="..."`, "certificate and key go together")
	case p.tls.Certificate == "" && !p.tls.Proxy:
		r.Fail(t.Pos, t.Name, `write certificate="..." key="...", or carrier="connect" for a proxy that wants none`, "an ssh-gateway wants to know who we are by a certificate")
	}
	if err := profiles.CheckHost(p.tls.ServerName); p.tls.ServerName != "" && err != nil {
		r.Fail(t.At("server-name"), t.Name, "", "server-name: %v", err)
	}
	switch err := profiles.CheckHost(p.tls.Service); {
	case p.tls.Service == "":
	case p.tls.Proxy:
		r.Fail(t.At("service"), t.Name, "take it out, or take carrier out", "service: only an ssh-gateway has services")
	case err != nil:
		r.Fail(t.At("service"), t.Name, "write the name as the gateway's configuration has it", "service: %q is not the name of a service", p.tls.Service)
	}
}

// applyTLS makes p one of protocol tls. No login of default-settings is for a proxy.
func (p *profile) applyTLS(out *profiles.Profile) {
	out.Protocol, out.TLS, out.User = profiles.TLS, p.tls, p.user
	if p.password == nil {
		out.PasswordText, out.PasswordFile, out.PasswordCmd = "", "", ""
	}
	if p.rekey == nil {
		out.RekeyBytes = tlsRekey
	}
}

// certificate warns of files of certificates that a connection could not be made with, or
// soon could not.
func (l *lint) certificate(n *schema.Node) {
	names := certfile.Names{System: n.Yes("system-ca")}
	for name := range strings.SplitSeq(n.Str("ca-file"), ",") {
		if name = strings.TrimSpace(name); name != "" {
			names.Authorities = append(names.Authorities, l.resolve(name))
		}
	}
	if name := n.Str("certificate"); name != "" {
		names.Certificate, names.Key = l.resolve(name), l.resolve(n.Str("key"))
		if info, err := os.Stat(names.Key); err == nil && forOthers(info) {
			l.warn(n.At("key"), n.Name, "chmod 600 "+names.Key, "others can read the key in %s: it has the mode %04o", names.Key, info.Mode().Perm())
		}
	}
	files, err := certfile.Load(names)
	if err != nil {
		l.warn(n.Pos, n.Name, "", "no connection can be made: %v", err)
		return
	}
	now := time.Now()
	if err := files.Current(now); err != nil {
		l.warn(n.At("certificate"), n.Name, "put another one, with its key, in its place", "no connection can be made: %v", err)
	} else if end := files.Expires(); !end.IsZero() && end.Sub(now) < expiresSoon && end.Sub(files.Certificate.Leaf.NotBefore) > expiresSoon {
		l.warn(n.At("certificate"), n.Name, "", "our certificate expires on %s", end.UTC().Format("2006-01-02 15:04 MST"))
	}
}
