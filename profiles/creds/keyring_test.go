package creds

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
	"sshbroker/profiles/tuntest"
)

// writeKey makes a key and its public half and returns the file.
func writeKey(t *testing.T, dir, name, phrase string) string {
	t.Helper()
	key, err := tuntest.NewKeyPair(phrase)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, name)
	for name, text := range map[string]string{file: string(key.Private), file + ".pub": key.Public + " " + name + "\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return file
}

func states(list []profiles.KeyInfo) map[string]profiles.KeyState {
	m := make(map[string]profiles.KeyState)
	for _, k := range list {
		m[filepath.Base(k.File)] = k.State
	}
	return m
}

func expect(t *testing.T, r *Keyring, p *profiles.Profile, want map[string]profiles.KeyState) {
	t.Helper()
	list, notes := r.List(t.Context(), []*profiles.Profile{p})
	got := states(list)
	if len(notes) > 0 || len(got) != len(want) {
		t.Errorf("keys %v, notes %q, want %v", got, notes, want)
	}
	for name, state := range want {
		if got[name] != state {
			t.Errorf("%s is %q, want %q", name, got[name], state)
		}
	}
}

// A passphrase is forgotten so long after it was given, or after its last use.
func TestPassphraseTimes(t *testing.T) {
	dir := t.TempDir()
	file := writeKey(t, dir, "id", "x")
	for _, test := range []struct {
		name     string
		remember profiles.Remember
		uses     []time.Duration // after it was given
		gone     time.Duration
	}{
		{"for ever", profiles.Remember{}, []time.Duration{time.Hour}, 0},
		{"hard", profiles.Remember{For: time.Minute}, []time.Duration{30 * time.Second, 59 * time.Second}, time.Minute},
		{"idle", profiles.Remember{Idle: time.Minute}, []time.Duration{50 * time.Second, 100 * time.Second}, 160 * time.Second},
		{"both", profiles.Remember{For: 2 * time.Minute, Idle: time.Minute}, []time.Duration{50 * time.Second, 100 * time.Second}, 2 * time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := new(Keyring)
				p := &profiles.Profile{KeyStores: []profiles.KeyStore{{File: file, Remember: test.remember}}}
				if _, err := r.Unlock(t.Context(), []*profiles.Profile{p}, file, "x", nil); err != nil {
					t.Fatal(err)
				}
				k, err := r.find(t.Context(), []*profiles.Profile{p}, file)
				if err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				for _, at := range test.uses {
					time.Sleep(time.Until(start.Add(at)))
					if r.recall(k.digest) == nil {
						t.Fatalf("forgotten after %s", at)
					}
				}
				if test.gone == 0 {
					return
				}
				time.Sleep(time.Until(start.Add(test.gone - time.Millisecond)))
				synctest.Wait()
				if !r.isOpen(k.digest) {
					t.Fatal("forgotten too soon")
				}
				time.Sleep(time.Millisecond)
				synctest.Wait()
				if r.isOpen(k.digest) {
					t.Error("remembered for too long")
				}
			})
		})
	}
}

// The time counts while the host sleeps, when no timer runs.
func TestPassphraseTimesOverSleep(t *testing.T) {
	file := writeKey(t, t.TempDir(), "id", "x")
	for _, remember := range []profiles.Remember{{For: time.Hour}, {Idle: time.Hour}} {
		p := &profiles.Profile{KeyStores: []profiles.KeyStore{{File: file, Remember: remember}}}
		use := map[string]func(*Keyring, digest) bool{
			"recall": func(r *Keyring, d digest) bool { return r.recall(d) != nil },
			"isOpen": (*Keyring).isOpen,
			"list": func(r *Keyring, _ digest) bool {
				list, _ := r.List(t.Context(), []*profiles.Profile{p})
				return list[0].State != profiles.KeyLocked
			},
		}
		for name, open := range use {
			r := new(Keyring)
			if _, err := r.Unlock(t.Context(), []*profiles.Profile{p}, file, "x", nil); err != nil {
				t.Fatal(err)
			}
			k, err := r.find(t.Context(), []*profiles.Profile{p}, file)
			if err != nil {
				t.Fatal(err)
			}
			if !open(r, k.digest) {
				t.Fatalf("%+v, %s: forgotten too soon", remember, name)
			}
			o := r.opened[k.digest]
			before := time.Now().Add(-2 * time.Hour).Round(0) // by the wall alone
			o.since, o.used = before, before
			if open(r, k.digest) {
				t.Errorf("%+v, %s: open after the time", remember, name)
			}
		}
	}
}

// Another key in the same file is another key.
func TestFileThatChanges(t *testing.T) {
	dir := t.TempDir()
	file := writeKey(t, dir, "id", "x")
	p := &profiles.Profile{DefaultKeys: []string{file}}
	r := new(Keyring)
	if _, err := r.Unlock(t.Context(), []*profiles.Profile{p}, "", "x", nil); err != nil {
		t.Fatal(err)
	}
	expect(t, r, p, map[string]profiles.KeyState{"id": profiles.KeyOpen})
	writeKey(t, dir, "id", "y")
	expect(t, r, p, map[string]profiles.KeyState{"id": profiles.KeyLocked})
}

