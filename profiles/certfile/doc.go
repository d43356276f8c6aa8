// Package certfile owns the files of X.509 certificates and keys that an end of a TLS
// connection has: reading them, whether they fit each other, and until when they count.
//
// It does not decide whose certificates are trusted, nor when files are read again.
package certfile
