package tlstun

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"

	"sshbroker/profiles"
	"sshbroker/profiles/tlstun/wire"
)

// alert is what a server may say to end a connection (RFC 8446 section 6), as crypto/tls
// words it, its class, and what it means for a person.
type alert struct {
	said  string
	class error
	means string
}

var alerts = []alert{
	{"bad certificate", profiles.ErrAuth, "revoked, or not admitted there"},
	{"unsupported certificate", profiles.ErrAuth, "of a kind that is not supported there"},
	{"revoked certificate", profiles.ErrAuth, "revoked"},
	{"expired certificate", profiles.ErrAuth, "expired, by the server's clock"},
	{"unknown certificate", profiles.ErrAuth, "not admitted there"},
	{"unknown certificate authority", profiles.ErrAuth, "of an authority that the server does not know"},
	{"access denied", profiles.ErrAuth, "not admitted there"},
	{"certificate required", profiles.ErrAuth, "missing: give the profile certificate and key"},
	{"protocol version not supported", profiles.ErrSetup, "the server does not speak TLS 1.3"},
	{"no application protocol", profiles.ErrSetup, ""},
	{"unrecognized name", profiles.ErrSetup, "the server has nothing under that name: see server-name"},
	{"handshake failure", profiles.ErrSetup, "nothing in common to agree on"},
}

// failure puts the end of a handshake into its class. ctx is that of the connect.
func failure(ctx context.Context, address string, p *profiles.Profile, err error) error {
	var untrusted *tls.CertificateVerificationError
	var garbled tls.RecordHeaderError
	dress := func(class error, format string, args ...any) error {
		return fmt.Errorf("connect to %s: %w: %s", address, class, fmt.Sprintf(format, args...))
	}
	switch {
	case errors.As(err, &untrusted):
		return dress(profiles.ErrHostKey, "%s", distrust(p, untrusted))
	case ctx.Err() != nil:
		return dress(profiles.ErrConnect, "%v", context.Cause(ctx))
	case errors.As(err, &garbled):
		if bytes.HasPrefix(garbled.RecordHeader[:], []byte("HTTP")) {
			return dress(profiles.ErrConnect, "the server does not speak TLS there, but HTTP")
		}
		return dress(profiles.ErrConnect, "the server does not speak TLS there")
	case strings.Contains(err.Error(), "unsupported protocol version"): // ours, of crypto/tls
		return dress(profiles.ErrSetup, "the server does not speak TLS 1.3")
	}
	if a := alertOf(err); a != nil {
		switch {
		case a.class == profiles.ErrAuth:
			return dress(a.class, "the server refuses our certificate: %s (alert %q)", a.means, a.said)
		case a.means != "":
			return dress(a.class, "%s (alert %q)", a.means, a.said)
		}
		return dress(a.class, "%s", noProtocol)
	}
	said := profiles.RemoteText(err.Error(), 300, false)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		said = "the connection was closed during the handshake"
	}
	return dress(profiles.ErrConnect, "%s", said)
}

// noProtocol is said where ALPN was not agreed.
const noProtocol = `the server does not speak ` + wire.ALPN + `: it is no ssh-gateway, or no service of it takes tunnels there; a proxy takes carrier="connect"`

// alertOf finds what the server has said to end the connection; nil: nothing we know.
func alertOf(err error) *alert {
	var op *net.OpError
	for ; errors.As(err, &op); err = op.Err {
		if op.Op != "remote error" {
			continue
		}
		said := strings.TrimPrefix(op.Err.Error(), "tls: ")
		for i := range alerts {
			if alerts[i].said == said {
				return &alerts[i]
			}
		}
		return nil
	}
	return nil
}

// distrust says what is wrong with the server's certificate and what to do.
func distrust(p *profiles.Profile, err *tls.CertificateVerificationError) string {
	shown := "the server's certificate"
	if len(err.UnverifiedCertificates) > 0 {
		shown += " (" + describe(err.UnverifiedCertificates[0]) + ")"
	}
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return shown + " comes from no authority that the profile trusts: see ca-file"
	case errors.As(err, &name):
		return shown + " is for another name: see server-name"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return shown + " has expired, or is not valid yet: is the clock right?"
	}
	return shown + " is not valid: " + profiles.RemoteText(err.Err.Error(), 300, false)
}
