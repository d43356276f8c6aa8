package policy

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestIdentityOf(t *testing.T) {
	end := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	cert := &x509.Certificate{
		Raw:            []byte("certificate"),
		Subject:        pkix.Name{CommonName: "root", Organization: []string{"Example Ltd"}, OrganizationalUnit: []string{"ops", "dev"}},
		Issuer:         pkix.Name{CommonName: "Client CA", Organization: []string{"Example Ltd"}},
		SerialNumber:   big.NewInt(0xBEEF),
		NotAfter:       end,
		EmailAddresses: []string{"Alice@Example.COM"},
		URIs:           []*url.URL{must(url.Parse("spiffe://example.com/a"))},
	}
	id, err := IdentityOf(cert)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "emails", id.Emails, []string{"Alice@example.com"})
	equal(t, "URIs", id.URIs, []string{"spiffe://example.com/a"})
	equal(t, "groups", id.Groups, []string{"Example Ltd", "ops", "dev"})
	equal(t, "the rest", []string{id.Subject, id.Issuer, id.Serial, id.Fingerprint, id.Name()}, []string{
		"CN=root,OU=ops+OU=dev,O=Example Ltd", "CN=Client CA,O=Example Ltd", "beef",
		"03d66dd08835c1ca3f128cceacd1f31ac94163096b20f445ae84285bc0832d72", "Alice@example.com"})
	if !id.NotAfter.Equal(end) {
		t.Errorf("it ends at %v", id.NotAfter)
	}
	if (&Role{Emails: []string{"root"}, Groups: []string{"root"}}).match(&id) {
		t.Error("the common name counts")
	}
}

func TestIdentityRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		cert *x509.Certificate
		want string
	}{
		{"none", nil, "no certificate"},
		{"common name only", &x509.Certificate{Subject: pkix.Name{CommonName: "alice@example.com"}}, "identifies nobody"},
		{"group only", &x509.Certificate{Subject: pkix.Name{Organization: []string{"ops"}}}, "identifies nobody"},
		{"name of a host only", &x509.Certificate{DNSNames: []string{"a.example"}}, "identifies nobody"},
		{"no @", &x509.Certificate{EmailAddresses: []string{"alice"}}, "is not an e-mail address"},
		{"nobody at a domain", &x509.Certificate{EmailAddresses: []string{"@example.com"}}, "is not an e-mail address"},
		{"no domain", &x509.Certificate{EmailAddresses: []string{"alice@"}}, "is not an e-mail address"},
		{"domain is an address", &x509.Certificate{EmailAddresses: []string{"alice@10.0.0.1"}}, "is not an e-mail address"},
		{"line break", &x509.Certificate{EmailAddresses: []string{"alice\nx@example.com"}}, "is not an e-mail address"},
		{"NUL", &x509.Certificate{EmailAddresses: []string{"alice@example.com\x00.net"}}, "is not an e-mail address"},
		{"one good, one bad", &x509.Certificate{EmailAddresses: []string{"alice@example.com", "x"}}, "is not an e-mail address"},
		{"blank in a URI", &x509.Certificate{URIs: []*url.URL{{Scheme: "urn", Opaque: "a b"}}}, "has a blank"},
	} {
		id, err := IdentityOf(c.cert)
		if err == nil || !strings.Contains(err.Error(), c.want) || id.Name() != "" {
			t.Errorf("%s: %v, %+v", c.name, err, id)
		}
	}
}

func TestParseURIPattern(t *testing.T) {
	for text, want := range map[string]string{
		"spiffe://example.com/a":  "",
		"spiffe://example.com/*":  "",
		"urn:example:*":           "",
		"https://example.com/a?*": "",
		"spiffe://example.com*":   "only after the host",
		"spiffe://*":              "only after the host",
		"*":                       "is not a URI",
		"alice@example.com":       "is not a URI",
		":x":                      "is not a URI",
		"spiffe://a/b c":          "is not a URI",
		"spiffe://a/*/b":          "in another place",
	} {
		p, err := ParseURIPattern(text)
		if want == "" && (err != nil || p.String() != text) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, %v", text, p, err)
		}
	}
}
