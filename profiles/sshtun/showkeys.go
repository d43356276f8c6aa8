package sshtun

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
	"sshbroker/profiles/creds"
	"sshbroker/profiles/proxy"
)

// probeTime bounds each of the connections that a probe makes.
const probeTime = 10 * time.Second

// errSeen ends a handshake that has shown the key.
var errSeen = errors.New("seen")

// Probe returns the keys that a server shows, one of each type, without logging in. It
// connects once for each, as a server shows one at a time; nobody has checked that they
// are the server's. Its errors are ErrConnect and ErrSetup.
func (c *Connector) Probe(ctx context.Context, host string, port uint16) ([]profiles.HostKeyInfo, error) {
	err := profiles.CheckHost(host)
	if err == nil && port == 0 {
		err = errors.New("no port")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", profiles.ErrSetup, err)
	}
	left := hostKeyAlgorithms(false)
	var list []profiles.HostKeyInfo
	for len(left) > 0 {
		key, err := c.show(ctx, &profiles.Profile{Host: host, Port: port}, left)
		switch {
		case err != nil && len(list) > 0 && ctx.Err() == nil:
			return list, nil // it has no more: some servers say so by hanging up
		case err != nil:
			return nil, err
		}
		list = append(list, profiles.HostKeyInfo{Type: key.Type(), Fingerprint: ssh.FingerprintSHA256(key), Public: base64.StdEncoding.EncodeToString(key.Marshal())})
		left = slices.DeleteFunc(left, func(name string) bool { return ofType(name, key.Type()) })
	}
	return list, nil
}

// Certificate returns the certificate that the server of p shows for its host key, nil where
// it has none, without logging in. Nobody has checked whose it is, nor the server. Its
// errors are ErrConnect and ErrSetup.
func (c *Connector) Certificate(ctx context.Context, p *profiles.Profile) (*profiles.CertificateInfo, error) {
	if err := profiles.CheckHost(p.Host); err != nil {
		return nil, fmt.Errorf("%w: %w", profiles.ErrSetup, err)
	}
	key, err := c.show(ctx, p, hostKeyAlgorithms(true))
	if err != nil { // some servers hang up where they have nothing in common with us
		_, err = c.show(ctx, p, hostKeyAlgorithms(false))
		return nil, err
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return nil, nil
	}
	info := creds.DescribeCertificate(cert)
	return &info, nil
}

// hostKeyAlgorithms are all that the library has, of certificates or of keys.
func hostKeyAlgorithms(certificates bool) []string {
	all := ssh.SupportedAlgorithms().HostKeys
	slices.SortStableFunc(all, func(a, b string) int { return hostKeyRank(a) - hostKeyRank(b) })
	return slices.DeleteFunc(all, func(name string) bool { return strings.Contains(name, "-cert-v01@") != certificates })
}

// ofType tells whether keys of a type sign by the algorithm, RFC 8332 section 3.
func ofType(algorithm, keyType string) bool {
	return algorithm == keyType || keyType == ssh.KeyAlgoRSA && (algorithm == ssh.KeyAlgoRSASHA256 || algorithm == ssh.KeyAlgoRSASHA512)
}

// show connects and has the server show one key of the algorithms.
func (c *Connector) show(ctx context.Context, p *profiles.Profile, algorithms []string) (ssh.PublicKey, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	address := net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port)))
	conn, err := proxy.Reach(ctx, c.Dial, nil, p, address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var seen ssh.PublicKey
	client, _, _, err := ssh.NewClientConn(conn, address, &ssh.ClientConfig{
		HostKeyAlgorithms: algorithms,
		HostKeyCallback:   func(_ string, _ net.Addr, key ssh.PublicKey) error { seen = key; return errSeen },
	})
	if client != nil {
		client.Close()
	}
	switch {
	case seen != nil:
		return seen, nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	return nil, fmt.Errorf("%s: %w: %w", address, profiles.ErrConnect, err)
}
