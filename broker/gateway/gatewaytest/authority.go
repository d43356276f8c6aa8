package gatewaytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// Authority signs certificates and revocation lists. Its methods end the test where
// something fails.
type Authority struct {
	t    testing.TB
	Cert *x509.Certificate
	key  *ecdsa.PrivateKey

	revoked []x509.RevocationListEntry
	lists   int64
}

var serials atomic.Int64

// NewAuthority makes one, by a parent or of its own.
func NewAuthority(t testing.TB, name string, parent *Authority) *Authority {
	t.Helper()
	a := &Authority{t: t}
	a.Cert, a.key = sign(t, parent, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	})
	return a
}

// sign fills in what every certificate needs: a serial, and an hour around now where
// the template says nothing.
func sign(t testing.TB, parent *Authority, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(serials.Add(1))
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	signer, signKey := template, key
	if parent != nil {
		signer, signKey = parent.Cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer, key.Public(), signKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// Sign makes a certificate of a template; see sign for what may be left out.
func (a *Authority) Sign(template *x509.Certificate) tls.Certificate {
	a.t.Helper()
	cert, key := sign(a.t, a, template)
	return tls.Certificate{Certificate: [][]byte{cert.Raw, a.Cert.Raw}, PrivateKey: key, Leaf: cert}
}

// ClientTemplate is a client's certificate before it is signed.
func ClientTemplate(email string) *x509.Certificate {
	return &x509.Certificate{
		Subject:        pkix.Name{CommonName: email, Organization: []string{"staff"}},
		EmailAddresses: []string{email},
		URIs:           []*url.URL{{Scheme: "spiffe", Host: "example.com", Path: "/" + email}},
		KeyUsage:       x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

// Client makes a certificate for a client.
func (a *Authority) Client(email string) tls.Certificate {
	a.t.Helper()
	return a.Sign(ClientTemplate(email))
}

// Server makes a certificate for names and addresses.
func (a *Authority) Server(names ...string) tls.Certificate {
	a.t.Helper()
	template := &x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	return a.Sign(template)
}

// Pool trusts the authority alone.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Cert)
	return pool
}

// List signs a revocation list of what was revoked so far and of these, in PEM. change
// may alter it before.
func (a *Authority) List(change func(*x509.RevocationList), revoked ...*x509.Certificate) []byte {
	a.t.Helper()
	a.lists++
	for _, c := range revoked {
		a.revoked = append(a.revoked, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now().Add(-time.Minute), ReasonCode: 1})
	}
	template := &x509.RevocationList{Number: big.NewInt(a.lists), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: a.revoked}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.Cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return PEM("X509 CRL", der)
}

// PEM is blocks of one kind.
func PEM(kind string, ders ...[]byte) []byte {
	var text []byte
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	return text
}

// Write puts content into a file of dir, as a whole at once, and returns its path.
func Write(t testing.TB, dir, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return path
}

// WriteCA puts the authority's certificate into a file of dir.
func (a *Authority) WriteCA(dir, name string) string {
	a.t.Helper()
	return Write(a.t, dir, name, PEM("CERTIFICATE", a.Cert.Raw))
}

// WritePair puts a certificate with its chain and its key into files of dir, NAME.pem
// and NAME.key.
func WritePair(t testing.TB, dir, name string, c tls.Certificate) (cert, key string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return Write(t, dir, name+".pem", PEM("CERTIFICATE", c.Certificate...)), Write(t, dir, name+".key", PEM("PRIVATE KEY", der))
}
