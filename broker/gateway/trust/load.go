package trust

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"sshbroker/broker/regular"
)

// Bounds of the files.
const (
	maxCAFile  = 1 << 20
	maxCRLFile = 64 << 20
)

// Trust is what was read. It does not change; safe for concurrent use.
type Trust struct {
	roots *x509.CertPool
	cas   []*x509.Certificate
	lists map[string]*list // by the issuer's raw name and key
}

// list is one revocation list.
type list struct {
	file       string
	issuer     string
	number     string
	nextUpdate time.Time // zero: it does not say
	revoked    map[string]entry
}

// entry is one revoked certificate.
type entry struct {
	at     time.Time
	reason int // RFC 5280 section 5.3.1
}

// Load reads authorities and revocation lists, PEM or for lists DER. Each error names
// its file. A list has to be signed by one of the authorities; one that is out of date
// is loaded, and refuses what its issuer has signed. An authority that another one has
// revoked is left out.
func Load(caFiles, crlFiles []string) (*Trust, error) {
	t := &Trust{roots: x509.NewCertPool(), lists: map[string]*list{}}
	var errs []error
	for _, name := range caFiles {
		if err := t.readCAs(name); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	if len(errs) == 0 && len(t.cas) == 0 {
		errs = append(errs, errors.New("no authority for client certificates is named"))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	for _, name := range crlFiles {
		if err := t.readLists(name); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	for _, ca := range t.cas {
		if t.listed(ca) == nil {
			t.roots.AddCert(ca)
		}
	}
	return t, nil
}

func readFile(name string, most int64) ([]byte, error) {
	text, _, err := regular.Read(name, most+1)
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		err = path.Err // the caller names the file
	}
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("is larger than %d bytes", most)
	}
	return text, err
}

func (t *Trust) readCAs(name string) error {
	text, err := readFile(name, maxCAFile)
	if err != nil {
		return err
	}
	found := 0
	for number := 1; ; number++ {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue // a key beside it is none of ours
		}
		c, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err != nil:
			return fmt.Errorf("certificate %d: %w", number, err)
		case !c.BasicConstraintsValid || !c.IsCA:
			return fmt.Errorf("certificate %d (%s) is no authority's: it has no CA constraint", number, c.Subject)
		}
		t.cas = append(t.cas, c)
		found++
	}
	if found == 0 {
		return errors.New("has no certificate in PEM")
	}
	return nil
}

func (t *Trust) readLists(name string) error {
	text, err := readFile(name, maxCRLFile)
	if err != nil {
		return err
	}
	if !bytes.Contains(text, []byte("-----BEGIN")) {
		return t.addList(name, text)
	}
	found := 0
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "X509 CRL" {
			continue
		}
		if err := t.addList(name, block.Bytes); err != nil {
			return err
		}
		found++
	}
	if found == 0 {
		return errors.New("has no revocation list: PEM block X509 CRL, or DER")
	}
	return nil
}

// Extensions of lists that change what a list means, RFC 5280 section 5.2.
var (
	authorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}
	crlNumber      = asn1.ObjectIdentifier{2, 5, 29, 20}
)

func (t *Trust) addList(name string, der []byte) error {
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		return err
	}
	for _, ext := range crl.Extensions {
		if ext.Critical && !ext.Id.Equal(authorityKeyID) && !ext.Id.Equal(crlNumber) {
			return fmt.Errorf("the list has the critical extension %v: only whole lists of one authority are read", ext.Id)
		}
	}
	var issuer *x509.Certificate
	for _, ca := range t.cas {
		if bytes.Equal(ca.RawSubject, crl.RawIssuer) && crl.CheckSignatureFrom(ca) == nil {
			issuer = ca
			break
		}
	}
	if issuer == nil {
		return fmt.Errorf("the list of %s is not signed by an authority that is trusted for clients", crl.Issuer)
	}
	l := &list{file: name, issuer: crl.Issuer.String(), nextUpdate: crl.NextUpdate, revoked: make(map[string]entry, len(crl.RevokedCertificateEntries))}
	if crl.Number != nil {
		l.number = crl.Number.String()
	}
	for _, e := range crl.RevokedCertificateEntries {
		for _, ext := range e.Extensions {
			if ext.Critical && !ext.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 21}) {
				return fmt.Errorf("the list's entry for serial %x has the critical extension %v", e.SerialNumber, ext.Id)
			}
		}
		if e.ReasonCode == removeFromCRL {
			continue
		}
		l.revoked[e.SerialNumber.String()] = entry{e.RevocationTime, e.ReasonCode}
	}
	key := issuerKey(crl.RawIssuer, issuer.RawSubjectPublicKeyInfo)
	if other := t.lists[key]; other != nil {
		return fmt.Errorf("there is another list of %s in %s", l.issuer, other.file)
	}
	t.lists[key] = l
	return nil
}

const removeFromCRL = 8

// issuerKey tells issuers apart: names may be the same after a change of keys.
func issuerKey(name, publicKey []byte) string { return string(name) + "\x00" + string(publicKey) }
