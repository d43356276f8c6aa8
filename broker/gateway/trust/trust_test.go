package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var serials int64

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t *testing.T, c *x509.Certificate, parent *authority) *authority {
	t.Helper()
	serials++
	c.SerialNumber = big.NewInt(serials)
	if c.NotAfter.IsZero() {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	a := &authority{t: t, key: newKey(t)}
	signer, signKey := c, a.key
	if parent != nil {
		signer, signKey = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, signer, a.key.Public(), signKey)
	if err != nil {
		t.Fatal(err)
	}
	a.cert, err = x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newAuthority(t *testing.T, name string, parent *authority) *authority {
	return sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, parent)
}

func (a *authority) client(usage ...x509.ExtKeyUsage) *x509.Certificate {
	return sign(a.t, &x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage, EmailAddresses: []string{"a@b.example"}}, a).cert
}

// list signs a revocation list and returns it in DER.
func (a *authority) list(change func(*x509.RevocationList), revoked ...*x509.Certificate) []byte {
	a.t.Helper()
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	for _, c := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now().Add(-time.Minute), ReasonCode: 1})
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return der
}

func asPEM(kind string, ders ...[]byte) []byte {
	var text []byte
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	return text
}

func file(t *testing.T, content []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file.pem")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func (a *authority) file() string { return file(a.t, asPEM("CERTIFICATE", a.cert.Raw)) }

func TestVerify(t *testing.T) {
	ca, other := newAuthority(t, "ca", nil), newAuthority(t, "other", nil)
	middle := newAuthority(t, "middle", ca)
	revokedMiddle := newAuthority(t, "revoked middle", ca)
	good, gone := ca.client(x509.ExtKeyUsageClientAuth), ca.client(x509.ExtKeyUsageClientAuth)
	list := file(t, asPEM("X509 CRL", ca.list(nil, gone, revokedMiddle.cert)))
	expired := sign(t, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}, ca).cert
	trust, err := Load([]string{ca.file()}, []string{list})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		leaf  *x509.Certificate
		chain []*x509.Certificate
		want  any // nil: taken; an error: its class; a string: in its text
	}{
		{"good", good, nil, nil},
		{"by an intermediate", middle.client(x509.ExtKeyUsageClientAuth), []*x509.Certificate{middle.cert}, nil},
		{"revoked", gone, nil, ErrRevoked},
		{"by a revoked intermediate", revokedMiddle.client(x509.ExtKeyUsageClientAuth), []*x509.Certificate{revokedMiddle.cert}, ErrRevoked},
		{"other authority", other.client(x509.ExtKeyUsageClientAuth), nil, "unknown authority"},
		{"its authority sent along", other.client(x509.ExtKeyUsageClientAuth), []*x509.Certificate{other.cert}, "unknown authority"},
		{"server's usage", ca.client(x509.ExtKeyUsageServerAuth), nil, "incompatible key usage"},
		{"no usage", ca.client(), nil, ErrUsage},
		{"any usage", ca.client(x509.ExtKeyUsageAny), nil, ErrUsage},
		{"expired", expired, nil, "expired"},
	} {
		err := trust.Verify(tc.leaf, tc.chain, time.Now())
		class, isClass := tc.want.(error)
		text, isText := tc.want.(string)
		switch {
		case tc.want == nil && err != nil, isClass && !errors.Is(err, class), isText && (err == nil || !strings.Contains(err.Error(), text)):
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	if err := trust.Check(nil, time.Now()); err == nil {
		t.Error("no chain at all is taken")
	}
	if err := trust.Verify(good, nil, time.Now().Add(90*time.Minute)); err == nil {
		t.Error("taken after its end")
	}
}

// A list that nobody renewed refuses what it was to speak of, and nothing else.
func TestOldList(t *testing.T) {
	ca, other := newAuthority(t, "ca", nil), newAuthority(t, "other", nil)
	old := ca.list(func(l *x509.RevocationList) { l.NextUpdate = time.Now().Add(-time.Minute) })
	trust, err := Load([]string{ca.file(), other.file()}, []string{file(t, old)}) // DER
	if err != nil {
		t.Fatal(err)
	}
	if err := trust.Verify(ca.client(x509.ExtKeyUsageClientAuth), nil, time.Now()); !errors.Is(err, ErrNoStatus) {
		t.Errorf("got %v", err)
	}
	if err := trust.Verify(other.client(x509.ExtKeyUsageClientAuth), nil, time.Now()); err != nil {
		t.Errorf("the other authority's: %v", err)
	}
	said := strings.Join(trust.Warnings(time.Now()), "\n")
	for _, want := range []string{"is out of date", "no revocation list of the authority CN=other"} {
		if !strings.Contains(said, want) {
			t.Errorf("warnings lack %q: %s", want, said)
		}
	}
}

// An authority in the file that another one has revoked is none.
func TestRevokedAuthority(t *testing.T) {
	ca := newAuthority(t, "ca", nil)
	middle := newAuthority(t, "middle", ca)
	both := file(t, asPEM("CERTIFICATE", ca.cert.Raw, middle.cert.Raw))
	trust, err := Load([]string{both}, []string{file(t, ca.list(nil, middle.cert))})
	if err != nil {
		t.Fatal(err)
	}
	if err := trust.Verify(middle.client(x509.ExtKeyUsageClientAuth), nil, time.Now()); err == nil {
		t.Error("its client is taken")
	}
	if said := strings.Join(trust.Warnings(time.Now()), "\n"); !strings.Contains(said, "CN=middle is not trusted") {
		t.Errorf("warnings: %s", said)
	}
}

func TestRefusedFiles(t *testing.T) {
	ca, other := newAuthority(t, "ca", nil), newAuthority(t, "other", nil)
	leaf := file(t, asPEM("CERTIFICATE", ca.client(x509.ExtKeyUsageClientAuth).Raw))
	delta := ca.list(func(l *x509.RevocationList) {
		l.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}}
	})
	tampered := ca.list(nil)
	tampered[len(tampered)-1] ^= 1
	for _, tc := range []struct {
		name     string
		cas      []string
		lists    []string
		contains string
	}{
		{"nothing", nil, nil, "no authority"},
		{"no file", []string{"/nonexistent/ca.pem"}, nil, "/nonexistent/ca.pem: no such file"},
		{"empty", []string{file(t, nil)}, nil, "no certificate in PEM"},
		{"garbage", []string{file(t, asPEM("CERTIFICATE", []byte("garbage")))}, nil, "certificate 1"},
		{"a client's", []string{leaf}, nil, "is no authority's"},
		{"too large", []string{file(t, make([]byte, maxCAFile+1))}, nil, "larger than"},
		{"no regular file", []string{"/dev/null"}, nil, "not a regular file"},
		{"list of a stranger", []string{ca.file()}, []string{file(t, other.list(nil))}, "not signed by an authority"},
		{"tampered list", []string{ca.file()}, []string{file(t, tampered)}, "not signed by an authority"},
		{"delta list", []string{ca.file()}, []string{file(t, delta)}, "critical extension 2.5.29.27"},
		{"list of nothing", []string{ca.file()}, []string{file(t, asPEM("CERTIFICATE", ca.cert.Raw))}, "no revocation list"},
		{"two lists", []string{ca.file()}, []string{file(t, ca.list(nil)), file(t, ca.list(nil))}, "another list of CN=ca"},
	} {
		if _, err := Load(tc.cas, tc.lists); err == nil || !strings.Contains(err.Error(), tc.contains) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.contains)
		}
	}
}
