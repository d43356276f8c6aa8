package creds

import (
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
)

// A private key that others may read is passed over: one of ours always, one of
// root's or of ours with file-access-control, one of somebody else's by its owner.
func TestKeyModes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "id")
	if err := os.WriteFile(file, []byte("key"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o600, 0o400, 0o640, 0o604, 0o620} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		for _, strict := range []bool{false, true} {
			err := CheckPrivate(file, strict)
			if mode&0o077 != 0 && !errors.Is(err, errOpenToOthers) || mode&0o077 == 0 && err != nil {
				t.Errorf("mode %o, strict %v: %v", mode, strict, err)
			}
		}
	}
	if os.Geteuid() != 0 {
		return // nobody else's files can be made
	}
	if err := os.Chown(file, 54321, -1); err != nil {
		t.Fatal(err)
	}
	if err := CheckPrivate(file, false); err != nil {
		t.Errorf("of another: %v", err)
	}
	if err := CheckPrivate(file, true); !errors.Is(err, errForeign) {
		t.Errorf("of another, strict: %v", err)
	}
}

// What is passed over is told, and is not tried.
func TestWideKeyIsPassedOver(t *testing.T) {
	file := filepath.Join(t.TempDir(), "id")
	_, secret, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(secret, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	tried := func(strict bool) (bool, string, string) {
		var told strings.Builder
		p := &profiles.Profile{Identities: []string{file}, CheckKeyModes: strict}
		s := NewSession(t.Context(), p, nil, nil)
		defer s.Close()
		s.Observe = func(e profiles.Event) {
			if e.Kind == profiles.IdentityFailed {
				fmt.Fprintf(&told, "%s: %v", e.File, e.Err)
			}
		}
		method, _ := s.Next(&ssh.ClientAuthContext{AllowedMethods: []string{"publickey"}})
		return method != nil, s.Trail(), told.String()
	}
	if ok, trail, told := tried(true); !ok || told != "" {
		t.Errorf("a good key: %v, %s, %s", ok, trail, told)
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if ok, trail, told := tried(true); ok || !strings.Contains(trail, "others may read it") || !strings.HasPrefix(told, file+": ") {
		t.Errorf("a wide key: %v, %s, %s", ok, trail, told)
	}
	if os.Geteuid() != 0 {
		return // nobody else's files can be made
	}
	if err := os.Chown(file, 54321, -1); err != nil {
		t.Fatal(err)
	}
	if ok, trail, told := tried(false); !ok || told != "" {
		t.Errorf("a key of another: %v, %s, %s", ok, trail, told)
	}
	if ok, trail, told := tried(true); ok || !strings.Contains(trail, "belongs to another user") || !strings.HasPrefix(told, file+": ") {
		t.Errorf("a key of another, with file-access-control: %v, %s, %s", ok, trail, told)
	}
}
