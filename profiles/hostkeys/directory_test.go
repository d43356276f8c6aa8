package hostkeys

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
	"sshbroker/profiles/keyfile"
)

// check judges key for p as a connect does.
func check(t *testing.T, p *profiles.Profile, key ssh.PublicKey, ask profiles.Prompter) error {
	t.Helper()
	c, err := New(p, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	return c.Check(t.Context(), from, key, ask)
}

// names lists a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// Files as Tectia names them, in both forms of public keys.
func TestDirectoryOfKeys(t *testing.T) {
	key, other := newKey(t), newKey(t)
	for _, test := range []struct {
		file, host string
		port       uint16
		text       string
		trusted    bool
	}{
		{"key_22_gw.example.pub", "gw.example", 22, rfc4716(key), true},
		{"key_22_gw.example.pub", "gw.example", 22, keyLine(key) + "\n", true},
		{"key_22_gw.example.pub", "GW.Example", 22, rfc4716(key), true},
		{"key_22_2001:db8::1.pub", "2001:db8::1", 22, rfc4716(key), true},
		{"key_2222_gw.example.pub", "gw.example", 2222, rfc4716(key), true},
		{"key_22_gw.example.pub", "gw.example", 2222, rfc4716(key), false},
		{"key_22_gw.example.pub", "gw", 22, rfc4716(key), false},
		{"key_22_gw.example.pub", "gw.example", 22, rfc4716(other), false},
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, test.file), test.text)
		p := &profiles.Profile{Host: test.host, Port: test.port, KnownHosts: []string{dir}}
		err := check(t, p, key, nil)
		if (err == nil) != test.trusted {
			t.Errorf("%s for %s:%d: %v", test.file, test.host, test.port, err)
		}
		if err != nil && !errors.Is(err, profiles.ErrHostKey) {
			t.Errorf("%v is not ErrHostKey", err)
		}
	}
}

