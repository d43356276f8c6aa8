package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/broker/gateway/policy"
)

// What a copy of the test does in place of the tests: KIND=DIR.
const childEnv = "CA_TEST_CHILD"

func TestMain(m *testing.M) {
	kind, dir, child := strings.Cut(os.Getenv(childEnv), "=")
	switch {
	case !child:
		os.Exit(m.Run())
	case kind == "full":
		fmt.Println(issueOnFullDisk(dir))
	case kind == "issue":
		fmt.Println(issueForEver(dir))
	}
}

var (
	now   = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	due   = now.Add(30 * 24 * time.Hour)
	years = From(now, time.Hour, 3650*24*time.Hour)
	short = From(now, 5*time.Minute, 12*time.Hour)
	ann   = Client{Emails: []string{"ann@example.com"}, URIs: []string{"https://login.example.com/17"}, Groups: []string{"staff", "site one"}}
)

func mustKey(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	key, err := NewKey(kind)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// create makes an authority and returns its directory.
func create(t testing.TB, o AuthorityOptions, passphrase string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if o.Name == "" {
		o.Name = "test"
	}
	if (o.Validity == Validity{}) {
		o.Validity = years
	}
	if err := Create(dir, o, mustKey(t, "p256"), []byte(passphrase), now, due); err != nil {
		t.Fatal(err)
	}
	return dir
}

func noPassphrase() ([]byte, error) { return nil, errors.New("there is no passphrase") }

func mustOpen(t testing.TB, dir string) *Authority {
	t.Helper()
	a, err := Open(dir, noPassphrase)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func mustIssue(t testing.TB, a *Authority) *x509.Certificate {
	t.Helper()
	cert, err := a.IssueClient(ann, mustKey(t, "p256").Public(), short)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestClientCertificate(t *testing.T) {
	a := mustOpen(t, create(t, AuthorityOptions{}, ""))
	seen := map[string]bool{}
	for _, kind := range KeyTypes {
		cert, err := a.IssueClient(ann, mustKey(t, kind).Public(), short)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(cert.EmailAddresses, ann.Emails) || len(cert.URIs) != 1 || cert.URIs[0].String() != ann.URIs[0] ||
			!slices.Equal(slices.Sorted(slices.Values(cert.Subject.Organization)), []string{"site one", "staff"}) || cert.Subject.CommonName != "ann@example.com" {
			t.Errorf("names %v %v %v", cert.EmailAddresses, cert.URIs, cert.Subject)
		}
		// It is to a gateway whom it was made for.
		id, err := policy.IdentityOf(cert)
		if err != nil || !slices.Equal(id.Emails, ann.Emails) || !slices.Equal(id.URIs, ann.URIs) || id.Serial != SerialOf(cert.SerialNumber) ||
			!slices.Equal(slices.Sorted(slices.Values(id.Groups)), []string{"site one", "staff"}) {
			t.Errorf("identity %+v, %v", id, err)
		}
		if len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.Subject.OrganizationalUnit) != 0 {
			t.Errorf("more names: %v %v", cert.DNSNames, cert.IPAddresses)
		}
		if !slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || len(cert.UnknownExtKeyUsage) > 0 ||
			cert.KeyUsage != x509.KeyUsageDigitalSignature || cert.IsCA || !cert.BasicConstraintsValid {
			t.Errorf("usage %v %v, CA %t", cert.ExtKeyUsage, cert.KeyUsage, cert.IsCA)
		}
		if !cert.NotBefore.Equal(now.Add(-5*time.Minute)) || !cert.NotAfter.Equal(now.Add(12*time.Hour)) {
			t.Errorf("from %v until %v", cert.NotBefore, cert.NotAfter)
		}
		if n := cert.SerialNumber.BitLen(); n < 100 || n > 159 || seen[cert.SerialNumber.String()] {
			t.Errorf("serial number of %d bits, the same again: %t", n, seen[cert.SerialNumber.String()])
		}
		seen[cert.SerialNumber.String()] = true
	}
	if _, err := a.IssueClient(Client{Emails: []string{"ann@[10.0.0.1]"}}, mustKey(t, "p256").Public(), short); err == nil || !strings.Contains(err.Error(), "would not take it") {
		t.Errorf("an email that a gateway does not take: %v", err)
	}
	authority := a.Certificate()
	if !authority.IsCA || authority.MaxPathLen != 0 || !authority.MaxPathLenZero || authority.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Errorf("the authority: %+v", authority)
	}
}

func TestServerCertificate(t *testing.T) {
	a := mustOpen(t, create(t, AuthorityOptions{}, ""))
	s := Server{Names: []string{"gw.example.com", "*.gw.example.com"}, Addrs: []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.1"), netip.MustParseAddr("2001:db8::1")}}
	cert, err := a.IssueServer(s, mustKey(t, "p256").Public(), From(now, 0, 90*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) {
		t.Errorf("usage %v", cert.ExtKeyUsage)
	}
	for _, name := range []string{"gw.example.com", "a.gw.example.com", "192.0.2.1", "2001:db8::1"} {
		if err := cert.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	if err := cert.VerifyHostname("example.com"); err == nil {
		t.Error("it stands for example.com")
	}
}

func TestRefused(t *testing.T) {
	_, network, _ := net.ParseCIDR("10.0.0.0/8")
	a := mustOpen(t, create(t, AuthorityOptions{DNS: []string{"example.com"}, Emails: []string{"example.com"}, URIHosts: []string{"login.example.com"},
		Networks: []*net.IPNet{network}}, ""))
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		small = nil // this Go makes none; then the type is what is tested
	}
	curve, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := mustKey(t, "p256").Public()
	for what, tt := range map[string]struct {
		c    Client
		key  crypto.PublicKey
		v    Validity
		want string
	}{
		"nobody":          {Client{Groups: []string{"g"}}, good, short, "whose the certificate is"},
		"no email":        {Client{Emails: []string{"Ann <ann@example.com>"}}, good, short, "not an address like"},
		"not ASCII":       {Client{Emails: []string{"ä@example.com"}}, good, short, "not an address like"},
		"another email":   {Client{Emails: []string{"ann@example.org"}}, good, short, "may not sign this"},
		"another URI":     {Client{URIs: []string{"https://evil.example.org/1"}}, good, short, "may not sign this"},
		"relative URI":    {Client{URIs: []string{"/ann"}}, good, short, "not absolute"},
		"strange URI":     {Client{URIs: []string{"HTTPS://login.example.com/"}}, good, short, "usual form"},
		"empty group":     {Client{Emails: ann.Emails, Groups: []string{""}}, good, short, "1 to 64 printable"},
		"group with tab":  {Client{Emails: ann.Emails, Groups: []string{"a\tb"}}, good, short, "1 to 64 printable"},
		"long group":      {Client{Emails: ann.Emails, Groups: []string{strings.Repeat("g", 65)}}, good, short, "1 to 64 printable"},
		"many groups":     {Client{Emails: ann.Emails, Groups: make([]string, 101)}, good, short, "at most 100"},
		"P-224":           {ann, curve.Public(), short, "P-224"},
		"no key":          {ann, nil, short, "not taken"},
		"backwards":       {ann, good, Validity{now, now}, "which is never"},
		"longer than CA":  {ann, good, Validity{now, years.Until.Add(time.Second)}, "longer than the authority"},
		"ended before it": {ann, good, Validity{years.From.Add(-2 * time.Hour), years.From.Add(-time.Hour)}, "which is never"},
	} {
		if _, err := a.IssueClient(tt.c, tt.key, tt.v); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if small != nil {
		if _, err := a.IssueClient(ann, small.Public(), short); err == nil || !strings.Contains(err.Error(), "1024 bits") {
			t.Errorf("a small RSA key: %v", err)
		}
	}
	for what, s := range map[string]Server{
		"no name":         {},
		"an address":      {Names: []string{"10.0.0.1"}},
		"a URL":           {Names: []string{"https://gw.example.com"}},
		"blank":           {Names: []string{"gw .example.com"}},
		"star in between": {Names: []string{"gw.*.example.com"}},
		"zone":            {Addrs: []netip.Addr{netip.MustParseAddr("fe80::1%eth0")}},
		"another domain":  {Names: []string{"gw.example.org"}},
		"another network": {Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
		"no address":      {Addrs: []netip.Addr{{}}},
	} {
		if _, err := a.IssueServer(s, good, short); err == nil {
			t.Errorf("%s was issued", what)
		}
	}
	if got := a.index.entries; len(got) != 0 {
		t.Errorf("noted: %v", got)
	}
	// What the constraints allow.
	if _, err := a.IssueClient(Client{Emails: ann.Emails, URIs: ann.URIs}, good, short); err != nil {
		t.Error(err)
	}
	if _, err := a.IssueServer(Server{Names: []string{"gw.example.com"}, Addrs: []netip.Addr{netip.MustParseAddr("10.1.2.3")}}, good, short); err != nil {
		t.Error(err)
	}
}

func TestCreate(t *testing.T) {
	dir := create(t, AuthorityOptions{}, "")
	for name, want := range map[string]fs.FileMode{"": fs.ModeDir | 0o700, keyFile: 0o600, indexFile: 0o600, lockFile: 0o600, certFile: 0o644, listFile: 0o644} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	key := mustKey(t, "ed25519")
	before, _ := os.ReadFile(filepath.Join(dir, keyFile))
	if err := Create(dir, AuthorityOptions{Name: "again", Validity: years}, key, nil, now, due); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), dir) {
		t.Errorf("over another: %v", err)
	}
	if after, _ := os.ReadFile(filepath.Join(dir, keyFile)); !bytes.Equal(before, after) {
		t.Error("the key is another")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Create(file, AuthorityOptions{Name: "n", Validity: years}, key, nil, now, due); !errors.Is(err, ErrExists) {
		t.Errorf("over a file: %v", err)
	}
	for _, o := range []AuthorityOptions{{Validity: years}, {Name: "a\nb", Validity: years}, {Name: "n", Validity: years, DNS: []string{"a b"}}} {
		if err := Create(filepath.Join(t.TempDir(), "ca"), o, key, nil, now, due); err == nil {
			t.Errorf("%+v was made", o)
		}
	}
	for _, parent := range []string{filepath.Dir(dir), filepath.Dir(file)} {
		if list, err := os.ReadDir(parent); err != nil || len(list) != 1 {
			t.Errorf("left behind: %v, %v", list, err)
		}
	}
	empty := t.TempDir()
	if err := Create(empty, AuthorityOptions{Name: "n", Validity: years}, key, nil, now, due); err != nil {
		t.Errorf("in an empty directory: %v", err)
	}
	mustOpen(t, empty)
}

func TestPassphrase(t *testing.T) {
	dir := create(t, AuthorityOptions{}, "open sesame")
	text, err := os.ReadFile(filepath.Join(dir, keyFile))
	if err != nil || !bytes.Contains(text, []byte("ENCRYPTED PRIVATE KEY")) {
		t.Fatalf("%s, %v", text, err)
	}
	for answer, want := range map[string]error{"open sesame": nil, "sesame": ErrPassphrase, "": ErrPassphrase} {
		a, err := Open(dir, func() ([]byte, error) { return []byte(answer), nil })
		if !errors.Is(err, want) {
			t.Errorf("%q: %v", answer, err)
		}
		if err == nil {
			a.Close()
		}
	}
	if _, err := Open(dir, noPassphrase); err == nil || !strings.Contains(err.Error(), "there is no passphrase") {
		t.Errorf("nobody to ask: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "none"), noPassphrase); !errors.Is(err, ErrNoAuthority) {
		t.Errorf("no directory: %v", err)
	}
	for what, tt := range map[string]struct {
		spoil func(dir string) error
		want  string
	}{
		"open directory": {func(d string) error { return os.Chmod(d, 0o750) }, "its mode is 0750"},
		"open key":       {func(d string) error { return os.Chmod(inDir(d, keyFile), 0o640) }, "its mode is 0640"},
		"no certificate": {func(d string) error { return os.Remove(inDir(d, certFile)) }, "there is no certificate authority"},
		"no key":         {func(d string) error { return os.Remove(inDir(d, keyFile)) }, "ca.key"},
		"no index":       {func(d string) error { return os.Remove(inDir(d, indexFile)) }, "index.txt"},
		"empty key":      {func(d string) error { return os.WriteFile(inDir(d, keyFile), nil, 0o600) }, "no key in PEM"},
		"garbled key":    {func(d string) error { return os.WriteFile(inDir(d, keyFile), bare("PRIVATE KEY"), 0o600) }, "ca.key"},
		"another key": {func(d string) error {
			text, err := KeyPEM(mustKey(t, "p256"))
			return errors.Join(err, os.WriteFile(inDir(d, keyFile), text, 0o600))
		}, "does not belong to its certificate"},
		"index": {func(d string) error {
			return os.WriteFile(inDir(d, indexFile), []byte(indexHead+"issued\t12\n"), 0o600)
		}, "index.txt:2: this is not a line"},
	} {
		dir := create(t, AuthorityOptions{}, "")
		if err := tt.spoil(dir); err != nil {
			t.Fatal(err)
		}
		a, err := Open(dir, noPassphrase)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", what, err)
		}
		if err == nil {
			a.Close()
		}
	}
	leaf := mustIssue(t, mustOpen(t, create(t, AuthorityOptions{}, "")))
	if _, err := NewIssuer(leaf, mustKey(t, "p256")); err == nil {
		t.Error("a client signs")
	}
}

func bare(kind string) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: []byte("x")}) }

func TestOneAtATime(t *testing.T) {
	dir := create(t, AuthorityOptions{}, "")
	a := mustOpen(t, dir)
	if _, err := Open(dir, noPassphrase); !errors.Is(err, ErrBusy) {
		t.Errorf("a second one: %v", err)
	}
	if _, err := List(dir); err != nil {
		t.Errorf("a reader: %v", err)
	}
	a.Close()
	mustOpen(t, dir)
}

func TestRevoke(t *testing.T) {
	dir := create(t, AuthorityOptions{}, "")
	a := mustOpen(t, dir)
	first, second := mustIssue(t, a), mustIssue(t, a)
	list, err := ReadList(dir)
	if err != nil || len(list.RevokedCertificateEntries) != 0 {
		t.Fatalf("the first list: %v, %v", list, err)
	}
	if e, err := a.Revoke(SerialOf(first.SerialNumber), 1, now); err != nil || !e.Revoked.Equal(now) || e.Reason.String() != "keyCompromise" {
		t.Errorf("%+v, %v", e, err)
	}
	if e, err := a.Revoke(SerialOf(first.SerialNumber), 4, now.Add(time.Hour)); !errors.Is(err, ErrRevoked) || !e.Revoked.Equal(now) || e.Reason != 1 {
		t.Errorf("again: %+v, %v", e, err)
	}
	if _, err := a.Revoke("1234", 0, now); !errors.Is(err, ErrNotIssued) {
		t.Errorf("of nobody: %v", err)
	}
	last := list.Number
	for i := range 3 { // within the same second
		list, err = a.WriteList(now, due)
		if err != nil {
			t.Fatal(err)
		}
		if list.Number.Cmp(last) <= 0 {
			t.Errorf("list %d has the number %v after %v", i, list.Number, last)
		}
		last = list.Number
	}
	if err := list.CheckSignatureFrom(a.Certificate()); err != nil {
		t.Error(err)
	}
	e := list.RevokedCertificateEntries
	if len(e) != 1 || e[0].SerialNumber.Cmp(first.SerialNumber) != 0 || e[0].ReasonCode != 1 || !e[0].RevocationTime.Equal(now) ||
		!list.NextUpdate.Equal(due) || !list.ThisUpdate.Equal(now.Add(-backdated)) {
		t.Errorf("%+v, %v, %v", e, list.ThisUpdate, list.NextUpdate)
	}

	// All of it is read again, and the list can be lost.
	a.Close()
	if err := os.Remove(inDir(dir, listFile)); err != nil {
		t.Fatal(err)
	}
	a = mustOpen(t, dir)
	if list, err = a.WriteList(now.Add(time.Minute), due); err != nil || list.Number.Cmp(last) <= 0 || len(list.RevokedCertificateEntries) != 1 {
		t.Errorf("after it was lost: %v, %v", list, err)
	}
	if serial, err := a.SerialIn(second); err != nil || serial != SerialOf(second.SerialNumber) {
		t.Errorf("%q, %v", serial, err)
	}
	// One that an older index does not have can be revoked all the same.
	lost := Client{Emails: []string{"lost@example.com"}}
	cert, err := a.Client(lost, mustKey(t, "p256").Public(), short) // signed, and not noted
	if err != nil {
		t.Fatal(err)
	}
	serial, err := a.SerialIn(cert)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Revoke(serial, 1, now); err != nil {
		t.Errorf("revoke what the index had lost: %v", err)
	}
	a.Close()
	a = mustOpen(t, dir)
	if list, err = a.WriteList(now.Add(2*time.Minute), due); err != nil || len(list.RevokedCertificateEntries) != 2 {
		t.Errorf("with what was lost: %v, %v", list, err)
	}
	other := mustOpen(t, create(t, AuthorityOptions{}, ""))
	if _, err := other.SerialIn(second); !errors.Is(err, ErrNotIssued) {
		t.Errorf("another authority: %v", err)
	}
	// What has ended stays for a day.
	for after, want := range map[time.Duration]int{23 * time.Hour: 2, 25 * time.Hour: 0} {
		list, err := a.WriteList(short.Until.Add(after), due.Add(after))
		if err != nil || len(list.RevokedCertificateEntries) != want {
			t.Errorf("%v after its end: %v, %v", after, list, err)
		}
	}
	if _, err := a.WriteList(due, due); err == nil {
		t.Error("a list that is never good")
	}
	if err := os.WriteFile(inDir(dir, listFile), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := a.WriteList(now, due); err == nil || !strings.Contains(err.Error(), "crl.pem") {
		t.Errorf("a garbled list: %v", err)
	}
}

func TestReasonsAndSerials(t *testing.T) {
	for i, name := range Reasons() {
		r, err := ParseReason(strings.ToUpper(name))
		if err != nil || r.String() != name || i == 0 != (r == 0) {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	if _, err := ParseReason("certificateHold"); err == nil {
		t.Error("a hold")
	}
	for text, want := range map[string]string{"0A:ff": "aff", "serial=ABC": "abc", "0x00ff": "ff", "": "", "xy": "", "1 2": "", strings.Repeat("f", 41): ""} {
		if got, err := ParseSerial(text); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}

// A line that was not finished has never counted: whoever was to get the certificate has
// not got it.
func TestTornIndex(t *testing.T) {
	dir := create(t, AuthorityOptions{}, "")
	a := mustOpen(t, dir)
	cert := mustIssue(t, a)
	a.Close()
	name := inDir(dir, indexFile)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	line := whole[len(indexHead):]
	for cut := range line {
		torn := slices.Concat(whole, bytes.Replace(line[:cut], line[7:20], []byte("00"), 1))
		if err := os.WriteFile(name, torn, 0o600); err != nil {
			t.Fatal(err)
		}
		if list, err := List(dir); err != nil || len(list) != 1 || list[0].Serial != SerialOf(cert.SerialNumber) {
			t.Fatalf("cut at %d: %v, %v", cut, list, err)
		}
	}
	a = mustOpen(t, dir)
	another := mustIssue(t, a)
	if list, err := List(dir); err != nil || len(list) != 2 || list[1].Serial != SerialOf(another.SerialNumber) {
		t.Errorf("%v, %v", list, err)
	}
}

// A full disk ends in an error, without a certificate and with an index that can be read.
func TestDiskFull(t *testing.T) {
	dir := create(t, AuthorityOptions{}, "")
	if err := os.Mkdir(filepath.Join(filepath.Dir(dir), "out"), 0o700); err != nil {
		t.Fatal(err)
	}
	out := child(t, "full="+dir)
	if !strings.Contains(out, "given to nobody") || !strings.Contains(out, "file too large") {
		t.Errorf("said %s", out)
	}
	list, err := List(dir)
	if err != nil || len(list) < 3 {
		t.Errorf("%d entries, %v", len(list), err)
	}
	text, err := os.ReadFile(inDir(dir, indexFile))
	if err != nil || !bytes.HasSuffix(text, []byte("\n")) {
		t.Errorf("the index ends with %q, %v", text[max(0, len(text)-9):], err)
	}
	mustIssue(t, mustOpen(t, dir))
}

func child(t *testing.T, what string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+what)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func issueOnFullDisk(dir string) error {
	signal.Ignore(syscall.SIGXFSZ)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 1024, Max: 1024}); err != nil {
		return err
	}
	return issueForEver(dir)
}

// issueForEver issues certificates, which it puts beside the directory, until it fails.
func issueForEver(dir string) error {
	a, err := Open(dir, noPassphrase)
	if err != nil {
		return err
	}
	key, err := NewKey("p256")
	if err != nil {
		return err
	}
	for {
		cert, err := a.IssueClient(ann, key.Public(), short)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(filepath.Dir(dir), "out", SerialOf(cert.SerialNumber)), nil, 0o600); err != nil {
			return err
		}
	}
}

// Whatever moment a process is killed at, what it has given away is in the index.
func TestKilled(t *testing.T) {
	dir := create(t, AuthorityOptions{}, "")
	given := filepath.Join(filepath.Dir(dir), "out")
	if err := os.Mkdir(given, 0o700); err != nil {
		t.Fatal(err)
	}
	for round := range 10 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"=issue="+dir)
		var said bytes.Buffer
		cmd.Stdout = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(30 * time.Second); ; <-time.After(time.Millisecond) {
			list, err := os.ReadDir(given)
			if err != nil || time.Now().After(end) {
				t.Fatalf("%d certificates, %v, %s", len(list), err, &said)
			}
			if len(list) > 3*round {
				break
			}
		}
		cmd.Process.Kill()
		cmd.Wait()
		entries, err := List(dir)
		if err != nil {
			t.Fatal(err)
		}
		list, err := os.ReadDir(given)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range list {
			if !slices.ContainsFunc(entries, func(e Entry) bool { return e.Serial == f.Name() }) {
				t.Errorf("%s was given away and is not noted", f.Name())
			}
		}
		mustOpen(t, dir).Close() // its lock has ended with it
	}
}

