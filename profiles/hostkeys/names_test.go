package hostkeys

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
)

// A server is the same one however its name is written.
func TestNamesOfOneServer(t *testing.T) {
	known, other := newKey(t), newKey(t)
	for _, test := range []struct{ line, host string }{
		{"gw.example", "GW.Example"},
		{"GW.Example", "gw.example"},
		{"*.EXAMPLE,!BAD.example", "gw.example"},
		{"[GW.example]:22", "gw.example"},
		{"2001:db8::1", "2001:DB8::1"},
		{"2001:db8::1", "2001:db8:0:0:0:0:0:1"},
	} {
		for _, directory := range []bool{false, true} {
			if directory && strings.ContainsAny(test.line, "*[G") {
				continue
			}
			dir := t.TempDir()
			p := &profiles.Profile{Host: test.host, Port: 22, HostKeyPolicy: profiles.TOFU, StoreKnownHost: filepath.Join(dir, "new")}
			if directory {
				p.StoreKnownHost = dir + "/"
				p.KnownHosts = []string{dir + "/"}
				if err := storeIn(dir, test.line, 22, known, true, ""); err != nil {
					t.Fatal(err)
				}
			} else {
				p.KnownHosts = []string{filepath.Join(dir, "known_hosts")}
				if err := os.WriteFile(p.KnownHosts[0], []byte(test.line+" "+keyLine(known)+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for _, k := range []struct {
				key     ssh.PublicKey
				trusted bool
			}{{other, false}, {known, true}} {
				c, err := New(p, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				if err := c.Check(t.Context(), from, k.key, nil); (err == nil) != k.trusted {
					t.Errorf("%+v, directory %v: known %v: %v", test, directory, k.trusted, err)
				}
			}
		}
	}
}

// A line with a pattern, whatever it is for, is no reason to refuse an address of IPv6 at
// another port, nor to pass over a revocation.
func TestIPv6BesidePatterns(t *testing.T) {
	dir := t.TempDir()
	key, revoked, pattern := newKey(t), newKey(t), newKey(t)
	file, keys := filepath.Join(dir, "known_hosts"), filepath.Join(dir, "keys")
	text := "*.example " + keyLine(pattern) + "\n2001:db8:1:* " + keyLine(pattern) + "\n2001:db8::2 " + keyLine(pattern) + "\n@revoked * " + keyLine(revoked) + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := storeIn(keys, "2001:db8::3", 2222, revoked, true, ""); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, host string
		key        ssh.PublicKey
		want       string // "": trusted
	}{
		{"new", "2001:db8::1", key, ""},
		{"that of port 22, as ssh has it", "2001:db8::2", pattern, ""},
		{"new beside port 22", "2001:db8::2", key, ""},
		{"by pattern", "2001:db8:1::1", pattern, ""},
		{"changed by pattern", "2001:db8:1::1", key, "HAS CHANGED"},
		{"revoked", "2001:db8::1", revoked, "REVOKED"},
		{"revoked and in a directory", "2001:db8::3", revoked, "REVOKED"},
	} {
		p := &profiles.Profile{Host: test.host, Port: 2222, HostKeyPolicy: profiles.TOFU, KnownHosts: []string{keys + "/", file}, StoreKnownHost: filepath.Join(t.TempDir(), "new")}
		c, err := New(p, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		err = c.Check(t.Context(), from, test.key, nil)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

// What one store takes back no other makes good, be it the key of a certificate or that
// of its authority.
func TestRevokedCertificates(t *testing.T) {
	authority, key := newSigner(t), newKey(t)
	cert := certify(t, authority, key, "gw.example")
	for name, revoked := range map[string]ssh.PublicKey{"key": key, "authority": authority.PublicKey()} {
		dir := t.TempDir()
		one, other := filepath.Join(dir, "one"), filepath.Join(dir, "other")
		for file, line := range map[string]string{one: "@revoked * " + keyLine(revoked), other: "@cert-authority * " + keyLine(authority.PublicKey())} {
			if err := os.WriteFile(file, []byte(line+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, places := range [][]string{{one, other}, {one, dir + "/keys/", other}, {other, dir + "/keys/", one}} {
			c, err := New(&profiles.Profile{Host: "gw.example", Port: 22, KnownHosts: places}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			var told []profiles.EventKind
			c.Observe = func(e profiles.Event) { told = append(told, e.Kind) }
			err = c.Check(t.Context(), from, cert, nil)
			if err == nil || !strings.Contains(err.Error(), "REVOKED") || len(told) != 1 || told[0] != profiles.HostKeyRevoked {
				t.Errorf("%s, %d places: %v, told %v", name, len(places), err, told)
			}
		}
	}
}

// The key of an authority is no server's own, at no port.
func TestAuthorityAtAnotherPort(t *testing.T) {
	authority := newKey(t)
	for _, host := range []string{"gw.example", "2001:db8::1"} {
		file := filepath.Join(t.TempDir(), "known_hosts")
		text := "@cert-authority " + host + " " + keyLine(authority) + "\n*.other " + keyLine(newKey(t)) + "\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := New(&profiles.Profile{Host: host, Port: 2222, KnownHosts: []string{file}}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Check(t.Context(), from, authority, nil); err == nil {
			t.Errorf("%s: the authority's key is taken for the server's", host)
		}
	}
}

// Other programs name files of a directory by what somebody typed.
func TestNamesInDirectory(t *testing.T) {
	known, other := newKey(t), newKey(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "key_22_GW.Example.pub"), []byte(rfc4716(known)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"GW.Example", "gw.example", "Gw.example"} {
		for i, k := range []ssh.PublicKey{known, other} {
			p := &profiles.Profile{Host: host, Port: 22, HostKeyPolicy: profiles.TOFU, KnownHosts: []string{dir + "/"}, StoreKnownHost: filepath.Join(t.TempDir(), "new")}
			if err := check(t, p, k, nil); (err == nil) != (i == 0) {
				t.Errorf("%s, key %d: %v", host, i, err)
			}
		}
	}
}
