package sshtun_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"sshbroker/profiles"
	"sshbroker/profiles/creds"
	"sshbroker/profiles/sshtun"
	"sshbroker/profiles/tuntest"
)

func keygen(t *testing.T, args ...string) {
	t.Helper()
	path, err := exec.LookPath("ssh-keygen")
	tuntest.Need(t, err == nil, "needs ssh-keygen (Debian package openssh-client)")
	if out, err := exec.Command(path, append([]string{"-q"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen %q: %v\n%s", args, err, out)
	}
}

// authorize adds a public key to what the peer accepts. OpenSSH reads the file anew.
func authorize(t *testing.T, peer *tuntest.Peer, line string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(peer.Dir, "authorized_keys"), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(strings.TrimSpace(line) + "\n")
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Every form of key file, locked and not, logs in to OpenSSH.
func TestKeyForms(t *testing.T) {
	peer := tuntest.StartOpenSSH(t)
	for _, form := range []struct{ kind, format string }{
		{"ed25519", "OPENSSH"}, {"ecdsa", "PEM"}, {"rsa", "PEM"}, {"rsa", "PKCS8"}, {"ecdsa", "PKCS8"},
	} {
		for _, phrase := range []string{"", "open sesame"} {
			t.Run(fmt.Sprintf("%s %s locked=%t", form.kind, form.format, phrase != ""), func(t *testing.T) {
				id := filepath.Join(t.TempDir(), "id")
				args := []string{"-t", form.kind, "-N", phrase, "-f", id}
				if form.format != "OPENSSH" {
					args = append(args, "-m", form.format)
				}
				keygen(t, args...)
				authorize(t, peer, readFile(t, id+".pub"))
				who := &person{answers: map[string]string{"Passphrase for key " + id: phrase}}
				p := *peer.Profile
				p.Identities = []string{id}
				if _, err := connect(t, &p, who); err != nil {
					t.Error(err)
				}
				if want := min(len(phrase), 1); len(who.asked) != want {
					t.Errorf("asked %q", who.asked)
				}
				// Tectia leaves the public half in the form of RFC 4716. Without it the
				// passphrase is asked for before the server is.
				out, err := exec.Command("ssh-keygen", "-e", "-f", id+".pub").Output()
				if err != nil {
					t.Fatal(err)
				}
				for _, beside := range []string{string(out), ""} {
					if beside == "" {
						os.Remove(id + ".pub")
					} else if err := os.WriteFile(id+".pub", out, 0o600); err != nil {
						t.Fatal(err)
					}
					if _, err := connect(t, &p, who); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}

// Without identities: what the identification file lists, then the agent's, then the
// stores and the default ones; keys that need a passphrase after those that do not.
func TestKeyOrder(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"listed", "second", "stored", "locked", "default"} {
		phrase := ""
		if name == "locked" {
			phrase = "x"
		}
		key := keyPair(t, phrase)
		write(t, filepath.Join(dir, name), string(key.Private))
		write(t, filepath.Join(dir, name+".pub"), key.Public+"\n")
	}
	write(t, filepath.Join(dir, "ssh-broker-config.xml"), "<secsh-broker/>")
	write(t, filepath.Join(dir, "identification"), "# mine\nIdKey listed\nCertKey second\nrubbish\n")
	write(t, filepath.Join(dir, "sshcom"), "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\n")
	_, p := tuntest.StartServer(t, &tuntest.Server{Authorized: []string{keyPair(t, "").Public}})
	p.Identities = nil
	p.Agent = startAgent(t, keyPair(t, ""))
	p.DefaultKeys = []string{filepath.Join(dir, "none"), filepath.Join(dir, "default")}
	in := func(name string) string { return filepath.Join(dir, name) }
	index := profiles.KeyStore{Index: in("identification"), Base: dir}
	store := profiles.KeyStore{Dir: dir, Unless: in("identification")}
	for _, test := range []struct {
		name  string
		edit  func(*profiles.Profile)
		order []string // in the trail
		not   []string
	}{
		{"identification file", func(p *profiles.Profile) {
			p.KeyStores = []profiles.KeyStore{{File: in("stored")}, store, index}
		}, []string{"line passed over", in("second") + ": no certificate", in("listed") + " (SHA256", "from the agent (", in("stored") + " (", in("default") + " ("}, []string{in("locked")}},
		{"directory", func(p *profiles.Profile) {
			p.KeyStores = []profiles.KeyStore{{Dir: dir, Unless: in("none")}, {Index: in("none")}}
		}, []string{in("sshcom") + ": form of private key that is not read", "from the agent (", in("default") + " (", in("listed") + " (", in("second") + " (", in("stored") + " (", in("locked") + " ("}, []string{"config.xml"}},
		{"shy", func(p *profiles.Profile) {
			p.KeyStores = []profiles.KeyStore{{Dir: dir}}
			p.KeySelection.Shy = true
		}, []string{in("locked") + ": passed over, as key-selection is interactive-shy", "from the agent"}, nil},
		{"by hash", func(p *profiles.Profile) {
			public, _, _, _, _ := ssh.ParseAuthorizedKey([]byte(readFile(t, in("stored.pub"))))
			p.KeyStores = []profiles.KeyStore{{Dir: dir}}
			p.Identities = []string{"#" + ssh.FingerprintSHA256(public), "#SHA256:" + strings.Repeat("A", 43)}
		}, []string{"publickey #SHA256:AAA", "no key with this hash", in("stored") + " ("}, []string{in("default"), "agent"}},
		{"signature algorithms", func(p *profiles.Profile) {
			p.DefaultKeys, p.Agent, p.SignWith = []string{in("stored")}, "", []string{"rsa-sha2-512", "ssh-rsa-cert-v01@openssh.com"}
		}, []string{in("stored") + ": it cannot sign by any of rsa-sha2-512"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			q := *p
			test.edit(&q)
			_, err := connect(t, &q, &person{})
			if !errors.Is(err, profiles.ErrAuth) {
				t.Fatal(err)
			}
			rest := err.Error()
			for _, part := range test.order {
				_, after, found := strings.Cut(rest, part)
				if !found {
					t.Fatalf("%q is missing, or before its turn, in\n%v", part, strings.ReplaceAll(err.Error(), ";", ";\n"))
				}
				rest = after
			}
			for _, part := range test.not {
				if strings.Contains(err.Error(), part) {
					t.Errorf("%q in %v", part, err)
				}
			}
		})
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A certificate comes before its key, if it is one that the profile wants; one that has
// run out is not offered, and the message says since when.
func TestCertificateSelection(t *testing.T) {
	authority, other, key := keyPair(t, ""), keyPair(t, ""), keyPair(t, "")
	peer := tuntest.StartOpenSSH(t)
	ca, _, _, _, err := ssh.ParseAuthorizedKey([]byte(authority.Public))
	if err != nil {
		t.Fatal(err)
	}
	authorize(t, peer, fmt.Sprintf("cert-authority,principals=\"tester\" %s", authority.Public))
	id := filepath.Join(t.TempDir(), "id")
	write(t, id, string(key.Private))
	write(t, id+".pub", key.Public+"\n")
	p := *peer.Profile
	p.Identities = []string{id}
	connects := func(name string, edit func(*profiles.Profile), part string) {
		t.Helper()
		q := p
		edit(&q)
		_, err := connect(t, &q, nil)
		switch {
		case part == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case part != "" && (!errors.Is(err, profiles.ErrAuth) || !strings.Contains(err.Error(), part)):
			t.Errorf("%s: %v, want %q", name, err, part)
		}
	}
	writeCert(t, id, key, authority, time.Hour)
	connects("good", func(*profiles.Profile) {}, "")
	connects("named itself", func(p *profiles.Profile) { p.Identities = []string{id + "-cert.pub"} }, "")
	connects("in the agent", func(p *profiles.Profile) { p.Identities, p.Agent = nil, certAgent(t, id) }, "")
	connects("its authority wanted", func(p *profiles.Profile) { p.KeySelection.Issuers = []string{ssh.FingerprintSHA256(ca)} }, "")
	connects("another authority wanted", func(p *profiles.Profile) { p.KeySelection.Issuers = []string{"SHA256:x"} }, "its authority is none")
	connects("the server's authority wanted", func(p *profiles.Profile) { p.KeySelection.IssuerOfServer = true }, "its authority is none")
	connects("only plain keys", func(p *profiles.Profile) { p.KeySelection.Types = []profiles.KeyType{profiles.PlainKey} }, id+" (SHA256")
	connects("only certificates", func(p *profiles.Profile) { p.KeySelection.Types = []profiles.KeyType{profiles.CertifiedKey} }, "")
	connects("algorithms", func(p *profiles.Profile) { p.SignWith = []string{"ssh-ed25519-cert-v01@openssh.com"} }, "")
	writeCert(t, id, key, other, time.Hour)
	connects("strange authority", func(*profiles.Profile) {}, "until 2")
	writeCert(t, id, key, authority, -time.Hour)
	connects("run out", func(*profiles.Profile) {}, "certificate expired at 2")
}

// certAgent is an agent that has a key with its certificate.
func certAgent(t *testing.T, id string) string {
	t.Helper()
	raw, err := ssh.ParseRawPrivateKey([]byte(readFile(t, id)))
	if err != nil {
		t.Fatal(err)
	}
	cert, _, _, _, err := ssh.ParseAuthorizedKey([]byte(readFile(t, id+"-cert.pub")))
	if err != nil {
		t.Fatal(err)
	}
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: raw, Certificate: cert.(*ssh.Certificate)}); err != nil {
		t.Fatal(err)
	}
	return serveAgent(t, ring)
}

// A key in a security token signs through the agent, and OpenSSH takes it.
func TestSecurityKey(t *testing.T) {
	peer := tuntest.StartOpenSSH(t)
	token := newToken(t)
	authorize(t, peer, string(ssh.MarshalAuthorizedKey(token.public)))
	id := filepath.Join(t.TempDir(), "id_ed25519_sk")
	write(t, id+".pub", string(ssh.MarshalAuthorizedKey(token.public)))
	p := *peer.Profile
	p.Agent = serveAgent(t, token)
	for name, identities := range map[string][]string{"any": nil, "named": {id}, "named by its public half": {id + ".pub"}} {
		t.Run(name, func(t *testing.T) {
			before := token.touched.Load()
			q := p
			q.Identities = identities
			tr, err := connect(t, &q, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !tr.(profiles.Attended).Attended() {
				t.Error("the login does not count as one that takes a person")
			}
			if token.touched.Load() != before+1 {
				t.Error("it was not touched once")
			}
		})
	}
}

// token is an agent with a security key: an Ed25519 key whose signatures cover the
// application, flags and a counter as well (OpenSSH, PROTOCOL.u2f).
type token struct {
	agent.Agent
	private ed25519.PrivateKey
	public  ssh.PublicKey
	touched atomic.Uint32
}

func newToken(t *testing.T) *token {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.ParsePublicKey(ssh.Marshal(struct {
		Type        string
		Key         []byte
		Application string
	}{ssh.KeyAlgoSKED25519, public, "ssh:"}))
	if err != nil {
		t.Fatal(err)
	}
	return &token{private: private, public: key}
}

func (k *token) List() ([]*agent.Key, error) {
	return []*agent.Key{{Format: k.public.Type(), Blob: k.public.Marshal(), Comment: "token"}}, nil
}

func (k *token) Sign(key ssh.PublicKey, data []byte) (*ssh.Signature, error) {
	if !bytes.Equal(key.Marshal(), k.public.Marshal()) {
		return nil, errors.New("no such key")
	}
	const present = 1
	app, message := sha256.Sum256([]byte("ssh:")), sha256.Sum256(data)
	tail := ssh.Marshal(struct {
		Flags   byte
		Counter uint32
	}{present, k.touched.Add(1)})
	signed := append(append(append([]byte{}, app[:]...), tail...), message[:]...)
	return &ssh.Signature{Format: k.public.Type(), Blob: ed25519.Sign(k.private, signed), Rest: tail}, nil
}

// serveAgent serves an agent at a socket.
func serveAgent(t *testing.T, a agent.Agent) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // a socket's path may not be long
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() {
				defer c.Close()
				agent.ServeAgent(a, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); tasks.Wait(); os.RemoveAll(dir) })
	return path
}

// A passphrase is asked for once, for all who wait for it and those who come later; a
// refusal is a refusal to all of them.
func TestPassphraseIsAskedForOnce(t *testing.T) {
	const flows = 8
	for name, phrase := range map[string]string{"right": "open sesame", "refused": ""} {
		t.Run(name, func(t *testing.T) {
			key := keyPair(t, "open sesame")
			_, p := tuntest.StartServer(t, &tuntest.Server{Authorized: []string{key.Public}})
			p.Identities = []string{file(t, "id", string(key.Private))}
			p.ConnectTimeout = 2 * time.Second // waiting for a person does not count
			c := &sshtun.Connector{Log: connector(t).Log, Keys: new(creds.Keyring)}
			who := &slowPerson{answer: phrase, asked: make(chan struct{}, flows), go_: make(chan struct{})}
			failed := make(chan error, flows)
			for i := range flows {
				q := *p
				q.ID = fmt.Sprint(i)
				go func() {
					tr, err := c.Connect(t.Context(), &q, nil, who)
					if err == nil {
						tr.Close()
					}
					failed <- err
				}()
			}
			<-who.asked
			time.AfterFunc(2500*time.Millisecond, func() { close(who.go_) }) // the person's time
			for range flows {
				if err := <-failed; (err != nil) != (phrase == "") {
					t.Error(err)
				}
			}
			if phrase == "" {
				return
			}
			if n := len(who.asked); n != 0 {
				t.Errorf("asked %d times more", n)
			}
			if _, err := c.Connect(t.Context(), p, nil, nil); err != nil {
				t.Errorf("later, with nobody there: %v", err)
			}
			c.Keys.ForgetAll()
			if _, err := c.Connect(t.Context(), p, nil, nil); !errors.Is(err, profiles.ErrAuth) {
				t.Errorf("forgotten, with nobody there: %v", err)
			}
		})
	}
}

type slowPerson struct {
	answer string
	asked  chan struct{}
	go_    chan struct{}
}

func (p *slowPerson) Ask(ctx context.Context, _ profiles.Prompt) (string, error) {
	p.asked <- struct{}{}
	select {
	case <-p.go_:
		return p.answer, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// Two methods that ask take turns.
func TestInteractiveMethodsAlternate(t *testing.T) {
	_, p := tuntest.StartServer(t, &tuntest.Server{Password: "right", Challenge: func(string) bool { return false }})
	p.Identities = nil
	p.AuthMethods = []profiles.AuthMethod{profiles.Password, profiles.PublicKey, profiles.KeyboardInteractive}
	who := &person{answers: map[string]string{"Password": "wrong"}}
	if _, err := connect(t, p, who); !errors.Is(err, profiles.ErrAuth) {
		t.Fatal(err)
	}
	var order []string
	for _, q := range who.asked {
		if strings.HasPrefix(q, "Password for") {
			order = append(order, "password")
		} else {
			order = append(order, "interactive")
		}
	}
	if got := strings.Join(order, " "); got != "password interactive password interactive password interactive" {
		t.Errorf("asked for %s", got)
	}
}

// A profile without a user asks for the name, once.
func TestUserNameIsAskedFor(t *testing.T) {
	_, p := tuntest.StartServer(t, nil)
	p.User = ""
	c := &sshtun.Connector{Log: connector(t).Log}
	who := named{"tester"}
	for _, ask := range []profiles.Prompter{who, nil} { // remembered the second time
		tr, err := c.Connect(t.Context(), p, nil, ask)
		if err != nil {
			t.Fatal(err)
		}
		if user := tr.(profiles.Describer).Describe().User; user != "tester" {
			t.Errorf("logged in as %q", user)
		}
		tr.Close()
	}
	for _, bad := range []string{"", "-oProxyCommand=x", "a;b"} {
		_, err := new(sshtun.Connector).Connect(t.Context(), p, nil, named{bad})
		if !errors.Is(err, profiles.ErrAuth) {
			t.Errorf("user %q: %v", bad, err)
		}
	}
}

type named struct{ name string }

func (n named) Ask(_ context.Context, q profiles.Prompt) (string, error) {
	if q.Secret || q.YesNo || !strings.Contains(q.Text, "User name at 127.0.0.1") {
		return "", fmt.Errorf("asked %+v", q)
	}
	return n.name, nil
}

// Dropbear takes keys of each type that it knows, and passwords it asks for in no
// other way than OpenSSH does.
func TestDropbearKeys(t *testing.T) {
	dir := t.TempDir()
	var lines []string
	for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
		keygen(t, "-t", kind, "-N", "", "-f", filepath.Join(dir, kind))
		lines = append(lines, readFile(t, filepath.Join(dir, kind+".pub")))
	}
	peer := tuntest.StartDropbearWith(t, lines)
	for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
		t.Run(kind, func(t *testing.T) {
			p := *peer.Profile
			p.Identities = []string{filepath.Join(dir, kind)}
			if _, err := connect(t, &p, nil); err != nil {
				t.Error(err)
			}
		})
	}
}
