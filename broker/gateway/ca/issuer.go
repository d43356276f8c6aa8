package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"time"

	"sshbroker/broker/gateway/policy"
)

// Issuer signs certificates with the key of an authority.
type Issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// NewIssuer returns the issuer of an authority's certificate and its key.
func NewIssuer(cert *x509.Certificate, key crypto.Signer) (*Issuer, error) {
	switch public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); {
	case !ok || !public.Equal(cert.PublicKey):
		return nil, errors.New("the authority's key does not belong to its certificate")
	case !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, errors.New("the certificate is not an authority's: it may not sign others")
	}
	return &Issuer{cert, key}, nil
}

// Certificate is the authority's own.
func (i *Issuer) Certificate() *x509.Certificate { return i.cert }

// Client makes a certificate by which a client is known: extended usage clientAuth and
// nothing else. The serial number has 159 random bits.
func (i *Issuer) Client(c Client, key crypto.PublicKey, v Validity) (*x509.Certificate, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	template := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		EmailAddresses: unique(c.Emails), Subject: pkix.Name{CommonName: commonName(c.Emails), Organization: unique(c.Groups)}}
	for _, text := range unique(c.URIs) {
		u, err := parseURI(text)
		if err != nil {
			return nil, err
		}
		template.URIs = append(template.URIs, u)
	}
	cert, err := i.sign(template, key, v)
	if err != nil {
		return nil, err
	}
	if _, err := policy.IdentityOf(cert); err != nil { // what we sign a gateway of ours can read
		return nil, fmt.Errorf("a gateway would not take it: %w", err)
	}
	return cert, nil
}

// Server makes a certificate by which a server is known: extended usage serverAuth and
// nothing else.
func (i *Issuer) Server(s Server, key crypto.PublicKey, v Validity) (*x509.Certificate, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	template := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: unique(s.Names), Subject: pkix.Name{CommonName: commonName(s.Names)}}
	for _, a := range s.Addrs {
		template.IPAddresses = append(template.IPAddresses, net.IP(a.Unmap().AsSlice()))
	}
	return i.sign(template, key, v)
}

// sign fills in what all certificates have in common. What it returns has been verified
// as a stranger would, so that it is within the authority's name constraints.
func (i *Issuer) sign(template *x509.Certificate, key crypto.PublicKey, v Validity) (*x509.Certificate, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	if v.From.Before(i.cert.NotBefore) {
		v.From = i.cert.NotBefore // backdated, it may reach back to before the authority
	}
	switch {
	case !v.From.Before(v.Until):
		return nil, fmt.Errorf("it would count from %s until %s, which is never", stamp(v.From), stamp(v.Until))
	case v.Until.After(i.cert.NotAfter):
		return nil, fmt.Errorf("it would count until %s, longer than the authority itself, which ends %s", stamp(v.Until), stamp(i.cert.NotAfter))
	}
	template.NotBefore, template.NotAfter = v.From, v.Until
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true // and no authority
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, key, i.key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(i.cert)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: v.From, KeyUsages: template.ExtKeyUsage}); err != nil {
		return nil, fmt.Errorf("the authority may not sign this: %w", err)
	}
	return cert, nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// commonName is what is shown of a certificate, "" where it would be too long.
func commonName(names []string) string {
	if len(names) == 0 || len(names[0]) > 64 { // ub-common-name of RFC 5280
		return ""
	}
	return names[0]
}

func unique(list []string) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// checkKey refuses public keys that are weak, or that Go's TLS does not take.
func checkKey(key crypto.PublicKey) error {
	switch k := key.(type) {
	case ed25519.PublicKey:
		return nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() || k.Curve == elliptic.P521() {
			return nil
		}
		return fmt.Errorf("the key is on the curve %s; P-256, P-384 and P-521 are taken", k.Curve.Params().Name)
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return fmt.Errorf("the RSA key has %d bits; 2048 to 8192 are taken", n)
		}
		return nil
	}
	return fmt.Errorf("keys of type %T are not taken: use P-256, Ed25519 or RSA", key)
}

// AuthorityOptions say what a new authority is.
type AuthorityOptions struct {
	Name     string // common name
	Validity Validity

	// What it may sign for; where a list is empty, for all of that kind.
	DNS, Emails, URIHosts []string // a host, or a domain with all below it that begins with "."
	Networks              []*net.IPNet
}

// newAuthority makes the certificate of an authority that signs for itself. Below it there
// may be no further authority.
func newAuthority(o AuthorityOptions, key crypto.Signer) (*x509.Certificate, error) {
	if !printable(o.Name) || o.Name == "" || len(o.Name) > 64 {
		return nil, fmt.Errorf("name %q: it is 1 to 64 printable characters", o.Name)
	}
	for _, list := range [][]string{o.DNS, o.Emails, o.URIHosts} {
		for _, name := range list {
			if _, err := url.Parse("//" + name); err != nil || name == "" || !ascii(name) {
				return nil, fmt.Errorf("%q is not a domain", name)
			}
		}
	}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: o.Name}, NotBefore: o.Validity.From, NotAfter: o.Validity.Until,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		PermittedDNSDomainsCritical: len(o.DNS)+len(o.Emails)+len(o.URIHosts)+len(o.Networks) > 0,
		PermittedDNSDomains:         o.DNS, PermittedEmailAddresses: o.Emails, PermittedURIDomains: o.URIHosts, PermittedIPRanges: o.Networks}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
