package hostkeys

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	xknownhosts "golang.org/x/crypto/ssh/knownhosts"

	"sshbroker/profiles"
)

func newSigner(t testing.TB) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newKey(t testing.TB) ssh.PublicKey { return newSigner(t).PublicKey() }

func keyLine(k ssh.PublicKey) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k))) }

func certify(t *testing.T, ca ssh.Signer, key ssh.PublicKey, host string) *ssh.Certificate {
	t.Helper()
	c := &ssh.Certificate{Key: key, CertType: ssh.HostCert, ValidPrincipals: []string{host},
		ValidBefore: uint64(time.Now().Add(time.Hour).Unix())}
	if err := c.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	return c
}

type person struct {
	answer string
	asked  []profiles.Prompt
}

func (p *person) Ask(_ context.Context, q profiles.Prompt) (string, error) {
	p.asked = append(p.asked, q)
	if p.answer == "" {
		return "", errors.New("gone")
	}
	return p.answer, nil
}

var from = &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 22}

func TestCheck(t *testing.T) {
	known, other, third := newKey(t), newKey(t), newKey(t)
	authority := newSigner(t)
	cert := certify(t, authority, third, "gw.example")
	for _, test := range []struct {
		name  string
		file  string // known_hosts
		host  string
		port  uint16
		alias string
		key   ssh.PublicKey
		want  []string // parts of the refusal; none: trusted
	}{
		{name: "known", file: "gw.example " + keyLine(known), key: known},
		{name: "known hashed", file: xknownhosts.HashHostname("gw.example") + " " + keyLine(known), key: known},
		{name: "known at a port", file: "[gw.example]:2222 " + keyLine(known), port: 2222, key: known},
		{name: "known hashed at a port", file: xknownhosts.HashHostname("[gw.example]:2222") + " " + keyLine(known), port: 2222, key: known},
		{name: "another port is another server", file: "gw.example " + keyLine(known), port: 2222, key: known,
			want: []string{"gw.example:2222", "is not known", ssh.FingerprintSHA256(known), "ssh-keyscan -p 2222 'gw.example'"}},
		{name: "alias", file: "cluster " + keyLine(known), alias: "cluster", port: 2222, key: known},
		{name: "IPv6", file: "2001:db8::1 " + keyLine(known), host: "2001:db8::1", key: known},
		{name: "IPv6 at a port", file: "[2001:db8::1]:2222 " + keyLine(known), host: "2001:db8::1", port: 2222, key: known},
		{name: "pattern", file: "*.example,!bad.example " + keyLine(known), key: known},
		{name: "negated", file: "*.example,!bad.example " + keyLine(known), host: "bad.example", key: known, want: []string{"is not known"}},
		{name: "second of two", file: "gw.example " + keyLine(other) + "\ngw.example " + keyLine(known), key: known},
		{name: "unknown", file: "", key: known,
			want: []string{"gw.example:22", known.Type(), ssh.FingerprintSHA256(known), "is not known", "ssh-keyscan 'gw.example'"}},
		{name: "changed", file: "# first\ngw.example " + keyLine(known), key: other,
			want: []string{"CHANGED", ssh.FingerprintSHA256(known), ssh.FingerprintSHA256(other), "known_hosts:2", "ssh-keygen -R 'gw.example'"}},
		{name: "revoked", file: "@revoked * " + keyLine(known) + "\ngw.example " + keyLine(known), key: known,
			want: []string{"REVOKED", "known_hosts:1"}},
		{name: "certified", file: "@cert-authority *.example " + keyLine(authority.PublicKey()), key: cert},
		{name: "certified for others", file: "@cert-authority *.org " + keyLine(authority.PublicKey()), key: cert,
			want: []string{"certificate"}},
		{name: "certified but revoked", file: "@revoked * " + keyLine(third) + "\n@cert-authority *.example " + keyLine(authority.PublicKey()), key: cert,
			want: []string{"certificate"}},
		{name: "plain key beside an authority", file: "@cert-authority *.example " + keyLine(authority.PublicKey()), key: other,
			want: []string{"is not known"}},
		{name: "the authority's own key", file: "@cert-authority *.example " + keyLine(authority.PublicKey()), key: authority.PublicKey(),
			want: []string{"certification authority"}},
		{name: "lines that nobody understands", file: "rubbish\ngw.example future-type AAAA\n@new gw.example " + keyLine(known) + "\ngw.example " + keyLine(known), key: known},
		{name: "line numbers after such lines", file: "rubbish\n\ngw.example " + keyLine(known), key: other, want: []string{"known_hosts:3"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := &profiles.Profile{Host: "gw.example", Port: 22, HostKeyAlias: test.alias,
				KnownHosts: []string{filepath.Join(t.TempDir(), "missing"), filepath.Join(t.TempDir(), "known_hosts")}}
			if test.host != "" {
				p.Host = test.host
			}
			if test.port != 0 {
				p.Port = test.port
			}
			write(t, p.KnownHosts[1], test.file)
			c, err := New(p, logger(t))
			if err != nil {
				t.Fatal(err)
			}
			checkRefusal(t, c.Check(t.Context(), from, test.key, nil), test.want)
			if cert, ok := test.key.(*ssh.Certificate); ok {
				offered := c.Algorithms([]string{ssh.KeyAlgoED25519, ssh.CertAlgoED25519v01})
				authority := strings.Contains(test.file, "*.example")
				if slices.Contains(offered, cert.Type()) != authority {
					t.Errorf("offered %v", offered)
				}
			}
		})
	}
}

