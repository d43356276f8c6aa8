package keyfile

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha1"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles/tuntest"
)

func newKey(t testing.TB) ssh.PublicKey {
	t.Helper()
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// keygen runs ssh-keygen, which is what most key files come from.
func keygen(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("ssh-keygen")
	tuntest.Need(t, err == nil, "needs ssh-keygen (Debian package openssh-client)")
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ssh-keygen %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// Every form that ssh-keygen writes, of every type of key, with and without a
// passphrase.
func TestPrivateForms(t *testing.T) {
	for _, test := range []struct {
		kind, form string
		hidden     bool // the public half, while it is locked
	}{
		{"ed25519", "OPENSSH", false},
		{"ecdsa", "OPENSSH", false}, {"ecdsa", "PEM", true}, {"ecdsa", "PKCS8", true},
		{"rsa", "OPENSSH", false}, {"rsa", "PEM", true}, {"rsa", "PKCS8", true},
	} {
		for _, phrase := range []string{"", "open sesame"} {
			name := test.kind + " " + test.form
			if phrase != "" {
				name += " locked"
			}
			t.Run(name, func(t *testing.T) {
				file := filepath.Join(t.TempDir(), "id")
				args := []string{"-q", "-t", test.kind, "-N", phrase, "-f", file}
				if test.form != "OPENSSH" {
					args = append(args, "-m", test.form)
				}
				keygen(t, args...)
				text := read(t, file)
				public, comment, err := ParsePublic(read(t, file+".pub"))
				if err != nil || comment == "" {
					t.Fatalf("public half %v, comment %q", err, comment)
				}
				if !IsPrivate(text[:40]) || IsPrivate(read(t, file+".pub")) {
					t.Error("taken for what it is not by its beginning")
				}
				p, err := ParsePrivate(text)
				if err != nil {
					t.Fatal(err)
				}
				if p.Locked != (phrase != "") || (p.Public == nil) != (p.Locked && test.hidden) {
					t.Errorf("locked %t, public half %v", p.Locked, p.Public)
				}
				if p.Locked {
					if _, err := p.Open("wrong"); !errors.Is(err, ErrPassphrase) {
						t.Errorf("a wrong passphrase: %v", err)
					}
				}
				signer, err := p.Open(phrase)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(signer.PublicKey().Marshal(), public.Marshal()) {
					t.Error("another key")
				}
			})
		}
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// What is not read says so, and how it can be converted.
func TestForeignForms(t *testing.T) {
	for text, want := range map[string]string{
		"---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nComment: x\n": "ssh-keygen -i -f",
		"PuTTY-User-Key-File-2: ssh-rsa\n":                         "puttygen",
		"SSH PRIVATE KEY FILE FORMAT 1.1\n":                        "version 1",
	} {
		if _, err := ParsePrivate([]byte(text)); !errors.Is(err, ErrForm) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
		if !IsPrivate([]byte(text)) {
			t.Errorf("%q is no private key", text)
		}
	}
	for _, text := range []string{"", "rubbish", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if _, err := ParsePrivate([]byte(text)); err == nil || errors.Is(err, ErrForm) || IsPrivate([]byte(text)) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// The file of a security key has the public half, and cannot sign.
func TestSecurityKeyFile(t *testing.T) {
	public := ssh.Marshal(struct {
		Type string
		Key  []byte
		App  string
	}{ssh.KeyAlgoSKED25519, make([]byte, 32), "ssh:"})
	data := append([]byte("openssh-key-v1\x00"), ssh.Marshal(struct {
		Cipher, KDF, Options string
		Keys                 uint32
		Public, Private      []byte
	}{"none", "none", "", 1, public, ssh.Marshal(struct {
		Check1, Check2 uint32
		Type           string
	}{7, 7, ssh.KeyAlgoSKED25519})})...)
	p, err := ParsePrivate(pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: data}))
	if err != nil {
		t.Fatal(err)
	}
	if !p.Elsewhere || p.Locked || !bytes.Equal(p.Public.Marshal(), public) {
		t.Errorf("%+v", p)
	}
	if _, err := p.Open(""); err == nil || !strings.Contains(err.Error(), "ssh-add") {
		t.Errorf("opened: %v", err)
	}
}

func TestPublicForms(t *testing.T) {
	key := newKey(t)
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
	bare := base64.StdEncoding.EncodeToString(key.Marshal())
	for name, text := range map[string]string{
		"OpenSSH":        line + " me@here\n",
		"RFC 4716":       rfc4716(key),
		"our own":        string(FormatRFC4716(key, "me@here")),
		"bare base64":    bare,
		"base64 in rows": "\n  " + bare[:30] + "\n  " + bare[30:] + "\n",
	} {
		got, err := ParseInline(text)
		if err != nil || !bytes.Equal(got.Marshal(), key.Marshal()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, comment, err := ParsePublic([]byte(rfc4716(key))); err != nil || comment != "long and longer" {
		t.Errorf("comment %q, %v", comment, err)
	}
	for _, bad := range []string{"", "rubbish", beginPublic + "\n" + bare + "\n", beginPublic + "\nAAAA\n" + endPublic + "\n", bare[:20]} {
		if _, err := ParseInline(bad); err == nil {
			t.Errorf("%q was taken for a key", bad)
		}
	}
	// ssh-keygen reads what we write.
	file := filepath.Join(t.TempDir(), "key.pub")
	if err := os.WriteFile(file, FormatRFC4716(key, "me@here"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(keygen(t, "-i", "-f", file)); got != line {
		t.Errorf("ssh-keygen -i: %q, want %q", got, line)
	}
}

func rfc4716(key ssh.PublicKey) string {
	body := base64.StdEncoding.EncodeToString(key.Marshal())
	return beginPublic + "\r\nSubject: me\r\nComment: \"long \\\r\nand longer\"\r\n" +
		body[:20] + "\r\n" + body[20:] + "\r\n" + endPublic + "\r\n"
}

func sha1Hex(key ssh.PublicKey) string {
	sum := sha1.Sum(key.Marshal())
	return hex.EncodeToString(sum[:])
}

func TestHashes(t *testing.T) {
	key, other := newKey(t), newKey(t)
	cert := &ssh.Certificate{Key: key}
	for _, hash := range []string{ssh.FingerprintSHA256(key), ID(key), "#" + ID(key), sha1Hex(key), strings.ToUpper(sha1Hex(key))} {
		if err := CheckHash(hash); err != nil {
			t.Errorf("%s: %v", hash, err)
		}
		if !Matches(key, hash) || !Matches(cert, hash) || Matches(other, hash) {
			t.Errorf("%s does not tell keys apart", hash)
		}
	}
	for _, bad := range []string{"", "#", "SHA256:", "SHA256:short", "abcd", "xyz", "MD5:00"} {
		if CheckHash(bad) == nil || Matches(key, bad) {
			t.Errorf("%q was taken for a hash", bad)
		}
	}
}

func FuzzParsePublic(f *testing.F) {
	key := newKey(f)
	f.Add(ssh.MarshalAuthorizedKey(key))
	f.Add([]byte(rfc4716(key)))
	f.Add([]byte(beginPublic + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		k, comment, err := ParsePublic(text)
		if (k == nil) == (err == nil) {
			t.Fatalf("key %v with error %v", k, err)
		}
		if err != nil {
			return
		}
		again, _, err := ParsePublic(FormatRFC4716(k, comment))
		if err != nil || !bytes.Equal(again.Marshal(), k.Marshal()) {
			t.Errorf("written and read again: %v", err)
		}
	})
}

func FuzzParsePrivate(f *testing.F) {
	f.Add([]byte("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----\n"))
	f.Add([]byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParsePrivate(text)
		if (p == nil) == (err == nil) {
			t.Fatalf("key %v with error %v", p, err)
		}
		if err == nil && !p.Locked && !p.Elsewhere {
			if _, err := p.Open(""); err != nil {
				t.Error(err)
			}
		}
	})
}
