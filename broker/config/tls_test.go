package config

import (
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"sshbroker/profiles"
	"sshbroker/profiles/tuntest"
)

// TestTLSProfile: what a profile of protocol tls says is what its tunnel is told, and of
// default-settings nothing is that is for logins.
func TestTLSProfile(t *testing.T) {
	file := write(t, "c.xml", `<secsh-broker>
<default-settings user="root">
  <authentication-methods><auth-password><password string="of sshd"/></auth-password></authentication-methods>
  <idle-timeout time="9"/>
</default-settings>
<profiles>
  <profile id="gw" host="gw1.example.com, gw2.example.com:8443" protocol="TLS">
    <tls ca-file="/etc/a.pem, ~/b.pem" certificate="/etc/me.pem" key="/etc/me.key" server-name="gw.example.com" service="db"/>
  </profile>
  <profile id="proxy" host="proxy.example.com" port="3129" protocol="tls" user="alice" gateway-profile="gw">
    <password string="secret"/>
    <tls system-ca="yes" carrier="connect"/>
    <rekey bytes="1000"/>
  </profile>
</profiles></secsh-broker>`)
	c, err := Load(Options{File: file, Env: testEnv()})
	if err != nil {
		t.Fatal(err)
	}
	home := testEnv().Home
	gw, proxy := c.Profiles["gw"], c.Profiles["proxy"]
	wantTLS := profiles.TLSSettings{CAFiles: []string{"/etc/a.pem", filepath.Join(home, "b.pem")}, Certificate: "/etc/me.pem", Key: "/etc/me.key",
		ServerName: "gw.example.com", Service: "db"}
	if gw.Protocol != profiles.TLS || !reflect.DeepEqual(gw.TLS, wantTLS) {
		t.Errorf("%+v", gw.TLS)
	}
	if gw.Host != "gw1.example.com" || gw.Port != 443 || !reflect.DeepEqual(gw.More, []profiles.Server{{Host: "gw2.example.com", Port: 8443}}) {
		t.Errorf("servers %s:%d, %v", gw.Host, gw.Port, gw.More)
	}
	if gw.User != "" || gw.PasswordText != "" || gw.IdleTimeout != 9*time.Second || gw.RekeyBytes != tlsRekey {
		t.Errorf("user %q, password %q, idle %s, rekey %d", gw.User, gw.PasswordText, gw.IdleTimeout, gw.RekeyBytes)
	}
	if !proxy.TLS.Proxy || !proxy.TLS.SystemRoots || proxy.Port != 3129 || proxy.User != "alice" || proxy.PasswordText != "secret" || proxy.RekeyBytes != 1000 || proxy.Gateway != gw {
		t.Errorf("%+v", proxy)
	}
	if len(c.Logins) != 1 || c.Logins[""] != "root" {
		t.Errorf("logins %v", c.Logins)
	}
}

// TestTLSFiles: check-config tells what is wrong with files of certificates.
func TestTLSFiles(t *testing.T) {
	authority := tuntest.NewAuthority(t, "ca")
	year := func(c *x509.Certificate) { c.NotBefore = time.Now().AddDate(-1, 0, 0) }
	cert, key := authority.Issue(t, "me", nil)
	old, oldKey := authority.Issue(t, "old", year)
	ended, endedKey := authority.Issue(t, "ended", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	server, serverKey := authority.Issue(t, "server", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	open, openKey := authority.Issue(t, "open", nil)
	if err := os.Chmod(openKey, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ ca, cert, key, want string }{
		{authority.File, cert, key, ""},
		{"/nowhere/ca.pem", cert, key, "no connection can be made: open /nowhere/ca.pem: no such file"},
		{key, cert, key, "no PEM certificate in it"},
		{authority.File, cert, oldKey, "private key does not match"},
		{authority.File, cert, cert, "no connection can be made"},
		{authority.File, old, oldKey, "our certificate expires on "},
		{authority.File, ended, endedKey, "our certificate has expired"},
		{authority.File, server, serverKey, "not one for clients"},
		{authority.File, open, openKey, "others can read the key in " + openKey},
	} {
		file := write(t, "c.xml", fmt.Sprintf(`<secsh-broker><profiles><profile id="gw" host="gw.example.com" protocol="tls">
<tls ca-file="%s" certificate="%s" key="%s"/></profile></profiles></secsh-broker>`, c.ca, c.cert, c.key))
		said := Check(file, Options{Env: testEnv()}).Error()
		if c.want == "" && said != "" || !strings.Contains(said, c.want) {
			t.Errorf("%s, %s, %s: %q; want %q", c.ca, c.cert, c.key, said, c.want)
		}
	}
}
