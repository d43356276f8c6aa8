// Package keyfile owns the formats in which keys are kept: private keys as OpenSSH,
// PKCS#8 (RFC 5208) and OpenSSL write them, with or without a passphrase; public keys
// as a line of OpenSSH or in the form of RFC 4716, as Tectia writes them; and the
// hashes by which people and configurations name a key.
//
// It opens no file, asks nobody and remembers nothing. Tectia's own form of private
// keys ("SSH2 ENCRYPTED PRIVATE KEY") is not read: nothing published says how newer
// versions encrypt it.
package keyfile
