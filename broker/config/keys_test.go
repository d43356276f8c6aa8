package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sshbroker/profiles"
)

// Every sentence of ssh-broker-config(5) about where keys of servers are looked up and
// stored.
func TestKnownHostsOrder(t *testing.T) {
	root := t.TempDir()
	dir, file := filepath.Join(root, "dir"), filepath.Join(root, "file")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const own = "/home/ann/.ssh2/hostkeys/"
	tectia := own + " /etc/ssh2/hostkeys/"
	openssh := "/home/ann/.ssh/known_hosts /etc/ssh/ssh_known_hosts"
	for _, test := range []struct {
		name, elements string
		places, store  string
		plain          bool
	}{
		{"none", ``, tectia + " " + openssh, own, false},
		{"format alone, for the default directory", `<known-hosts filename-format="plain"/>`, tectia + " " + openssh, own, true},
		{"default is hash", `<known-hosts filename-format="default"/>`, tectia + " " + openssh, own, false},
		{"a lone file, then the defaults", `<known-hosts file="FILE"/>`, "FILE " + tectia, own, false},
		{"empty path: no OpenSSH files", `<known-hosts path=""/>`, tectia, own, false},
		{"empty file: no OpenSSH files", `<known-hosts file=""/>`, tectia, own, false},
		{"path that is a file", `<known-hosts path="FILE"/>`, "FILE " + tectia, own, false},
		{"path that is a directory", `<known-hosts path="DIR"/>`, "DIR/", "DIR/", false},
		{"path that will be a directory", `<known-hosts path="DIR/new/"/>`, "DIR/new/", "DIR/new/", false},
		{"directory", `<known-hosts directory="DIR/new"/>`, "DIR/new/", "DIR/new/", false},
		{"in order", `<known-hosts file="FILE"/><known-hosts directory="DIR"/><known-hosts path="/etc/x"/>`, "FILE DIR/ /etc/x", own, false},
		{"the last one stores", `<known-hosts directory="/a"/><known-hosts directory="DIR" filename-format="plain"/>`, "/a/ DIR/", "DIR/", true},
		{"its directory before its path", `<known-hosts path="DIR" directory="/a"/>`, "/a/ DIR/", "/a/", false},
		{"format of the last one alone counts", `<known-hosts directory="/a" filename-format="plain"/><known-hosts directory="DIR"/>`, "/a/ DIR/", "DIR/", false},
		{"format for what follows", `<known-hosts filename-format="plain"/><known-hosts directory="DIR"/>`, "DIR/", "DIR/", true},
		{"its own format wins", `<known-hosts filename-format="plain"/><known-hosts directory="DIR" filename-format="hash"/>`, "DIR/", "DIR/", false},
		{"each place once", `<known-hosts file="FILE"/><known-hosts path="FILE"/>`, "FILE " + tectia, own, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			fill := strings.NewReplacer("DIR", dir, "FILE", file).Replace
			c := loadText(t, document("<general>"+fill(test.elements)+"</general>"))
			if got := strings.Join(c.Defaults.KnownHosts, " "); got != fill(test.places) {
				t.Errorf("searched %s\nwant     %s", got, fill(test.places))
			}
			if c.Defaults.StoreKnownHost != fill(test.store) || c.Defaults.PlainKeyNames != test.plain {
				t.Errorf("stores in %s, plain %t", c.Defaults.StoreKnownHost, c.Defaults.PlainKeyNames)
			}
		})
	}
}

// Stores of both files count, the global ones first.
func TestKeyStores(t *testing.T) {
	global := write(t, "global.xml", document(`<general><key-stores><key-store type="software" init="key_files(/g.pub,/g)"/>
		<identification file="/ids" base-path="/base" passphrase-timeout="5"/></key-stores></general>`))
	user := write(t, "user.xml", document(`<general><key-stores><user-keys directory="%D/keys" passphrase-timeout="60" passphrase-idle-timeout="7"/>
		<key-store type="software" init=" directory( path(%D/more) ) "/></key-stores></general>`))
	c, err := Load(Options{GlobalFile: global, File: user, Env: testEnv()})
	if err != nil {
		t.Fatal(err)
	}
	times := profiles.Remember{For: time.Minute, Idle: 7 * time.Second}
	equal(t, "stores", c.Defaults.KeyStores, []profiles.KeyStore{
		{File: "/g", Public: "/g.pub", Remember: times},
		{Index: "/ids", Base: "/base", Remember: profiles.Remember{For: 5 * time.Second}},
		{Dir: "/home/ann/keys", Remember: times},
		{Dir: "/home/ann/more", Remember: times},
	})
	equal(t, "times of others", c.Defaults.Remember, times)
}

func TestChoiceOfKeys(t *testing.T) {
	c := loadText(t, document(`<default-settings user="*"><authentication-methods>
		<auth-publickey signature-algorithms="rsa-sha2-512,ssh-ed25519"><key-selection policy="interactive-shy">
		<public-key type="certificate"/><public-key type="plain"/><public-key type="certificate"/>
		<issuer-name name="SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"/><issuer-name match-server-certificate="yes"/></key-selection></auth-publickey>
		<auth-password/></authentication-methods>
		<server-authentication-methods><auth-server-certificate/></server-authentication-methods></default-settings>
		<profiles><profile id="p" host="h" user="me"><authentication-methods><auth-publickey/></authentication-methods>
		<hostkey>AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f</hostkey>
		<server-authentication-methods><auth-server-certificate/><auth-server-publickey policy="strict"/></server-authentication-methods></profile>
		<profile id="q" host="h" user="*"/></profiles>`))
	want := profiles.KeySelection{Shy: true, Types: []profiles.KeyType{profiles.CertifiedKey, profiles.PlainKey},
		Issuers: []string{"SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}, IssuerOfServer: true}
	equal(t, "selection", c.Defaults.KeySelection, want)
	equal(t, "algorithms", c.Defaults.SignWith, []string{"rsa-sha2-512", "ssh-ed25519"})
	p, q := c.Profiles["p"], c.Profiles["q"]
	if c.Defaults.User != "" || p.User != "me" || q.User != "" || c.Logins["p"] != "me" || c.Logins["q"] != "" || c.Logins[""] != "" {
		t.Errorf("users %q %q %q, logins %v", c.Defaults.User, p.User, q.User, c.Logins)
	}
	if c.Defaults.ServerProof != profiles.CertificateProof || p.ServerProof != profiles.AnyProof || p.HostKeyText == "" {
		t.Errorf("proof %d and %d, host key %q", c.Defaults.ServerProof, p.ServerProof, p.HostKeyText)
	}
}
