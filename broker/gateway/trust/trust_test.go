package trust

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	"sshbroker/broker/gateway/gatewaytest"
)

func client(a *gatewaytest.Authority, usage ...x509.ExtKeyUsage) *x509.Certificate {
	template := gatewaytest.ClientTemplate("a@b.example")
	template.ExtKeyUsage = usage
	return a.Sign(template).Leaf
}

func file(t *testing.T, content []byte) string {
	return gatewaytest.Write(t, t.TempDir(), "file.pem", content)
}

func der(text []byte) []byte {
	block, _ := pem.Decode(text)
	return block.Bytes
}

func fileOf(t *testing.T, a *gatewaytest.Authority) string { return a.WriteCA(t.TempDir(), "ca.pem") }

func TestVerify(t *testing.T) {
	ca, other := gatewaytest.NewAuthority(t, "ca", nil), gatewaytest.NewAuthority(t, "other", nil)
	middle := gatewaytest.NewAuthority(t, "middle", ca)
	revokedMiddle := gatewaytest.NewAuthority(t, "revoked middle", ca)
	good, gone := client(ca, x509.ExtKeyUsageClientAuth), client(ca, x509.ExtKeyUsageClientAuth)
	list := file(t, ca.List(nil, gone, revokedMiddle.Cert))
	late := gatewaytest.ClientTemplate("a@b.example")
	late.NotBefore, late.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	expired := ca.Sign(late).Leaf
	trusted, err := Load([]string{fileOf(t, ca)}, []string{list})
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
		{"by an intermediate", client(middle, x509.ExtKeyUsageClientAuth), []*x509.Certificate{middle.Cert}, nil},
		{"revoked", gone, nil, ErrRevoked},
		{"by a revoked intermediate", client(revokedMiddle, x509.ExtKeyUsageClientAuth), []*x509.Certificate{revokedMiddle.Cert}, ErrRevoked},
		{"other authority", client(other, x509.ExtKeyUsageClientAuth), nil, "unknown authority"},
		{"its authority sent along", client(other, x509.ExtKeyUsageClientAuth), []*x509.Certificate{other.Cert}, "unknown authority"},
		{"server's usage", client(ca, x509.ExtKeyUsageServerAuth), nil, "incompatible key usage"},
		{"no usage", client(ca), nil, ErrUsage},
		{"any usage", client(ca, x509.ExtKeyUsageAny), nil, ErrUsage},
		{"expired", expired, nil, "expired"},
	} {
		err := trusted.Verify(tc.leaf, tc.chain, time.Now())
		class, isClass := tc.want.(error)
		text, isText := tc.want.(string)
		switch {
		case tc.want == nil && err != nil, isClass && !errors.Is(err, class), isText && (err == nil || !strings.Contains(err.Error(), text)):
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	if err := trusted.Check(nil, time.Now()); err == nil {
		t.Error("no chain at all is taken")
	}
	if err := trusted.Verify(good, nil, time.Now().Add(90*time.Minute)); err == nil {
		t.Error("taken after its end")
	}
}

// A list that nobody renewed refuses what it was to speak of, and nothing else.
func TestOldList(t *testing.T) {
	ca, other := gatewaytest.NewAuthority(t, "ca", nil), gatewaytest.NewAuthority(t, "other", nil)
	old := ca.List(func(l *x509.RevocationList) { l.NextUpdate = time.Now().Add(-time.Minute) })
	trusted, err := Load([]string{fileOf(t, ca), fileOf(t, other)}, []string{file(t, der(old))})
	if err != nil {
		t.Fatal(err)
	}
	if err := trusted.Verify(client(ca, x509.ExtKeyUsageClientAuth), nil, time.Now()); !errors.Is(err, ErrNoStatus) {
		t.Errorf("got %v", err)
	}
	if err := trusted.Verify(client(other, x509.ExtKeyUsageClientAuth), nil, time.Now()); err != nil {
		t.Errorf("the other authority's: %v", err)
	}
	said := strings.Join(trusted.Warnings(time.Now()), "\n")
	for _, want := range []string{"is out of date", "no revocation list of the authority CN=other"} {
		if !strings.Contains(said, want) {
			t.Errorf("warnings lack %q: %s", want, said)
		}
	}
}

// An authority in the file that another one has revoked is none.
func TestRevokedAuthority(t *testing.T) {
	ca := gatewaytest.NewAuthority(t, "ca", nil)
	middle := gatewaytest.NewAuthority(t, "middle", ca)
	both := file(t, gatewaytest.PEM("CERTIFICATE", ca.Cert.Raw, middle.Cert.Raw))
	trusted, err := Load([]string{both}, []string{file(t, ca.List(nil, middle.Cert))})
	if err != nil {
		t.Fatal(err)
	}
	if err := trusted.Verify(client(middle, x509.ExtKeyUsageClientAuth), nil, time.Now()); err == nil {
		t.Error("its client is taken")
	}
	if said := strings.Join(trusted.Warnings(time.Now()), "\n"); !strings.Contains(said, "CN=middle is not trusted") {
		t.Errorf("warnings: %s", said)
	}
}

func TestRefusedFiles(t *testing.T) {
	ca, other := gatewaytest.NewAuthority(t, "ca", nil), gatewaytest.NewAuthority(t, "other", nil)
	leaf := file(t, gatewaytest.PEM("CERTIFICATE", client(ca, x509.ExtKeyUsageClientAuth).Raw))
	delta := ca.List(func(l *x509.RevocationList) {
		l.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}}
	})
	block, _ := pem.Decode(ca.List(nil))
	block.Bytes[len(block.Bytes)-1] ^= 1
	tampered := pem.EncodeToMemory(block)
	for _, tc := range []struct {
		name     string
		cas      []string
		lists    []string
		contains string
	}{
		{"nothing", nil, nil, "no authority"},
		{"no file", []string{"/nonexistent/ca.pem"}, nil, "/nonexistent/ca.pem: no such file"},
		{"empty", []string{file(t, nil)}, nil, "no certificate in PEM"},
		{"garbage", []string{file(t, gatewaytest.PEM("CERTIFICATE", []byte("garbage")))}, nil, "certificate 1"},
		{"a client's", []string{leaf}, nil, "is no authority's"},
		{"too large", []string{file(t, make([]byte, maxCAFile+1))}, nil, "larger than"},
		{"no regular file", []string{"/dev/null"}, nil, "not a regular file"},
		{"list of a stranger", []string{fileOf(t, ca)}, []string{file(t, other.List(nil))}, "not signed by an authority"},
		{"tampered list", []string{fileOf(t, ca)}, []string{file(t, tampered)}, "not signed by an authority"},
		{"delta list", []string{fileOf(t, ca)}, []string{file(t, delta)}, "critical extension 2.5.29.27"},
		{"list of nothing", []string{fileOf(t, ca)}, []string{file(t, gatewaytest.PEM("CERTIFICATE", ca.Cert.Raw))}, "no revocation list"},
		{"two lists", []string{fileOf(t, ca)}, []string{file(t, ca.List(nil)), file(t, ca.List(nil))}, "another list of CN=ca"},
	} {
		if _, err := Load(tc.cas, tc.lists); err == nil || !strings.Contains(err.Error(), tc.contains) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.contains)
		}
	}
}