func checkRefusal(t *testing.T, err error, want []string) {
	t.Helper()
	if len(want) == 0 {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	if !errors.Is(err, profiles.ErrHostKey) {
		t.Fatalf("got %v, want a refusal", err)
	}
	for _, part := range want {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q lacks %q", err, part)
		}
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func logger(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// Policies: what happens with a new and with a changed key, and what is stored.
func TestPolicies(t *testing.T) {
	for _, test := range []struct {
		policy       profiles.HostKeyPolicy
		answer       string // "-": nobody to ask
		stored       bool
		trustNew     bool
		trustChanged bool
		told         string // to an observer
	}{
		{profiles.Strict, "yes", false, false, false, "unknown refused"},
		{profiles.Ask, "-", false, false, false, "unknown refused"},
		{profiles.Ask, "no", false, false, false, "unknown refused"},
		{profiles.Ask, "", false, false, false, "unknown refused"}, // the person went away
		{profiles.Ask, "yes", true, true, false, "new stored"},
		{profiles.Ask, "fingerprint", true, true, false, "new stored"},
		{profiles.TOFU, "-", true, true, false, "new stored"},
		{profiles.Advisory, "-", true, true, true, "new stored"},
	} {
		t.Run(fmt.Sprint(test.policy, test.answer), func(t *testing.T) {
			key, other := newKey(t), newKey(t)
			store := filepath.Join(t.TempDir(), "home", ".ssh", "known_hosts")
			p := &profiles.Profile{Host: "gw.example", Port: 2222, HostKeyPolicy: test.policy,
				KnownHosts: []string{store}, StoreKnownHost: store}
			var ask profiles.Prompter
			who := &person{answer: test.answer}
			if test.answer == "fingerprint" {
				who.answer = ssh.FingerprintSHA256(key)
			}
			if test.answer != "-" {
				ask = who
			}
			c, err := New(p, logger(t))
			if err != nil {
				t.Fatal(err)
			}
			told := observe(c)
			if err := c.Check(t.Context(), from, key, ask); (err == nil) != test.trustNew {
				t.Errorf("new key: %v", err)
			}
			if want := []string{test.told + " " + key.Type() + " " + ssh.FingerprintSHA256(key)}; !slices.Equal(*told, want) {
				t.Errorf("told %q, want %q", *told, want)
			}
			if test.policy == profiles.Ask && ask != nil {
				if len(who.asked) != 1 || !who.asked[0].YesNo || !strings.Contains(who.asked[0].Text, ssh.FingerprintSHA256(key)) {
					t.Errorf("asked %+v", who.asked)
				}
			} else if len(who.asked) > 0 {
				t.Errorf("asked %+v", who.asked)
			}
			text, err := os.ReadFile(store)
			if stored := err == nil && string(text) == "[gw.example]:2222 "+keyLine(key)+"\n"; stored != test.stored {
				t.Errorf("stored %q, %v", text, err)
			}
			if !test.stored {
				return
			}
			if st, _ := os.Stat(store); st.Mode().Perm() != 0o600 {
				t.Errorf("file mode %v", st.Mode())
			}
			if st, _ := os.Stat(filepath.Dir(store)); st.Mode().Perm() != 0o700 {
				t.Errorf("directory mode %v", st.Mode())
			}
			if c, err = New(p, logger(t)); err != nil {
				t.Fatal(err)
			}
			told = observe(c)
			if err := c.Check(t.Context(), from, key, nil); err != nil {
				t.Errorf("stored key: %v", err)
			}
			if err := c.Check(t.Context(), from, other, ask); (err == nil) != test.trustChanged {
				t.Errorf("changed key: %v", err)
			}
			verdict := "refused"
			if test.trustChanged {
				verdict = "accepted"
			}
			if want := []string{"changed " + verdict + " " + other.Type() + " " + ssh.FingerprintSHA256(other)}; !slices.Equal(*told, want) {
				t.Errorf("told %q, want %q", *told, want)
			}
		})
	}
}

// observe keeps what c tells.
func observe(c *Checker) *[]string {
	var told []string
	c.Observe = func(e profiles.Event) {
		kind := map[profiles.EventKind]string{profiles.HostKeyNew: "new", profiles.HostKeyUnknown: "unknown",
			profiles.HostKeyChanged: "changed", profiles.HostKeyRevoked: "revoked"}[e.Kind]
		told = append(told, kind+" "+e.Status+" "+e.KeyType+" "+e.KeyHash)
		if e.Profile != c.profile || (e.Kind == profiles.HostKeyNew) != (e.File == c.profile.StoreKnownHost) {
			told = append(told, fmt.Sprintf("%+v", e))
		}
	}
	return &told
}

func TestTrustOnFirstUseNeedsAPlace(t *testing.T) {
	for _, store := range []string{"", "/proc/none/known_hosts"} {
		c, err := New(&profiles.Profile{Host: "gw", Port: 22, HostKeyPolicy: profiles.TOFU, StoreKnownHost: store}, logger(t))
		if err != nil {
			t.Fatal(err)
		}
		checkRefusal(t, c.Check(t.Context(), from, newKey(t), nil), []string{"could not be stored"})
	}
}

func TestUnusableFiles(t *testing.T) {
	for name, text := range map[string]string{
		"known_hosts":   "@revoked * rubbish", // a revocation that nobody understands
		"key_22_gw.pub": "rubbish",
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), name)
			write(t, file, text)
			place := file
			if name != "known_hosts" {
				place = filepath.Dir(file)
			}
			_, err := New(&profiles.Profile{Host: "gw", Port: 22, KnownHosts: []string{place}}, logger(t))
			if !errors.Is(err, profiles.ErrSetup) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestPinned(t *testing.T) {
	key, other := newKey(t), newKey(t)
	for name, text := range map[string]string{
		"OpenSSH":  keyLine(key) + " comment",
		"RFC 4716": rfc4716(key),
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "key.pub")
			write(t, file, text)
			c, err := New(&profiles.Profile{Host: "gw", Port: 22, HostKeyFile: file, HostKeyPolicy: profiles.Advisory}, logger(t))
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Check(t.Context(), from, key, nil); err != nil {
				t.Error(err)
			}
			told := observe(c)
			defer func() {
				if want := []string{"changed refused " + other.Type() + " " + ssh.FingerprintSHA256(other)}; !slices.Equal(*told, want) {
					t.Errorf("told %q, want %q", *told, want)
				}
			}()
			checkRefusal(t, c.Check(t.Context(), from, other, nil),
				[]string{"NOT THE ONE TRUSTED", ssh.FingerprintSHA256(key), ssh.FingerprintSHA256(other), file})
			if got := c.Algorithms([]string{ssh.KeyAlgoRSASHA256, ssh.KeyAlgoED25519}); !slices.Equal(got, []string{ssh.KeyAlgoED25519}) {
				t.Errorf("offered %v", got)
			}
		})
	}
}

