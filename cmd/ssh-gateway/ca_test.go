package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sshbroker/broker/gateway/ca"
)

// caWorld is an authority below the working directory.
type caWorld struct {
	t   *testing.T
	dir string
}

func newCAWorld(t *testing.T) caWorld {
	t.Chdir(t.TempDir())
	w := caWorld{t, "ca"}
	w.done("init")
	return w
}

func (w caWorld) run(args ...string) (code int, stdout, stderr string) {
	w.t.Helper()
	var out, errs bytes.Buffer
	code = run(w.t.Context(), append([]string{"ca", "--dir", w.dir}, args...), &out, &errs)
	return code, out.String(), errs.String()
}

// done runs a command that has to succeed.
func (w caWorld) done(args ...string) string {
	w.t.Helper()
	code, out, errs := w.run(args...)
	if code != 0 || errs != "" {
		w.t.Fatalf("%q: code %d, %s%s", args, code, out, errs)
	}
	return out
}

// fails runs one that has to fail, with a text and a hint.
func (w caWorld) fails(code int, text, hint string, args ...string) {
	w.t.Helper()
	got, out, errs := w.run(args...)
	if got != code || !strings.Contains(errs, text) || !strings.Contains(errs, "hint: ") || !strings.Contains(errs, hint) || out != "" {
		w.t.Errorf("%q: code %d, want %d\n%s%s", args, got, code, out, errs)
	}
}

func (w caWorld) certificate(name string) *x509.Certificate {
	w.t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		w.t.Fatal(err)
	}
	cert, err := ca.ReadCertificate(text)
	if err != nil {
		w.t.Fatal(err)
	}
	return cert
}

