package daemon

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sshbroker/broker/control"
	"sshbroker/profiles"
	"sshbroker/profiles/tuntest"
)

// keys does an operation on keys and answers questions with answer, "" with nobody.
func (b *bench) keys(op string, args any, answer string) (map[string]control.KeyRow, error) {
	b.t.Helper()
	c := b.dial()
	defer c.Close()
	rows := make(map[string]control.KeyRow)
	var ask control.Prompter
	if answer != "" {
		ask = func(control.Prompt) (string, error) { return answer, nil }
	}
	err := c.Call(b.t.Context(), op, args, nil, func(m json.RawMessage) error {
		var r control.KeyRow
		if err := json.Unmarshal(m, &r); err != nil {
			return err
		}
		rows[filepath.Base(r.File)] = r
		return nil
	}, ask)
	return rows, err
}

func writeKey(t *testing.T, file, phrase string) {
	t.Helper()
	key, err := tuntest.NewKeyPair(phrase)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(file), 0o700)
	}
	if err == nil {
		err = os.WriteFile(file, key.Private, 0o600)
	}
	if err == nil {
		err = os.WriteFile(file+".pub", []byte(key.Public+"\n"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What people do with keys through the broker.
func TestKeyOperations(t *testing.T) {
	b := prepare(t, "", tunnel)
	locked, extra := filepath.Join(b.dir, ".ssh2", "locked"), filepath.Join(b.dir, "extra")
	writeKey(t, locked, "x")
	writeKey(t, filepath.Join(b.dir, ".ssh", "id_ed25519"), "")
	writeKey(t, extra, "z")
	if err := b.start(nil); err != nil {
		t.Fatal(err)
	}
	state := func(name, want string) {
		t.Helper()
		rows, err := b.keys(control.OpListKeys, control.KeyArgs{}, "")
		if err != nil || rows[name].State != want {
			t.Errorf("%s is %q, want %q (%v)", name, rows[name].State, want, err)
		}
	}
	fails := func(op string, args any, answer, part string) {
		t.Helper()
		if _, err := b.keys(op, args, answer); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s %+v: %v, want %q", op, args, err, part)
		}
	}
	works := func(op string, args any, answer string) {
		t.Helper()
		if rows, err := b.keys(op, args, answer); err != nil {
			t.Errorf("%s %+v: %v, %v", op, args, rows, err)
		}
	}
	state("id_ed25519", "ready")
	state("locked", "locked")
	rows, err := b.keys(control.OpListKeys, control.KeyArgs{Key: locked}, "")
	if err != nil || len(rows) != 1 || rows["locked"].ID == "" || !strings.HasPrefix(rows["locked"].Fingerprint, "SHA256:") {
		t.Fatalf("one key: %v, %v", rows, err)
	}
	id := rows["locked"].ID
	fails(control.OpListKeys, control.KeyArgs{Key: "none"}, "", "there is no key none")

	fails(control.OpPassphrase, control.PassphraseArgs{Key: id}, "", "nobody can be asked")
	fails(control.OpPassphrase, control.PassphraseArgs{Key: id, Passphrase: "wrong"}, "", "no right passphrase")
	works(control.OpPassphrase, control.PassphraseArgs{Key: id}, "x")
	state("locked", "open")
	works(control.OpPassphrase, control.PassphraseArgs{Key: id, Clear: true}, "")
	state("locked", "locked")
	fails(control.OpPassphrase, control.PassphraseArgs{Key: id, Clear: true}, "", "no passphrase of key")
	works(control.OpPassphrase, control.PassphraseArgs{Passphrase: "x"}, "")
	state("locked", "open")
	works(control.OpPassphrase, control.PassphraseArgs{Clear: true}, "")
	state("locked", "locked")

	fails(control.OpAddKey, control.KeyArgs{Key: "extra"}, "z", "not absolute")
	fails(control.OpAddKey, control.KeyArgs{Key: extra}, "y", "no right passphrase")
	works(control.OpAddKey, control.KeyArgs{Key: extra}, "z")
	state("extra", "open")
	fails(control.OpRemoveKey, control.KeyArgs{Key: id}, "", "was not added")
	works(control.OpRemoveKey, control.KeyArgs{Key: extra}, "")
	state("extra", "")
}

// prober is a connector that can show a server's keys.
type prober struct{ connector }

func (p *prober) Probe(_ context.Context, host string, port uint16) ([]profiles.HostKeyInfo, error) {
	if port != 2222 {
		return nil, profiles.ErrConnect
	}
	return []profiles.HostKeyInfo{{Type: "ssh-ed25519", Fingerprint: "SHA256:x", Public: "AAAA"}}, nil
}

func TestProbeKey(t *testing.T) {
	b := begin(t, "", tunnel, func(o *Options) { o.Tunnels = &prober{} })
	row, err := one[control.HostKeyRow](b, control.OpProbeKey, control.ProbeKeyArgs{Host: "gw", Port: 2222})
	if err != nil || row != (control.HostKeyRow{Host: "gw", Port: 2222, Type: "ssh-ed25519", Fingerprint: "SHA256:x", Public: "AAAA"}) {
		t.Errorf("%+v, %v", row, err)
	}
	if _, err := one[control.HostKeyRow](b, control.OpProbeKey, control.ProbeKeyArgs{Host: "gw", Port: 22}); err == nil || !strings.Contains(err.Error(), profiles.ErrConnect.Error()) {
		t.Errorf("a server that is not there: %v", err)
	}
}
