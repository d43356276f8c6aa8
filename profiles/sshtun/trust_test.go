package sshtun_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
	"sshbroker/profiles/tuntest"
)

// A host certificate of an authority on file, shown by OpenSSH: by each of the three
// ways in which a profile can ask for it, and to a user whose own certificate is of the
// same authority.
func TestHostCertificate(t *testing.T) {
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca")
	keygen(t, "-t", "ed25519", "-N", "", "-f", ca)
	hostKey := filepath.Join(dir, "host")
	keygen(t, "-t", "ed25519", "-N", "", "-f", hostKey)
	keygen(t, "-s", ca, "-I", "the host", "-h", "-n", "127.0.0.1", "-V", "+1h", hostKey+".pub")
	peer := tuntest.StartOpenSSH(t, "HostKey "+hostKey, "HostCertificate "+hostKey+"-cert.pub")
	authority := strings.TrimSpace(readFile(t, ca+".pub"))
	p := peer.Profile
	key := fmt.Sprintf("[127.0.0.1]:%d %s", p.Port, readFile(t, hostKey+".pub"))
	p.KnownHosts = []string{file(t, "known_hosts", key)}
	certified := file(t, "known_hosts", "@cert-authority * "+authority+"\n")
	both := file(t, "known_hosts", "@cert-authority * "+authority+"\n"+key)

	for _, test := range []struct {
		name  string
		proof profiles.ServerProof
		known string
		want  string // part of the refusal; "": connected
		shown string // of what it was trusted by
	}{
		{"certificate known", profiles.AnyProof, certified, "", "certificate"},
		{"certificate first", profiles.AnyProof, both, "", "certificate"},
		{"certificate asked for", profiles.CertificateProof, both, "", "certificate"},
		{"key asked for", profiles.KeyProof, both, "", "key"},
		{"key asked for and not known", profiles.KeyProof, certified, "is not known", ""},
		{"certificate asked for and no authority", profiles.CertificateProof, peer.Profile.KnownHosts[0], "@cert-authority", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := *peer.Profile
			p.ServerProof, p.KnownHosts = test.proof, []string{test.known}
			tr, err := connect(t, &p, nil)
			if test.want != "" {
				if !errors.Is(err, profiles.ErrHostKey) || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if key := tr.(profiles.Describer).Describe().HostKey; strings.Contains(key, "cert") != (test.shown == "certificate") {
				t.Errorf("trusted by %s", key)
			}
		})
	}

	t.Run("issuer of the server", func(t *testing.T) {
		id := filepath.Join(dir, "id")
		keygen(t, "-t", "ed25519", "-N", "", "-f", id)
		keygen(t, "-s", ca, "-I", "me", "-n", "tester", "-V", "+1h", id+".pub")
		authorize(t, peer, `cert-authority,principals="tester" `+authority)
		p := *peer.Profile
		p.Identities, p.KeySelection.IssuerOfServer = []string{id}, true
		p.KnownHosts = []string{certified}
		if _, err := connect(t, &p, nil); err != nil {
			t.Errorf("same authority: %v", err)
		}
		p.KnownHosts = peer.Profile.KnownHosts // by its key: no authority is known then
		if _, err := connect(t, &p, nil); !errors.Is(err, profiles.ErrAuth) || !strings.Contains(err.Error(), "its authority is none") {
			t.Errorf("no authority: %v", err)
		}
	})
}

// A key is stored at the first connect and trusted at the second, and another server in
// the same place is refused with both fingerprints, under every policy but one.
func TestTrustInDirectory(t *testing.T) {
	_, p := tuntest.StartServer(t, nil)
	other, q := tuntest.StartServer(t, nil)
	dir := filepath.Join(t.TempDir(), "hostkeys")
	p.KnownHosts, p.StoreKnownHost, p.HostKeyPolicy, p.PlainKeyNames = nil, dir+"/", profiles.TOFU, true
	if _, err := connect(t, p, nil); err != nil {
		t.Fatal(err)
	}
	p.HostKeyPolicy = profiles.Strict
	if _, err := connect(t, p, nil); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%v, %v", entries, err)
	}
	changed := strings.Replace(entries[0].Name(), portText(p.Port), portText(q.Port), 1)
	if err := os.Rename(filepath.Join(dir, entries[0].Name()), filepath.Join(dir, changed)); err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.ParsePrivateKey(other.HostKey)
	if err != nil {
		t.Fatal(err)
	}
	q.KnownHosts, q.StoreKnownHost = nil, dir+"/"
	for _, policy := range []profiles.HostKeyPolicy{profiles.Strict, profiles.Ask, profiles.TOFU, profiles.Advisory} {
		r := *q
		r.HostKeyPolicy = policy
		_, err := connect(t, &r, nil)
		if policy == profiles.Advisory {
			if err != nil {
				t.Errorf("advisory: %v", err)
			}
			continue
		}
		if !errors.Is(err, profiles.ErrHostKey) || !strings.Contains(err.Error(), "CHANGED") ||
			!strings.Contains(err.Error(), ssh.FingerprintSHA256(signer.PublicKey())) || strings.Count(err.Error(), "SHA256:") != 2 {
			t.Errorf("policy %d: %v", policy, err)
		}
	}
}

func portText(port uint16) string { return fmt.Sprintf("key_%d_", port) }

// A probe shows every key of a server, and none that is not there.
func TestProbe(t *testing.T) {
	dir := t.TempDir()
	var lines, want []string
	for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
		key := filepath.Join(dir, kind)
		keygen(t, "-t", kind, "-N", "", "-f", key)
		lines = append(lines, "HostKey "+key)
		want = append(want, strings.Join(strings.Fields(readFile(t, key+".pub"))[:2], " "))
	}
	peer := tuntest.StartOpenSSH(t, lines...)
	show := func(p *profiles.Profile) []string {
		t.Helper()
		keys, err := connector(t).Probe(t.Context(), p.Host, p.Port)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, k := range keys {
			got = append(got, k.Type+" "+k.Public)
		}
		return got
	}
	if got := show(peer.Profile); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	bear := tuntest.StartDropbear(t)
	if got := show(bear.Profile); len(got) != 1 || !strings.Contains(readFile(t, bear.Profile.KnownHosts[0]), got[0]) {
		t.Errorf("Dropbear shows %q", got)
	}
	for _, bad := range []struct {
		host string
		port uint16
		want error
	}{{"127.0.0.1", listenRaw(t, nil), profiles.ErrConnect}, {"-x", 22, profiles.ErrSetup}, {"gw", 0, profiles.ErrSetup}} {
		if _, err := connector(t).Probe(t.Context(), bad.host, bad.port); !errors.Is(err, bad.want) {
			t.Errorf("%s port %d: %v", bad.host, bad.port, err)
		}
	}
}
