package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/youmark/pkcs8"
)

// KeyTypes are those that NewKey makes, the usual one first.
var KeyTypes = []string{"p256", "ed25519"}

// NewKey makes a private key of a type.
func NewKey(kind string) (crypto.Signer, error) {
	switch kind {
	case "p256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ed25519":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}
	return nil, fmt.Errorf("key type %q: it is p256 or ed25519", kind)
}

// Types of PEM blocks.
const (
	blockCertificate = "CERTIFICATE"
	blockKey         = "PRIVATE KEY"
	blockLockedKey   = "ENCRYPTED PRIVATE KEY"
	blockRequest     = "CERTIFICATE REQUEST"
	blockOldRequest  = "NEW CERTIFICATE REQUEST"
	blockCRL         = "X509 CRL"
)

// CertificatePEM is a certificate as files have it.
func CertificatePEM(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: blockCertificate, Bytes: cert.Raw})
}

// KeyPEM is a private key as files have it, PKCS #8 without a passphrase.
func KeyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: blockKey, Bytes: der}), nil
}

// lockedKeyPEM is a private key under a passphrase, as openssl pkey reads it (RFC 8018,
// PBES2). The number of iterations is what NIST and OWASP name for it.
func lockedKeyPEM(key crypto.Signer, passphrase []byte) ([]byte, error) {
	der, err := pkcs8.MarshalPrivateKey(key, passphrase, &pkcs8.Opts{Cipher: pkcs8.AES256CBC,
		KDFOpts: pkcs8.PBKDF2Opts{SaltSize: 16, IterationCount: 600_000, HMACHash: crypto.SHA256}})
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: blockLockedKey, Bytes: der}), nil
}

// ErrPassphrase says that the passphrase is not that of the key.
var ErrPassphrase = errors.New("the passphrase is wrong")

// readKey reads a private key. It asks for a passphrase only if there is one.
func readKey(text []byte, passphrase func() ([]byte, error)) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("it has no key in PEM")
	}
	var key any
	var err error
	switch block.Type {
	case blockKey:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY": // what openssl ecparam writes
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case blockLockedKey:
		var secret []byte
		if secret, err = passphrase(); err != nil {
			return nil, err
		}
		if key, err = pkcs8.ParsePKCS8PrivateKey(block.Bytes, secret); err != nil {
			err = ErrPassphrase // the library's words are about padding
		}
	default:
		err = fmt.Errorf("it begins with %q, not with a key", block.Type)
	}
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T cannot sign", key)
	}
	return signer, checkKey(signer.Public())
}

// ReadCertificate reads the first certificate of a file's text.
func ReadCertificate(text []byte) (*x509.Certificate, error) {
	block, err := find(text, "certificate", blockCertificate)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(block)
}

// Request is what is taken from a certificate signing request.
type Request struct {
	Key   crypto.PublicKey
	Names []string // that it asks for, of which none is taken
}

// ReadRequest reads a signing request (PKCS #10) in PEM. It is an error unless who has
// made it has the private key.
func ReadRequest(text []byte) (Request, error) {
	block, err := find(text, "signing request", blockRequest, blockOldRequest)
	if err != nil {
		return Request{}, err
	}
	csr, err := x509.ParseCertificateRequest(block)
	if err != nil {
		return Request{}, err
	}
	if err := csr.CheckSignature(); err != nil {
		return Request{}, fmt.Errorf("who made it has not shown to have its key: %w", err)
	}
	r := Request{Key: csr.PublicKey}
	if s := csr.Subject.String(); s != "" {
		r.Names = append(r.Names, s)
	}
	r.Names = append(r.Names, csr.EmailAddresses...)
	r.Names = append(r.Names, csr.DNSNames...)
	for _, u := range csr.URIs {
		r.Names = append(r.Names, u.String())
	}
	for _, a := range csr.IPAddresses {
		r.Names = append(r.Names, a.String())
	}
	return r, checkKey(r.Key)
}

// find returns the first PEM block of one of the types.
func find(text []byte, what string, types ...string) ([]byte, error) {
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		for _, t := range types {
			if block.Type == t {
				return block.Bytes, nil
			}
		}
	}
	if bytes.HasPrefix(text, []byte{0x30}) {
		return nil, fmt.Errorf("it has no %s in PEM; openssl x509 or req -inform DER makes it one", what)
	}
	return nil, fmt.Errorf("it has no %s in PEM", what)
}
