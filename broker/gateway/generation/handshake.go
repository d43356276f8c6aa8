package generation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/broker/gateway/policy"
	"sshbroker/broker/gateway/trust"
	"sshbroker/profiles/tlstun/wire"
)

// Outcomes of handshakes, for logs and metrics. Where the policy refuses, it is the word
// of its reason.
const (
	Done                = "done"
	Limit               = "limit" // which the caller finds
	handshakeTimeout    = "timeout"
	handshakeClosed     = "closed"
	handshakeNotTLS     = "not-tls"
	handshakeVersion    = "tls-version"
	handshakeALPN       = "no-protocol"
	handshakeService    = "unknown-service"
	handshakeNoCert     = "no-certificate"
	handshakeAuthority  = "unknown-authority"
	handshakeExpired    = "expired"
	handshakeEarly      = "not-yet-valid"
	handshakeUsage      = "wrong-usage"
	handshakeRevoked    = "revoked"
	handshakeUnknown    = "revocation-unknown"
	handshakeBadCert    = "bad-certificate"
	handshakeTheirAlert = "refused-by-client"
	handshakeProtocol   = "protocol"
)

// Outcomes returns every word for how a handshake can end, but those of the policy. For
// documents and tests.
func Outcomes() []string {
	return []string{Done, Limit, handshakeTimeout, handshakeClosed, handshakeNotTLS, handshakeVersion, handshakeALPN, handshakeService,
		handshakeNoCert, handshakeAuthority, handshakeExpired, handshakeEarly, handshakeUsage, handshakeRevoked, handshakeUnknown, handshakeBadCert,
		handshakeTheirAlert, handshakeProtocol}
}

// refusedHandshake is a decision of ours, in VerifyConnection or before.
type refusedHandshake struct {
	outcome string
	err     error
}

func (e *refusedHandshake) Error() string { return e.err.Error() }
func (e *refusedHandshake) Unwrap() error { return e.err }

// Negotiation is one handshake, by one generation, and what it finds out.
type Negotiation struct {
	Gen      *Generation
	Port     uint16          // of the listener
	Service  *policy.Service // that the client has chosen, nil for none
	Bound    bool            // by a port of its own: no other is served there
	Identity policy.Identity

	refused error // by us, before there was a certificate
}

// TLS is the TLS configuration of one handshake. It has no session tickets: an
// identity is proven anew on each connection.
func (n *Negotiation) TLS() *tls.Config {
	base := &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true}
	base.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		protocols, err := n.choose(hello)
		if err != nil {
			n.refused = err
			return &tls.Config{MinVersion: tls.VersionTLS13}, nil // without a certificate the alert is unrecognized_name
		}
		return &tls.Config{
			MinVersion:             tls.VersionTLS13,
			Certificates:           n.Gen.certs,
			NextProtos:             protocols,
			ClientAuth:             tls.RequireAndVerifyClientCert,
			ClientCAs:              n.Gen.Trust.Roots(),
			SessionTicketsDisabled: true,
			VerifyConnection:       n.verify,
			// Many a flow begins with much data, and small records cost more than they gain.
			DynamicRecordSizingDisabled: true,
		}, nil
	}
	return base
}

// choose finds the service by port or name, and the protocols to offer for it.
func (n *Negotiation) choose(hello *tls.ClientHelloInfo) ([]string, error) {
	n.Service, n.Bound = n.Gen.byPort[n.Port], true
	if n.Service == nil {
		n.Service, n.Bound = n.Gen.bySNI[strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))], false
	}
	switch {
	case slices.Contains(hello.SupportedProtos, wire.ALPN):
		return []string{wire.ALPN}, nil
	case n.Service != nil && !n.Service.Backend.HTTPConnect:
		return nil, nil // what is spoken is between client and target
	case n.Service == nil && len(n.Gen.Collections) == 0:
		return nil, &refusedHandshake{handshakeService, fmt.Errorf("no service has the name %q", hello.ServerName)}
	}
	return []string{"http/1.1"}, nil
}

// verify is the last word of a handshake: whose certificate it is, whether it is
// revoked, and whether that one may use anything here.
func (n *Negotiation) verify(state tls.ConnectionState) error {
	if err := n.Gen.Trust.Check(state.VerifiedChains, time.Now()); err != nil {
		return &refusedHandshake{trustWord(err), err}
	}
	id, err := policy.IdentityOf(state.PeerCertificates[0])
	if err != nil {
		return &refusedHandshake{policy.NoIdentity.String(), err}
	}
	n.Identity = id
	if verdict := n.Gen.Admits(n.Service, &id); !verdict.Allowed() {
		return &refusedHandshake{verdict.Reason.String(), errors.New(verdict.String())}
	}
	return nil
}

func trustWord(err error) string {
	switch {
	case errors.Is(err, trust.ErrRevoked):
		return handshakeRevoked
	case errors.Is(err, trust.ErrNoStatus):
		return handshakeUnknown
	case errors.Is(err, trust.ErrUsage):
		return handshakeUsage
	}
	return certificateWord(err)
}

// certificateWord names why a chain does not verify.
func certificateWord(err error) string {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) {
		switch {
		case invalid.Reason == x509.IncompatibleUsage:
			return handshakeUsage
		case invalid.Reason == x509.Expired && invalid.Cert != nil && time.Now().Before(invalid.Cert.NotBefore):
			return handshakeEarly
		case invalid.Reason == x509.Expired:
			return handshakeExpired
		}
		return handshakeBadCert
	}
	if errors.As(err, new(x509.UnknownAuthorityError)) {
		return handshakeAuthority
	}
	return handshakeBadCert
}

// Refused is err, how the handshake has ended, or what we have to say of it before.
func (n *Negotiation) Refused(err error) error {
	if n.refused != nil {
		return n.refused
	}
	return err
}

// Outcome is a word for how a handshake has ended.
func (n *Negotiation) Outcome(err error) string {
	var ours *refusedHandshake
	var chain *tls.CertificateVerificationError
	var header tls.RecordHeaderError
	var alert tls.AlertError
	switch {
	case err == nil:
		return Done
	case errors.As(n.refused, &ours), errors.As(err, &ours):
		return ours.outcome
	case errors.As(err, &chain):
		return certificateWord(chain.Err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return handshakeTimeout
	case errors.As(err, &header):
		return handshakeNotTLS
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, net.ErrClosed):
		return handshakeClosed
	case errors.As(err, &alert):
		return handshakeTheirAlert
	}
	// The library has no types for these; a test holds its words.
	for words, outcome := range map[string]string{
		"didn't provide a certificate":     handshakeNoCert,
		"unsupported application protocol": handshakeALPN,
		"unsupported versions":             handshakeVersion,
		"remote error":                     handshakeTheirAlert,
	} {
		if strings.Contains(err.Error(), words) {
			return outcome
		}
	}
	return handshakeProtocol
}
