package keyfile

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/youmark/pkcs8"
	"golang.org/x/crypto/ssh"
)

// Private is a private key as a file has it.
type Private struct {
	// Public is the public half; nil where the format hides it until the passphrase is
	// known.
	Public ssh.PublicKey
	// Locked: Open needs a passphrase.
	Locked bool
	// Elsewhere: the private half is in a security key, which only an agent can ask.
	Elsewhere bool

	text  []byte
	ready ssh.Signer
}

var (
	// ErrPassphrase: the passphrase does not fit.
	ErrPassphrase = errors.New("wrong passphrase")
	// ErrForm: a private key in a form that is not read. Its text says how to convert it.
	ErrForm = errors.New("form of private key that is not read")

	errElsewhere = errors.New("it is in a security key: add it to the agent with ssh-add")
)

// foreign are forms of private keys that are known and not read, by how they begin.
var foreign = []struct{ begin, cure string }{
	{"---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----",
		"Tectia's own; take its passphrase off with ssh-keygen-g3 -P, convert it with ssh-keygen -i -f FILE > NEW, and give NEW a passphrase with ssh-keygen -p -f NEW"},
	{"PuTTY-User-Key-File-", "PuTTY's own; convert it with puttygen FILE -O private-openssh -o NEW"},
	{"SSH PRIVATE KEY FILE FORMAT 1.1", "of SSH version 1, which no server speaks any more"},
}

// IsPrivate tells by its beginning whether text is a private key in any form that is
// known, read or not. A few hundred bytes are enough.
func IsPrivate(text []byte) bool {
	text = bytes.TrimSpace(text)
	for _, f := range foreign {
		if bytes.HasPrefix(text, []byte(f.begin)) {
			return true
		}
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	return bytes.HasPrefix(line, []byte("-----BEGIN ")) && bytes.HasSuffix(bytes.TrimSpace(line), []byte("PRIVATE KEY-----"))
}

// ParsePrivate reads a private key without opening it.
func ParsePrivate(text []byte) (*Private, error) {
	for _, f := range foreign {
		if bytes.HasPrefix(bytes.TrimSpace(text), []byte(f.begin)) {
			return nil, fmt.Errorf("%w: %s", ErrForm, f.cure)
		}
	}
	p := &Private{text: text}
	block, _ := pem.Decode(text)
	if block != nil && block.Type == "ENCRYPTED PRIVATE KEY" {
		p.Locked = true
		return p, nil
	}
	raw, err := ssh.ParseRawPrivateKey(text)
	var missing *ssh.PassphraseMissingError
	switch {
	case errors.As(err, &missing):
		p.Locked, p.Public = true, missing.PublicKey
	case err != nil:
		if block == nil || block.Type != "OPENSSH PRIVATE KEY" {
			return nil, fmt.Errorf("not a private key: %w", err)
		}
		p.Public = publicInside(block.Bytes)
		p.Elsewhere = p.Public != nil
		if !p.Elsewhere {
			return nil, fmt.Errorf("not a private key: %w", err)
		}
	default:
		if p.ready, err = ssh.NewSignerFromKey(raw); err != nil {
			return nil, fmt.Errorf("not a private key for SSH: %w", err)
		}
		p.Public = p.ready.PublicKey()
	}
	if p.Locked && p.Public == nil && block.Type == "OPENSSH PRIVATE KEY" {
		p.Public = publicInside(block.Bytes)
	}
	if p.Public != nil && isSecurityKey(p.Public) {
		p.Locked, p.Elsewhere = false, true
	}
	return p, nil
}

// Open returns what signs. Its error is ErrPassphrase where the passphrase does not
// fit; without Locked none is looked at.
func (p *Private) Open(passphrase string) (ssh.Signer, error) {
	switch {
	case p.Elsewhere:
		return nil, errElsewhere
	case !p.Locked:
		return p.ready, nil
	}
	raw, err := p.decrypt([]byte(passphrase))
	if err != nil {
		return nil, err
	}
	signer, err := ssh.NewSignerFromKey(raw)
	switch {
	case err != nil:
		return nil, fmt.Errorf("not a private key for SSH: %w", err)
	case p.Public != nil && !bytes.Equal(signer.PublicKey().Marshal(), p.Public.Marshal()):
		return nil, errors.New("the public half in the file is of another key")
	}
	return signer, nil
}

func (p *Private) decrypt(passphrase []byte) (any, error) {
	if block, _ := pem.Decode(p.text); block.Type == "ENCRYPTED PRIVATE KEY" {
		// The library does not tell a wrong passphrase from what it cannot read.
		raw, err := pkcs8.ParsePKCS8PrivateKey(block.Bytes, passphrase)
		if err != nil {
			return nil, fmt.Errorf("%w (%w)", ErrPassphrase, err)
		}
		return raw, nil
	}
	raw, err := ssh.ParseRawPrivateKeyWithPassphrase(p.text, passphrase)
	if errors.Is(err, x509.IncorrectPasswordError) {
		return nil, ErrPassphrase
	}
	return raw, err
}

func isSecurityKey(key ssh.PublicKey) bool {
	return key.Type() == ssh.KeyAlgoSKED25519 || key.Type() == ssh.KeyAlgoSKECDSA256
}

// publicInside reads the public half that stands in clear in a file of OpenSSH's
// format (PROTOCOL.key); nil where there is none.
func publicInside(data []byte) ssh.PublicKey {
	rest, ok := bytes.CutPrefix(data, []byte("openssh-key-v1\x00"))
	var head struct {
		Cipher, KDF, KDFOptions string
		Keys                    uint32
		Public                  []byte
		Rest                    []byte `ssh:"rest"`
	}
	if !ok || ssh.Unmarshal(rest, &head) != nil {
		return nil
	}
	key, err := ssh.ParsePublicKey(head.Public)
	if err != nil {
		return nil
	}
	return key
}