func TestReadRequest(t *testing.T) {
	key := mustKey(t, "p256")
	u, _ := url.Parse("https://login.example.com/admin")
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "admin"}, EmailAddresses: []string{"root@example.com"},
		DNSNames: []string{"gw"}, URIs: []*url.URL{u}, IPAddresses: []net.IP{{10, 0, 0, 1}}}, key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: blockRequest, Bytes: der})
	r, err := ReadRequest(append([]byte("text of openssl before it\n"), text...))
	if err != nil || !key.Public().(*ecdsa.PublicKey).Equal(r.Key) || len(r.Names) != 5 {
		t.Errorf("%+v, %v", r, err)
	}
	der[len(der)-1] ^= 1
	for what, text := range map[string][]byte{"another signature": pem.EncodeToMemory(&pem.Block{Type: blockRequest, Bytes: der}), "DER": der, "nothing": nil,
		"a certificate": bare("CERTIFICATE"), "garbled": bare(blockOldRequest)} {
		if _, err := ReadRequest(text); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
}

func FuzzReadRequest(f *testing.F) {
	key, _ := NewKey("p256")
	der, _ := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	f.Add(pem.EncodeToMemory(&pem.Block{Type: blockRequest, Bytes: der}))
	f.Fuzz(func(t *testing.T, text []byte) {
		if r, err := ReadRequest(text); err == nil && checkKey(r.Key) != nil {
			t.Error("a key that is not taken")
		}
		_, _ = ReadCertificate(text)
	})
}

// FuzzIndex: what is read can be written and is read the same.
func FuzzIndex(f *testing.F) {
	f.Add([]byte(indexHead + "issued\taff\tclient\t2026-03-01T11:55:00Z\t2026-03-02T00:00:00Z\temail:a@b\tgroup:x y\nrevoked\taff\t2026-03-01T13:00:00Z\tsuperseded\n"))
	f.Add([]byte("issued\taff\tserver\t2026-03-01T11:55:00Z\t2026-03-02T00:00:00+01:00\tdns:a\nissued\t"))
	f.Fuzz(func(t *testing.T, text []byte) {
		x, err := parseIndex("index.txt", text)
		if err != nil {
			return
		}
		read := &index{at: map[string]int{}}
		for _, e := range x.entries {
			if err := read.read(e.issued()); err != nil {
				t.Fatalf("%+v: %v", e, err)
			}
		}
		for i, e := range x.entries {
			if got := read.entries[i]; got.Serial != e.Serial || got.Kind != e.Kind || !slices.Equal(got.Names, e.Names) || !got.Validity.Until.Equal(e.Validity.Until) {
				t.Errorf("%+v became %+v", e, got)
			}
		}
	})
}