func rfc4716(key ssh.PublicKey) string {
	body := base64.StdEncoding.EncodeToString(key.Marshal())
	return "---- BEGIN SSH2 PUBLIC KEY ----\r\nSubject: me\r\nComment: \"long \\\r\nand longer\"\r\n" +
		body[:20] + "\r\n" + body[20:] + "\r\n---- END SSH2 PUBLIC KEY ----\r\n"
}

// What is known comes first, so that a server with several keys shows that one.
func TestAlgorithmsOrder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "known_hosts")
	write(t, file, "gw "+keyLine(newKey(t)))
	c, err := New(&profiles.Profile{Host: "gw", Port: 22, KnownHosts: []string{file}}, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	got := c.Algorithms([]string{ssh.CertAlgoED25519v01, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoECDSA256, ssh.KeyAlgoED25519})
	want := []string{ssh.KeyAlgoED25519, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoECDSA256}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Many append at once to a file whose last line has no end.
func TestAppend(t *testing.T) {
	file := filepath.Join(t.TempDir(), "known_hosts")
	write(t, file, "first")
	var tasks sync.WaitGroup
	for i := range 50 {
		tasks.Go(func() {
			if err := Append(file, fmt.Sprintf("host%d %s", i, strings.Repeat("x", 5000))); err != nil {
				t.Error(err)
			}
		})
	}
	tasks.Wait()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(lines) != 51 || lines[0] != "first" {
		t.Errorf("%d lines, first %q", len(lines), lines[0])
	}
	for _, l := range lines[1:] {
		if len(strings.Fields(l)) != 2 || len(strings.Fields(l)[1]) != 5000 {
			t.Errorf("line of %d bytes", len(l))
		}
	}
	if err := Append(file, "two\nlines"); err == nil {
		t.Error("two lines were taken for one")
	}
}

// What is left of any file is a file that the library takes, with its lines in
// place.
func FuzzUnderstood(f *testing.F) {
	f.Add([]byte("gw " + keyLine(newKey(f)) + "\nrubbish\n@cert-authority * x y\n|1|a|b c d\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		clean, _, err := understood(text)
		if err != nil {
			return
		}
		if got, want := strings.Count(string(clean), "\n"), strings.Count(strings.TrimSuffix(string(text), "\n"), "\n"); len(text) > 0 && got != want+1 {
			t.Errorf("%d lines of %d", got, want+1)
		}
		file, err := inMemory(clean)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := xknownhosts.New(path(file)); err != nil {
			t.Errorf("still not understood: %v", err)
		}
	})
}

func TestRevokedIsTold(t *testing.T) {
	key := newKey(t)
	file := filepath.Join(t.TempDir(), "known_hosts")
	write(t, file, "@revoked gw "+keyLine(key)+"\n")
	c, err := New(&profiles.Profile{Host: "gw", Port: 22, HostKeyPolicy: profiles.Advisory, KnownHosts: []string{file}}, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	var told []profiles.Event
	c.Observe = func(e profiles.Event) { told = append(told, e) }
	checkRefusal(t, c.Check(t.Context(), from, key, nil), []string{"REVOKED"})
	if len(told) != 1 || told[0].Kind != profiles.HostKeyRevoked || told[0].File != file+":1" || told[0].KeyHash != ssh.FingerprintSHA256(key) {
		t.Errorf("told %+v", told)
	}
}