func TestCAIssueFiles(t *testing.T) {
	w := newCAWorld(t)
	before := time.Now()
	out := w.done("issue", "--client", "--email", "ann@example.com", "--uri", "https://l.example.com/1", "--group", "staff", "--bundle")
	for _, want := range []string{"ann@example.com.crt: serial ", "ann@example.com.key: its key\n", "ann@example.com.pem: both"} {
		if !strings.Contains(out, want) {
			t.Errorf("it says %q", out)
		}
	}
	for name, mode := range map[string]os.FileMode{"crt": 0o644, "key": 0o600, "pem": 0o600} {
		if info, err := os.Stat("ann@example.com." + name); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if _, err := tls.LoadX509KeyPair("ann@example.com.crt", "ann@example.com.key"); err != nil {
		t.Error(err)
	}
	if _, err := tls.LoadX509KeyPair("ann@example.com.pem", "ann@example.com.pem"); err != nil {
		t.Error(err)
	}
	cert := w.certificate("ann@example.com.crt")
	if back, ahead := before.Sub(cert.NotBefore), cert.NotAfter.Sub(before); back < 4*time.Minute || back > 6*time.Minute || ahead < 12*time.Hour-time.Minute || ahead > 12*time.Hour+time.Minute {
		t.Errorf("it counts from %v until %v", cert.NotBefore, cert.NotAfter)
	}
	// Nothing is replaced, and nothing is issued for nothing.
	old, _ := os.ReadFile("ann@example.com.key")
	w.fails(1, "ann@example.com.crt exists already", "--force", "issue", "--client", "--email", "ann@example.com")
	if now, _ := os.ReadFile("ann@example.com.key"); !bytes.Equal(old, now) {
		t.Error("the key is another")
	}
	if n := strings.Count(w.done("list"), "\n"); n != 1 {
		t.Errorf("%d certificates", n)
	}
	w.done("issue", "--client", "--email", "ann@example.com", "--force")
	if w.certificate("ann@example.com.crt").SerialNumber.Cmp(cert.SerialNumber) == 0 {
		t.Error("the certificate is the same")
	}

	w.done("issue", "--server", "--dns", "*.example.com", "--ip", "::1", "--lifetime", "1d", "--backdate", "0s", "--key-type", "ed25519")
	server := w.certificate("_.example.com.crt")
	if err := server.VerifyHostname("gw.example.com"); err != nil || server.NotAfter.Sub(server.NotBefore) != 24*time.Hour {
		t.Errorf("%v, until %v", err, server.NotAfter)
	}
	var row caRow
	if err := json.Unmarshal([]byte(w.done("issue", "--server", "--ip", "127.0.0.1", "--out", "gw", "-s")), &row); err != nil || row.Certificate != "gw.crt" || row.Key != "gw.key" || row.Serial == "" {
		t.Errorf("%+v, %v", row, err)
	}
	if life := w.certificate("gw.crt").NotAfter.Sub(before); life < 90*24*time.Hour-time.Minute || life > 90*24*time.Hour+time.Minute {
		t.Errorf("a server's counts for %v", life)
	}
}

func TestCAUsage(t *testing.T) {
	w := newCAWorld(t)
	for line, want := range map[string]string{
		"":                                 "init, issue, revoke, crl or list is missing",
		"sign":                             `"sign" is not one of init`,
		"issue":                            "one of --client and --server is needed",
		"issue --client --server":          "one of --client and --server is needed",
		"issue --client":                   "--uri or --email is needed",
		"issue --client --group g":         "--uri or --email is needed",
		"issue --server":                   "--dns or --ip is needed",
		"issue --client --dns x":           "--dns is for a server",
		"issue --server --email a@b.c":     "--email is for a client",
		"issue --client --uri https://x/1": "--out is needed",
		"issue --client --uri u --out d/":  "the last part of a prefix",
		"issue --client --email ../a@b":    "--out is needed",
		"issue --client --email a --key-type rsa":   `"rsa": it is p256 or ed25519`,
		"issue --client --email a --csr x --bundle": "--csr and --bundle",
		"issue --client --email a --lifetime x":     "not a span of time",
		"issue --client --email a --lifetime -1h":   "not a span of time",
		"issue --client --email a --lifetime 1.5d":  "not a number of days",
		"issue --colour":             "unknown flag",
		"issue x --client":           `"x" is one argument too many`,
		"revoke":                     "SERIAL or FILE is missing",
		"revoke 00 --reason because": `reason "because"`,
		"init --permit-ip 10":        "it is not a network",
		"init --key-type rsa":        `"rsa": it is p256 or ed25519`,
	} {
		w.fails(2, want, "--help", strings.Fields(line)...)
	}
	w.fails(1, "it exists and is not empty", "--dir", "init")
	w.dir = "none"
	for _, command := range []string{"list", "crl", "issue --client --email a@example.com", "revoke 00"} {
		w.fails(1, "none: there is no certificate authority", "ssh-gateway ca init", strings.Fields(command)...)
	}
	if list, err := os.ReadDir("."); err != nil || len(list) != 1 {
		t.Errorf("made were %v", list)
	}
}

func TestCARequest(t *testing.T) {
	w := newCAWorld(t)
	key, err := ca.NewKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(nil, &x509.CertificateRequest{EmailAddresses: []string{"root@example.com"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("r.csr", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errs := w.run("issue", "--client", "--email", "ann@example.com", "--csr", "r.csr")
	if code != 0 || !strings.Contains(errs, `not taken from it: ["root@example.com"]`) {
		t.Errorf("code %d, %s", code, errs)
	}
	if cert := w.certificate("ann@example.com.crt"); len(cert.EmailAddresses) != 1 || cert.EmailAddresses[0] != "ann@example.com" {
		t.Errorf("%v", cert.EmailAddresses)
	}
	if _, err := os.Stat("ann@example.com.key"); err == nil {
		t.Error("a key was made")
	}
	w.fails(2, "--uri or --email is needed", "", "issue", "--client", "--csr", "r.csr", "--out", "x") // the request's names do not do
	for _, args := range [][]string{{"--csr", "none"}, {"--csr", "ann@example.com.crt"}, {"--csr", "."}} {
		if code, _, errs := w.run(append([]string{"issue", "--client", "--email", "b@example.com"}, args...)...); code != 1 || !strings.Contains(errs, args[1]) {
			t.Errorf("%v: code %d, %s", args, code, errs)
		}
	}
}

func TestCARevoke(t *testing.T) {
	w := newCAWorld(t)
	w.done("issue", "--client", "--email", "ann@example.com")
	w.done("issue", "--client", "--email", "bob@example.com")
	number := func() string {
		list, err := ca.ReadList(w.dir)
		if err != nil {
			t.Fatal(err)
		}
		return list.Number.String()
	}
	first := number()
	out := w.done("revoke", "ann@example.com.crt", "--reason", "KeyCompromise", "--out", "crl.pem", "--next-update", "2h")
	if !strings.Contains(out, "is revoked: email:ann@example.com\ncrl.pem: list ") || number() <= first {
		t.Errorf("%s, number %s after %s", out, number(), first)
	}
	copied, err := os.ReadFile("crl.pem")
	kept, err2 := os.ReadFile(ca.ListFile(w.dir))
	if info, err3 := os.Stat("crl.pem"); errors.Join(err, err2, err3) != nil || !bytes.Equal(copied, kept) || info.Mode() != 0o644 {
		t.Errorf("the copy: %v, %v, %v", err, err2, info)
	}
	list, err := ca.ReadList(w.dir)
	if err != nil || len(list.RevokedCertificateEntries) != 1 || list.RevokedCertificateEntries[0].ReasonCode != 1 || time.Until(list.NextUpdate) > 2*time.Hour {
		t.Errorf("%+v, %v", list, err)
	}
	bob := w.certificate("bob@example.com.crt")
	w.done("revoke", strings.ToUpper(ca.SerialOf(bob.SerialNumber)))
	if code, _, errs := w.run("revoke", "bob@example.com.crt"); code != 0 || !strings.Contains(errs, "it is revoked already") {
		t.Errorf("again: code %d, %s", code, errs)
	}
	w.fails(1, "serial ff1: this authority has issued no such certificate", "list --all", "revoke", "0ff1")
	if code, _, errs := w.run("revoke", "nobody.crt"); code != 1 || !strings.Contains(errs, "neither a file nor a serial number") {
		t.Errorf("code %d, %s", code, errs)
	}
	second := number()
	w.done("crl")
	if number() <= second {
		t.Errorf("number %s after %s", number(), second)
	}
	var states []string
	for line := range strings.Lines(w.done("list", "-s")) {
		var row caRow
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatal(err)
		}
		states = append(states, row.State+" "+row.Reason)
	}
	if got := strings.Join(states, ", "); got != "revoked keyCompromise, revoked unspecified" {
		t.Errorf("states: %s", got)
	}
	// A list that cannot be written: what is noted stays noted.
	w.done("issue", "--client", "--email", "eve@example.com")
	w.fails(1, "none/crl.pem", "is noted as revoked, but gateways do not know yet", "revoke", "eve@example.com.crt", "--out", "none/crl.pem")
	if out := w.done("crl"); !strings.Contains(out, ", 3 revoked") {
		t.Error(out)
	}
}

func TestCAList(t *testing.T) {
	w := newCAWorld(t)
	if out := w.done("list"); out != "no certificates\n" {
		t.Error(out)
	}
	w.done("issue", "--client", "--email", "ann@example.com", "--lifetime", "0s", "--backdate", "1h")
	if out := w.done("list"); out != "no certificates\n" {
		t.Error(out)
	}
	if out := w.done("list", "--all"); !strings.Contains(out, "  client  ended    ") {
		t.Error(out)
	}
}

func TestCAPassphrase(t *testing.T) {
	t.Chdir(t.TempDir())
	w := caWorld{t, filepath.Join(t.TempDir(), "ca")}
	if err := os.WriteFile("p", []byte("open sesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.done("init", "--passphrase-file", "p", "--name", "locked")
	w.done("issue", "--client", "--email", "ann@example.com", "--passphrase-file", "p")
	t.Setenv("SSH_ASKPASS", "")
	if tty, err := os.Open("/dev/tty"); err == nil {
		tty.Close() // a person would be asked
	} else {
		w.fails(1, "nobody can be asked", "--passphrase-file", "crl")
	}
	if err := os.WriteFile("p", []byte("sesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.fails(1, "the passphrase is wrong", "--passphrase-file", "crl", "--passphrase-file", "p")
	if err := os.Chmod("p", 0o644); err != nil {
		t.Fatal(err)
	}
	w.fails(1, "others can read this passphrase", "chmod 600 p", "crl", "--passphrase-file", "p")

	askpass := filepath.Join(t.TempDir(), "askpass")
	if err := os.WriteFile(askpass, []byte("#!/bin/sh\necho open sesame\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSH_ASKPASS", askpass)
	t.Setenv("SSH_ASKPASS_REQUIRE", "force")
	w.done("crl")
	w.dir = filepath.Join(t.TempDir(), "ca")
	w.done("init", "--encrypt")
	if text, err := os.ReadFile(filepath.Join(w.dir, "ca.key")); err != nil || !bytes.Contains(text, []byte("ENCRYPTED")) {
		t.Errorf("%s, %v", text, err)
	}
}
