package keyfile

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"

	"golang.org/x/crypto/ssh"
)

// ID is a short name for a key that stays the same: the first 16 hexadecimal digits
// of the SHA-256 of its public half.
func ID(key ssh.PublicKey) string {
	sum := sha256.Sum256(Plain(key).Marshal())
	return hex.EncodeToString(sum[:8])
}

// Plain returns the key that a certificate certifies, or key itself.
func Plain(key ssh.PublicKey) ssh.PublicKey {
	if cert, ok := key.(*ssh.Certificate); ok {
		return cert.Key
	}
	return key
}

// CheckHash tells why hash names no key: it is none of the forms that Matches knows.
func CheckHash(hash string) error {
	name := bare(hash)
	if rest, ok := strings.CutPrefix(name, "SHA256:"); ok {
		if len(rest) == 43 && strings.Trim(rest, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") == "" {
			return nil
		}
		return errors.New("SHA256: is followed by 43 characters of base64")
	}
	if _, err := hex.DecodeString(name); err == nil && (len(name) == 16 || len(name) == 40 || len(name) == 64) {
		return nil
	}
	return errors.New("a key's hash is SHA256:..., as ssh-keygen -l prints it, or its 40 or 64 hexadecimal digits, or the 16 of its id")
}

// Matches tells whether hash names key: its SHA256 fingerprint, the hexadecimal
// SHA-1 or SHA-256 of its public half, or its ID. A leading # is no part of it.
func Matches(key ssh.PublicKey, hash string) bool {
	key, hash = Plain(key), bare(hash)
	if strings.HasPrefix(hash, "SHA256:") {
		return ssh.FingerprintSHA256(key) == hash
	}
	hash = strings.ToLower(hash)
	switch len(hash) {
	case 16:
		return ID(key) == hash
	case 40:
		sum := sha1.Sum(key.Marshal())
		return hex.EncodeToString(sum[:]) == hash
	case 64:
		sum := sha256.Sum256(key.Marshal())
		return hex.EncodeToString(sum[:]) == hash
	}
	return false
}

func bare(hash string) string {
	hash = strings.TrimPrefix(strings.TrimSpace(hash), "#")
	if strings.HasPrefix(hash, "SHA256:") {
		return hash
	}
	return strings.NewReplacer(":", "", " ", "").Replace(hash)
}
