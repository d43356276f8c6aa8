package policy

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Identity is what a client certificate says of who is connected. Roles match Emails, URIs,
// Groups and Issuer; the rest is for records. The common name is part of Subject and
// identifies nobody.
type Identity struct {
	Emails []string // rfc822Name of the subject alternative name; the domain in lower case
	URIs   []string // uniformResourceIdentifier of the subject alternative name
	Groups []string // organizations (O), then organizational units (OU), of the subject

	Subject, Issuer string    // as RFC 4514 writes names
	Serial          string    // hexadecimal, lower case
	Fingerprint     string    // SHA-256 of the certificate, hexadecimal, lower case
	NotAfter        time.Time // end of validity, included
}

// errNobody is a certificate without an identity.
var errNobody = errors.New("the certificate identifies nobody: its subject alternative name has neither an e-mail address nor a URI (the common name does not count)")

// IdentityOf reads the identity off a certificate that TLS has verified; it verifies
// nothing itself. It fails where there is neither an e-mail address nor a URI, and where
// one of them is malformed.
func IdentityOf(cert *x509.Certificate) (Identity, error) {
	if cert == nil {
		return Identity{}, errors.New("no certificate")
	}
	id := Identity{
		Groups:   slices.Concat(cert.Subject.Organization, cert.Subject.OrganizationalUnit),
		Subject:  cert.Subject.String(),
		Issuer:   cert.Issuer.String(),
		NotAfter: cert.NotAfter,
	}
	if cert.SerialNumber != nil {
		id.Serial = cert.SerialNumber.Text(16)
	}
	sum := sha256.Sum256(cert.Raw)
	id.Fingerprint = hex.EncodeToString(sum[:])
	for _, text := range cert.EmailAddresses {
		email, err := ParseEmail(text)
		if err != nil {
			return Identity{}, fmt.Errorf("subject alternative name: %w", err)
		}
		id.Emails = append(id.Emails, email)
	}
	for _, uri := range cert.URIs {
		text := uri.String()
		if strings.ContainsFunc(text, unprintable) {
			return Identity{}, fmt.Errorf("subject alternative name: the URI %q has a blank or a character that cannot be printed", text)
		}
		id.URIs = append(id.URIs, text)
	}
	if len(id.Emails) == 0 && len(id.URIs) == 0 {
		return Identity{}, errNobody
	}
	return id, nil
}

// Name is one name for the identity, for records and for counting: its first e-mail
// address, else its first URI; "" for nobody.
func (id *Identity) Name() string {
	switch {
	case id == nil:
		return ""
	case len(id.Emails) > 0:
		return id.Emails[0]
	case len(id.URIs) > 0:
		return id.URIs[0]
	}
	return ""
}

// ParseEmail checks an e-mail address and puts its domain into lower case. The local part
// stays as it is: case counts there (RFC 5280, section 7.5).
func ParseEmail(text string) (string, error) {
	at := strings.LastIndexByte(text, '@')
	if at < 1 || strings.ContainsFunc(text, unprintable) {
		return "", fmt.Errorf("%q is not an e-mail address", text)
	}
	domain, err := ParseDomain(text[at+1:])
	if err != nil {
		return "", fmt.Errorf("%q is not an e-mail address: %w", text, err)
	}
	return text[:at+1] + domain, nil
}

// ParseDomain checks the domain of e-mail addresses and returns it in the form that those
// have in an Identity: lower case, A-labels.
func ParseDomain(text string) (string, error) {
	host, err := ParseHost(text)
	if err != nil {
		return "", err
	}
	if host.addr.IsValid() {
		return "", fmt.Errorf("%q is an address, not a domain", text)
	}
	return host.name, nil
}

// unprintable is what neither a name in a certificate nor one in a record may have.
func unprintable(r rune) bool { return r <= ' ' || r >= 0x7f }
