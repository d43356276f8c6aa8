package creds

import (
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/crypto/ssh"
)

// A private key that others may read is passed over: one of ours always, one of
// root's or of ours with file-access-control, one of somebody else's by its owner.
func TestKeyModes(t *testing.T) {
	_, secret, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(secret, "")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "id")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o600, 0o400, 0o640, 0o604, 0o620} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		for _, strict := range []bool{false, true} {
			_, err := readIdentity(file, strict)
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
	if _, err := readIdentity(file, false); err != nil {
		t.Errorf("of another: %v", err)
	}
	if _, err := readIdentity(file, true); !errors.Is(err, errForeign) {
		t.Errorf("of another, strict: %v", err)
	}
}
