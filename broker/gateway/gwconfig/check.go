package gwconfig

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"time"

	"sshbroker/broker/regular"
)

// expiresSoon is how long before its end a certificate is warned of.
const expiresSoon = 14 * 24 * time.Hour

// maxPEM bounds a file of certificates or revocations, in bytes.
const maxPEM = 16 << 20

// Check returns all that is to be said of a file: its errors, or its warnings and those about
// the certificates and revocation lists that it names, at the time now. Files that cannot be
// read are warnings, as the file may be checked by another user or on another machine. The
// error is that of the system where the file itself cannot be read.
func Check(path string, now time.Time) (Problems, error) {
	c, err := Load(path)
	if problems, ok := errors.AsType[Problems](err); ok {
		return problems, nil
	}
	if err != nil {
		return nil, err
	}
	r := &reader{name: path}
	r.List = c.Warnings
	for i, v := range c.certificates {
		chain := r.certificates(v, c.Certificates[i].Certificate, now)
		if len(chain) > 0 {
			r.lintNames(c, chain[0], v)
		}
	}
	for i, v := range c.clientCAs {
		for _, ca := range r.certificates(v, c.ClientCAs[i], now) {
			if !ca.IsCA {
				r.warn(v, "name the CA that issues the certificates of clients", "%s is not a CA", ca.Subject)
			}
		}
	}
	for i, v := range c.crls {
		r.revocations(v, c.CRLs[i], now)
	}
	return r.Sorted(), nil
}

// certificates reads those of a PEM file, and warns of each that is not valid for long.
func (r *reader) certificates(v value, file string, now time.Time) []*x509.Certificate {
	blocks, ok := r.blocks(v, file)
	if !ok {
		return nil
	}
	var list []*x509.Certificate
	for _, b := range blocks {
		if b.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			r.warn(v, "", "%s: %v", file, err)
			continue
		}
		list = append(list, cert)
		until := cert.NotAfter.UTC().Format(time.DateTime)
		switch {
		case now.After(cert.NotAfter):
			r.warn(v, "replace it", "%s: the certificate of %s ended at %s UTC", file, cert.Subject, until)
		case now.Before(cert.NotBefore):
			r.warn(v, "look at the clock", "%s: the certificate of %s begins at %s UTC", file, cert.Subject, cert.NotBefore.UTC().Format(time.DateTime))
		case now.Add(expiresSoon).After(cert.NotAfter):
			r.warn(v, "replace it before that", "%s: the certificate of %s ends at %s UTC", file, cert.Subject, until)
		}
	}
	if len(list) == 0 {
		r.warn(v, "", "%s has no certificate", file)
	}
	return list
}

// blocks reads a PEM file.
func (r *reader) blocks(v value, file string) ([]*pem.Block, bool) {
	data, ok := r.content(v, file)
	if !ok {
		return nil, false
	}
	var list []*pem.Block
	for b, rest := pem.Decode(data); b != nil; b, rest = pem.Decode(rest) {
		list = append(list, b)
	}
	return list, true
}

func (r *reader) content(v value, file string) ([]byte, bool) {
	data, _, err := regular.Read(file, maxPEM+1)
	switch {
	case err != nil:
		r.warn(v, "", "not checked: %v", err)
		return nil, false
	case len(data) > maxPEM:
		r.warn(v, "", "not checked: %s has more than %d bytes", file, maxPEM)
		return nil, false
	}
	return data, true
}

// lintNames warns of names of services that a certificate of the gateway's does not cover,
// where it is the only one.
func (r *reader) lintNames(c *Config, cert *x509.Certificate, v value) {
	if len(c.certificates) > 1 {
		return
	}
	for _, n := range c.names {
		if err := cert.VerifyHostname(n.name); err != nil {
			r.warn(n.at, "add the name to the certificate", "the gateway's certificate is not for %s, so clients refuse it", n.name)
		}
	}
}

// revocations warns of a revocation list that is out of date.
func (r *reader) revocations(v value, file string, now time.Time) {
	data, ok := r.content(v, file)
	if !ok {
		return
	}
	found := 0
	one := func(der []byte) {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			r.warn(v, "", "%s: %v", file, err)
			return
		}
		found++
		if !list.NextUpdate.IsZero() && now.After(list.NextUpdate) {
			r.warn(v, "fetch the new one", "%s: the revocation list was to be replaced by %s UTC", file, list.NextUpdate.UTC().Format(time.DateTime))
		}
	}
	isPEM := false
	for b, rest := pem.Decode(data); b != nil; b, rest = pem.Decode(rest) {
		isPEM = true
		if b.Type == "X509 CRL" {
			one(b.Bytes)
		}
	}
	if !isPEM {
		one(data)
	} else if found == 0 {
		r.warn(v, "", "%s has no revocation list", file)
	}
}