// New keys go to a directory, which is made, in the plain format or in our hashed one;
// a name is nowhere in the second.
func TestStoreInDirectory(t *testing.T) {
	for name, plain := range map[string]bool{"plain": true, "hash": false} {
		t.Run(name, func(t *testing.T) {
			key, other, second := newKey(t), newKey(t), newKey(t)
			dir := filepath.Join(t.TempDir(), ".ssh2", "hostkeys")
			p := &profiles.Profile{Host: "GW.example", Port: 22, HostKeyPolicy: profiles.TOFU, StoreKnownHost: dir + "/", PlainKeyNames: plain}
			q := *p
			q.Host = "db.example"
			if err := errors.Join(check(t, p, key, nil), check(t, p, key, nil), check(t, &q, second, nil), check(t, &q, second, nil)); err != nil {
				t.Fatal(err)
			}
			list := names(t, dir)
			if plain && !slices.Equal(list, []string{"key_22_db.example.pub", "key_22_gw.example.pub"}) {
				t.Errorf("files %q", list)
			}
			if !plain && len(list) != 3 {
				t.Errorf("files %q", list)
			}
			for _, file := range list {
				text, err := os.ReadFile(filepath.Join(dir, file))
				if err != nil {
					t.Fatal(err)
				}
				if !plain && strings.Contains(file+string(text), "example") {
					t.Errorf("%s tells a name: %s", file, text)
				}
				if st, _ := os.Stat(filepath.Join(dir, file)); st.Mode().Perm() != 0o600 {
					t.Errorf("%s has mode %v", file, st.Mode())
				}
			}
			if st, _ := os.Stat(dir); st.Mode().Perm() != 0o700 {
				t.Errorf("directory mode %v", st.Mode())
			}
			// Trust on first use is no trust on second: refused with both fingerprints and
			// the file, and nothing is stored.
			err := check(t, p, other, nil)
			checkRefusal(t, err, []string{"CHANGED", ssh.FingerprintSHA256(key), ssh.FingerprintSHA256(other), dir, "rm '"})
			if again := names(t, dir); !slices.Equal(again, list) {
				t.Errorf("files %q, before %q", again, list)
			}
			if err := check(t, p, key, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

// Whoever may read the directory may read what is stored there: it is no secret, and one
// of an administrator is for all.
func TestStoredForAll(t *testing.T) {
	for mode, want := range map[os.FileMode]os.FileMode{0o700: 0o600, 0o755: 0o644, 0o750: 0o640} {
		dir := t.TempDir()
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if err := check(t, &profiles.Profile{Host: "gw", Port: 22, HostKeyPolicy: profiles.TOFU, StoreKnownHost: dir + "/"}, newKey(t), nil); err != nil {
			t.Fatal(err)
		}
		for _, name := range names(t, dir) {
			if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != want {
				t.Errorf("%s in a directory of mode %v: %v, %v", name, mode, st.Mode(), err)
			}
		}
	}
}

// Where both formats are there the hashed one counts, and what is Tectia's own hashed
// form does not stop anybody.
func TestHashedWins(t *testing.T) {
	dir := t.TempDir()
	hashed, plain := newKey(t), newKey(t)
	p := &profiles.Profile{Host: "gw", Port: 22, HostKeyPolicy: profiles.TOFU, StoreKnownHost: dir + "/"}
	if err := check(t, p, hashed, nil); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "key_22_gw.pub"), rfc4716(plain))
	write(t, filepath.Join(dir, "keys_"+strings.Repeat("0", 40)), "whatever")
	if err := check(t, p, hashed, nil); err != nil {
		t.Error(err)
	}
	checkRefusal(t, check(t, p, plain, nil), []string{"CHANGED"})
}

// With ask a person may put a changed key in place of the old one, where the old one is
// ours to replace, and only by its fingerprint.
func TestAskAboutChangedKey(t *testing.T) {
	old, fresh := newKey(t), newKey(t)
	for name, test := range map[string]struct {
		answer string
		own    bool
		nobody bool
		taken  bool
	}{
		"fingerprint":       {answer: ssh.FingerprintSHA256(fresh), own: true, taken: true},
		"yes":               {answer: "yes", own: true},
		"old fingerprint":   {answer: ssh.FingerprintSHA256(old), own: true},
		"went away":         {own: true},
		"nobody there":      {own: true, nobody: true},
		"not ours to write": {answer: ssh.FingerprintSHA256(fresh)},
	} {
		t.Run(name, func(t *testing.T) {
			mine, global := t.TempDir(), t.TempDir()
			p := &profiles.Profile{Host: "gw", Port: 22, HostKeyPolicy: profiles.Ask, PlainKeyNames: true,
				KnownHosts: []string{mine + "/", global + "/"}, StoreKnownHost: mine + "/"}
			where := global
			if test.own {
				where = mine
			}
			file := filepath.Join(where, "key_22_gw.pub")
			write(t, file, rfc4716(old))
			who := &person{answer: test.answer}
			var ask profiles.Prompter = who
			if test.nobody {
				ask = nil
			}
			err := check(t, p, fresh, ask)
			if test.taken != (err == nil) {
				t.Fatalf("got %v", err)
			}
			if !test.taken {
				checkRefusal(t, err, []string{"CHANGED", ssh.FingerprintSHA256(old), ssh.FingerprintSHA256(fresh)})
			}
			for _, q := range who.asked {
				if !q.YesNo || !strings.Contains(q.Text, ssh.FingerprintSHA256(old)) || !strings.Contains(q.Text, ssh.FingerprintSHA256(fresh)) {
					t.Errorf("asked %+v", q)
				}
			}
			want := old
			if test.taken {
				want = fresh
			}
			if err := check(t, p, want, nil); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// The first store that knows the server decides; a revocation counts from anywhere.
func TestOrderOfStores(t *testing.T) {
	key, other := newKey(t), newKey(t)
	root := t.TempDir()
	first, second := filepath.Join(root, "first"), filepath.Join(root, "second")
	file, revoked := filepath.Join(root, "known_hosts"), filepath.Join(root, "revoked")
	for _, dir := range []string{first, second} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(first, "key_22_gw.pub"), rfc4716(key))
	write(t, filepath.Join(second, "key_22_gw.pub"), rfc4716(other))
	write(t, file, "gw "+keyLine(other))
	write(t, filepath.Join(root, "more"), "gw "+keyLine(key))
	write(t, revoked, "@revoked * "+keyLine(key))
	for _, test := range []struct {
		places  []string
		trusted bool
	}{
		{[]string{first, second, file}, true},
		{[]string{second, first}, false},
		{[]string{file, first}, false},
		{[]string{root, file, first}, false}, // a directory without the server says nothing
		{[]string{file, filepath.Join(root, "more")}, true},
		{[]string{file, second, filepath.Join(root, "more")}, false},
		{[]string{first, revoked}, false},
		{[]string{filepath.Join(root, "none") + "/", first}, true},
	} {
		err := check(t, &profiles.Profile{Host: "gw", Port: 22, KnownHosts: test.places}, key, nil)
		if (err == nil) != test.trusted {
			t.Errorf("%q: %v", test.places, err)
		}
	}
}

// An alias may be anything, and leads to no file elsewhere.
func TestAliasIsNoPath(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "hostkeys")
	key := newKey(t)
	for _, name := range []string{dir, filepath.Join(dir, "key_22_x")} {
		if err := os.Mkdir(name, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(root, "evil.pub"), rfc4716(key))
	p := &profiles.Profile{Host: "gw", Port: 22, HostKeyAlias: "x/../../evil", HostKeyPolicy: profiles.TOFU, StoreKnownHost: dir + "/"}
	checkRefusal(t, check(t, p, key, nil), []string{"could not be stored"})
}

// A file where the directory should be: the connection goes on, the key is not stored.
func TestFileInPlaceOfDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hostkeys")
	write(t, file, "not a directory")
	p := &profiles.Profile{Host: "gw", Port: 22, HostKeyPolicy: profiles.TOFU, StoreKnownHost: file + "/"}
	if err := check(t, p, newKey(t), nil); err != nil {
		t.Error(err)
	}
	if text, _ := os.ReadFile(file); string(text) != "not a directory" {
		t.Errorf("the file has %q now", text)
	}
	p.StoreKnownHost = "/proc/none/" // any other failure is one
	checkRefusal(t, check(t, p, newKey(t), nil), []string{"could not be stored"})
}

// How a server may prove who it is.
func TestServerProof(t *testing.T) {
	authority := newSigner(t)
	key := newKey(t)
	cert := certify(t, authority, key, "gw")
	file := filepath.Join(t.TempDir(), "known_hosts")
	both := []string{ssh.KeyAlgoED25519, ssh.CertAlgoED25519v01}
	for _, test := range []struct {
		proof     profiles.ServerProof
		known     string
		offered   []string
		key, cert bool // trusted
	}{
		{profiles.AnyProof, "gw " + keyLine(key), both[:1], true, false},
		{profiles.AnyProof, "@cert-authority gw " + keyLine(authority.PublicKey()), []string{both[1], both[0]}, false, true},
		{profiles.AnyProof, "gw " + keyLine(key) + "\n@cert-authority gw " + keyLine(authority.PublicKey()), []string{both[1], both[0]}, true, true},
		{profiles.KeyProof, "gw " + keyLine(key) + "\n@cert-authority gw " + keyLine(authority.PublicKey()), both[:1], true, false},
		{profiles.CertificateProof, "gw " + keyLine(key) + "\n@cert-authority gw " + keyLine(authority.PublicKey()), both[1:], false, true},
		{profiles.CertificateProof, "gw " + keyLine(key), nil, false, false},
	} {
		write(t, file, test.known)
		p := &profiles.Profile{Host: "gw", Port: 22, KnownHosts: []string{file}, ServerProof: test.proof}
		c, err := New(p, logger(t))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Algorithms(both); !slices.Equal(got, test.offered) {
			t.Errorf("proof %d, %q: offered %v", test.proof, test.known[:8], got)
		}
		if len(test.offered) == 0 && !errors.Is(c.Unprovable(), profiles.ErrHostKey) {
			t.Errorf("nothing to offer: %v", c.Unprovable())
		}
		if err := c.Check(t.Context(), from, key, nil); (err == nil) != test.key {
			t.Errorf("proof %d: key: %v", test.proof, err)
		}
		if err := c.Check(t.Context(), from, cert, nil); (err == nil) != test.cert {
			t.Errorf("proof %d: certificate: %v", test.proof, err)
		}
	}
}

// A key inside the profile is the one that is trusted, as one in a file is.
func TestPinnedText(t *testing.T) {
	key := newKey(t)
	for _, text := range []string{keyLine(key), strings.Fields(keyLine(key))[1], string(keyfile.FormatRFC4716(key, ""))} {
		p := &profiles.Profile{Host: "gw", Port: 22, HostKeyText: text, HostKeyPolicy: profiles.Advisory}
		if err := check(t, p, key, nil); err != nil {
			t.Error(err)
		}
		checkRefusal(t, check(t, p, newKey(t), nil), []string{"NOT THE ONE TRUSTED", "the profile has", ssh.FingerprintSHA256(key)})
	}
	if _, err := New(&profiles.Profile{Host: "gw", Port: 22, HostKeyText: "rubbish"}, logger(t)); !errors.Is(err, profiles.ErrSetup) {
		t.Errorf("got %v", err)
	}
}
