package gwconfig

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// authority makes certificates for TestCheck.
type authority struct {
	t    *testing.T
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T, from, to time.Time) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, dir: t.TempDir(), key: key}
	a.cert = &x509.Certificate{Subject: pkix.Name{CommonName: "CA"}, SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: to, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	a.issue("ca.pem", a.cert)
	return a
}

func (a *authority) issue(file string, cert *x509.Certificate) {
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, &a.key.PublicKey, a.key)
	a.write(file, "CERTIFICATE", der, err)
}

func (a *authority) revoke(file string, next time.Time) {
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: next.Add(-time.Hour), NextUpdate: next}, a.cert, a.key)
	a.write(file, "X509 CRL", der, err)
}

func (a *authority) write(file, kind string, der []byte, err error) {
	a.t.Helper()
	if err == nil {
		err = os.WriteFile(filepath.Join(a.dir, file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
	}
	if err != nil {
		a.t.Fatal(err)
	}
}

func TestCheck(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	a := newAuthority(t, now.Add(-day), now.Add(300*day))
	server := func(file string, from, to time.Time) {
		a.issue(file, &x509.Certificate{Subject: pkix.Name{CommonName: file}, SerialNumber: big.NewInt(2), NotBefore: from, NotAfter: to, DNSNames: []string{"gw.example.com"}})
	}
	server("good.pem", now.Add(-day), now.Add(15*day))
	server("soon.pem", now.Add(-day), now.Add(13*day))
	server("ended.pem", now.Add(-9*day), now.Add(-day))
	server("later.pem", now.Add(day), now.Add(90*day))
	a.revoke("good.crl", now.Add(day))
	a.revoke("old.crl", now.Add(-time.Minute))
	if err := os.WriteFile(filepath.Join(a.dir, "junk.pem"), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.write("broken.pem", "CERTIFICATE", []byte("junk"), nil)
	for _, c := range []struct {
		cert, ca, crl, names string
		want                 []string
	}{
		{"good.pem", "ca.pem", "good.crl", "gw.example.com", nil},
		{"soon.pem", "ca.pem", "good.crl", "gw.example.com", []string{"2:1: certificates[0]: soon.pem: the certificate of CN=soon.pem ends at 2026-12-05 12:00:00 UTC"}},
		{"ended.pem", "ca.pem", "good.crl", "gw.example.com", []string{"2:1: certificates[0]: ended.pem: the certificate of CN=ended.pem ended at 2026-11-21 12:00:00 UTC"}},
		{"later.pem", "ca.pem", "good.crl", "gw.example.com", []string{"2:1: certificates[0]: later.pem: the certificate of CN=later.pem begins at 2026-11-23 12:00:00 UTC"}},
		{"good.pem", "good.pem", "good.crl", "gw.example.com", []string{"3:1: client_ca: CN=good.pem is not a CA"}},
		{"good.pem", "ca.pem", "old.crl", "gw.example.com", []string{"4:1: crl: old.crl: the revocation list was to be replaced by 2026-11-22 11:59:00 UTC"}},
		{"good.pem", "ca.pem", "ca.pem", "gw.example.com", []string{"4:1: crl: ca.pem has no revocation list"}},
		{"good.pem", "ca.pem", "junk.pem", "gw.example.com", []string{"4:1: crl: junk.pem: x509: malformed crl"}},
		{"good.pem", "ca.pem", "good.crl", "db.example.com", []string{"5:1: services[0].tls_sni: the gateway's certificate is not for db.example.com, so clients refuse it"}},
		{"junk.pem", "ca.pem", "good.crl", "gw.example.com", []string{"2:1: certificates[0]: junk.pem has no certificate"}},
		{"broken.pem", "ca.pem", "good.crl", "gw.example.com", []string{"2:1: certificates[0]: broken.pem: x509: malformed certificate", "2:1: certificates[0]: broken.pem has no certificate"}},
		{"good.pem", "none.pem", "good.crl", "gw.example.com", []string{"3:1: client_ca: not checked: open none.pem: no such file or directory"}},
	} {
		file := filepath.Join(a.dir, "f.yaml")
		text := fmt.Sprintf("listen: \":8443\"\ncertificates: [{certificate: %s, key: server.key}]\nclient_ca: %s\ncrl: %s\nservices: [{name: s, any_certificate: true, tls_sni: %s, backend: {target: {name: a, port: 1}}}]\n", c.cert, c.ca, c.crl, c.names)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		problems, err := Check(file, now)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range problems {
			if p.Element == "services[0].any_certificate" {
				continue
			}
			if !p.Warning {
				t.Errorf("%v is an error", p)
			}
			line := fmt.Sprintf("%d:1: %s: %s", p.Pos.Line, p.Element, strings.ReplaceAll(p.Msg, a.dir+"/", ""))
			got = append(got, line)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v:\n got %q\nwant %q", c, got, c.want)
		}
	}
}