// What people can do with keys.
func TestRing(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	writeKey(t, dir, "plain", "")
	locked := writeKey(t, dir, "locked", "x")
	extra := writeKey(t, elsewhere, "extra", "z")
	if err := os.WriteFile(filepath.Join(dir, "open"), []byte("-----BEGIN RSA PRIVATE KEY-----\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, r := t.Context(), new(Keyring)
	p := &profiles.Profile{KeyStores: []profiles.KeyStore{{Dir: dir}}}
	ps := []*profiles.Profile{p, {KeyStores: p.KeyStores, User: "other"}}
	expect(t, r, p, map[string]profiles.KeyState{"plain": profiles.KeyReady, "locked": profiles.KeyLocked, "open": profiles.KeyUnusable})

	list, _ := r.List(ctx, ps)
	for _, k := range list {
		if k.State == profiles.KeyUnusable {
			if !strings.Contains(k.Problem, "chmod 600") {
				t.Errorf("problem %q", k.Problem)
			}
			continue
		}
		public, _, _, _, err := ssh.ParseAuthorizedKey([]byte(k.Public))
		if err != nil || ssh.FingerprintSHA256(public) != k.Fingerprint || k.Type != public.Type() || k.Comment == "" || len(k.ID) != 16 {
			t.Errorf("%+v: %v", k, err)
		}
	}
	for _, bad := range []string{"plain", "", "0000000000000000", filepath.Join(dir, "plain")} {
		if _, err := r.Unlock(ctx, ps, bad, "x", nil); bad != "" && err == nil {
			t.Errorf("%q was opened", bad)
		}
	}
	expect(t, r, p, map[string]profiles.KeyState{"plain": profiles.KeyReady, "locked": profiles.KeyOpen, "open": profiles.KeyUnusable})
	if _, err := r.Unlock(ctx, ps, "", "x", nil); err == nil || !strings.Contains(err.Error(), "no key waits") {
		t.Errorf("all again: %v", err)
	}
	if _, err := r.Unlock(ctx, ps, locked, "wrong", nil); !errors.Is(err, errNoPassphrase) {
		t.Errorf("a wrong passphrase: %v", err)
	}
	if _, err := r.Forget(ctx, ps, locked); err == nil {
		t.Error("a wrong passphrase has left the key open")
	}

	if _, err := r.Add(ctx, extra, profiles.Remember{}, nil); err == nil {
		t.Error("added without its passphrase")
	}
	in, err := r.Add(ctx, extra, profiles.Remember{}, said("z"))
	if err != nil || !in.Added || in.State != profiles.KeyOpen {
		t.Fatalf("%+v, %v", in, err)
	}
	expect(t, r, p, map[string]profiles.KeyState{"extra": profiles.KeyOpen, "plain": profiles.KeyReady, "locked": profiles.KeyLocked, "open": profiles.KeyUnusable})
	if _, err := r.Remove(ctx, ps, locked); err == nil || !strings.Contains(err.Error(), "was not added") {
		t.Errorf("removed: %v", err)
	}
	if _, err := r.Remove(ctx, ps, in.Fingerprint); err != nil {
		t.Error(err)
	}
	expect(t, r, p, map[string]profiles.KeyState{"plain": profiles.KeyReady, "locked": profiles.KeyLocked, "open": profiles.KeyUnusable})
	for _, bad := range []string{"relative", filepath.Join(dir, "none"), locked + ".pub.pub"} {
		if _, err := r.Add(ctx, bad, profiles.Remember{}, said("z")); err == nil {
			t.Errorf("%s was added", bad)
		}
	}
}

// Whoever asks and goes away leaves the question to the next.
func TestAskerWhoLeaves(t *testing.T) {
	file := writeKey(t, t.TempDir(), "id", "x")
	k, err := readKey(file, false)
	if err != nil {
		t.Fatal(err)
	}
	r := new(Keyring)
	ctx, leave := context.WithCancel(t.Context())
	first, asked := make(chan error, 1), make(chan struct{})
	go func() {
		_, err := r.unlock(ctx, k, patient{asked}, nil)
		first <- err
	}()
	<-asked
	second, waits := make(chan error, 1), make(chan struct{})
	go func() {
		_, err := r.unlock(t.Context(), k, said("x"), func() func() { close(waits); return func() {} })
		second <- err
	}()
	<-waits
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("who left: %v", err)
	}
	if err := <-second; err != nil {
		t.Errorf("who stayed: %v", err)
	}
}

// patient waits for an answer that never comes.
type patient struct{ asked chan struct{} }

func (p patient) Ask(ctx context.Context, _ profiles.Prompt) (string, error) {
	close(p.asked)
	<-ctx.Done()
	return "", ctx.Err()
}

// A file whose key the agent has too brings its certificate along, and the agent signs.
func TestAgentKeyWithCertificateBesideFile(t *testing.T) {
	dir := t.TempDir()
	file := writeKey(t, dir, "id", "")
	k, err := readKey(file, false)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := k.private.Open("")
	if err != nil {
		t.Fatal(err)
	}
	cert := &ssh.Certificate{Key: k.public, CertType: ssh.UserCert, KeyId: "me", ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, signer); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+"-cert.pub", ssh.MarshalAuthorizedKey(cert), 0o600); err != nil {
		t.Fatal(err)
	}
	list := gather(&profiles.Profile{DefaultKeys: []string{file}}, []agentKey{{signer: signer}}, nil, func(err error) { t.Error(err) })
	if len(list) != 1 || list[0].held == nil || list[0].cert == nil || list[0].heldCert || list[0].file != file {
		t.Errorf("%+v", list)
	}
}
