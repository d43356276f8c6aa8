package trust

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Classes of why a certificate is not taken.
var (
	ErrRevoked  = errors.New("certificate is revoked")
	ErrNoStatus = errors.New("revocation list is out of date")
	ErrUsage    = errors.New("certificate is not for clients (extended key usage clientAuth)")
)

// Roots are the authorities, for a TLS configuration.
func (t *Trust) Roots() *x509.CertPool { return t.roots }

// Check judges chains that were verified against Roots, leaf first. A certificate that
// is revoked in any of them is refused. Its errors are of the classes above.
func (t *Trust) Check(chains [][]*x509.Certificate, now time.Time) error {
	if len(chains) == 0 || len(chains[0]) == 0 {
		return errors.New("no verified chain")
	}
	// The library takes a certificate without any usage for one with all of them.
	if !slices.Contains(chains[0][0].ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return ErrUsage
	}
	for _, chain := range chains {
		for i, c := range chain[:len(chain)-1] {
			if err := t.status(c, chain[i+1], now); err != nil {
				return err
			}
		}
	}
	return nil
}

// Verify does all of it for a certificate that is in use: chain, times, usage,
// revocation. intermediates are what the client sent beside it.
func (t *Trust) Verify(leaf *x509.Certificate, intermediates []*x509.Certificate, now time.Time) error {
	options := x509.VerifyOptions{
		Roots: t.roots, Intermediates: x509.NewCertPool(), CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, c := range intermediates {
		options.Intermediates.AddCert(c)
	}
	chains, err := leaf.Verify(options)
	if err != nil {
		return err
	}
	return t.Check(chains, now)
}

// status asks the list of issuer, where there is one, about c.
func (t *Trust) status(c, issuer *x509.Certificate, now time.Time) error {
	l := t.lists[issuerKey(c.RawIssuer, issuer.RawSubjectPublicKeyInfo)]
	if l == nil {
		return nil
	}
	if e, ok := l.revoked[c.SerialNumber.String()]; ok {
		return fmt.Errorf("%w: serial %x of %s, since %s (%s)", ErrRevoked, c.SerialNumber, l.issuer, e.at.UTC().Format(time.RFC3339), reasonWord(e.reason))
	}
	if !l.nextUpdate.IsZero() && now.After(l.nextUpdate) {
		return fmt.Errorf("%w: that of %s in %s was due to be renewed at %s", ErrNoStatus, l.issuer, l.file, l.nextUpdate.UTC().Format(time.RFC3339))
	}
	return nil
}

// listed returns why an authority is on the list of another one, or nil.
func (t *Trust) listed(ca *x509.Certificate) error {
	for _, issuer := range t.cas {
		if issuer.Equal(ca) || ca.CheckSignatureFrom(issuer) != nil {
			continue
		}
		if err := t.status(ca, issuer, time.Time{}); errors.Is(err, ErrRevoked) {
			return err
		}
	}
	return nil
}

// Warnings says what a person should know of the files at a time.
func (t *Trust) Warnings(now time.Time) []string {
	var all []string
	for _, l := range t.lists {
		if !l.nextUpdate.IsZero() && now.After(l.nextUpdate) {
			all = append(all, fmt.Sprintf("%s: the revocation list of %s is out of date since %s: nobody with a certificate of this authority gets in",
				l.file, l.issuer, l.nextUpdate.UTC().Format(time.RFC3339)))
		}
	}
	for _, ca := range t.cas {
		switch err := t.listed(ca); {
		case err != nil:
			all = append(all, fmt.Sprintf("the authority %s is not trusted: %v", ca.Subject, err))
		case now.After(ca.NotAfter):
			all = append(all, fmt.Sprintf("the certificate of the authority %s has expired at %s", ca.Subject, ca.NotAfter.UTC().Format(time.RFC3339)))
		case len(t.lists) > 0 && t.lists[issuerKey(ca.RawSubject, ca.RawSubjectPublicKeyInfo)] == nil:
			all = append(all, fmt.Sprintf("there is no revocation list of the authority %s: what it has signed is not asked about", ca.Subject))
		}
	}
	slices.Sort(all)
	return all
}

// NextUpdate is when the first list is out of date; zero where none says so.
func (t *Trust) NextUpdate() (first time.Time) {
	for _, l := range t.lists {
		if !l.nextUpdate.IsZero() && (first.IsZero() || l.nextUpdate.Before(first)) {
			first = l.nextUpdate
		}
	}
	return first
}

// reasonWord is the name of a CRLReason of RFC 5280 section 5.3.1.
func reasonWord(code int) string {
	names := []string{"unspecified", "keyCompromise", "cACompromise", "affiliationChanged", "superseded",
		"cessationOfOperation", "certificateHold", "", "removeFromCRL", "privilegeWithdrawn", "aACompromise"}
	if code >= 0 && code < len(names) && names[code] != "" {
		return names[code]
	}
	return fmt.Sprintf("reason %d", code)
}
