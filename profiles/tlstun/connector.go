package tlstun

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"sshbroker/profiles"
	"sshbroker/profiles/proxy"
	"sshbroker/profiles/socket"
	"sshbroker/profiles/tlstun/wire"
)

// Connector makes transports over TLS. Safe for concurrent use.
type Connector struct {
	// Log is required.
	Log *slog.Logger
	// Observe is told of every step on the way to a server; nil: nobody is.
	Observe profiles.Observer
	// Dial reaches servers that have no gateway; nil uses a plain net.Dialer. What it
	// returns belongs to the transport.
	Dial profiles.DialFunc
	// Look is how often the files of a credential are looked at, and its end; 0: each
	// five seconds.
	Look time.Duration
	// Linger is how long a proxy has to be silent before our end of a flow is passed on to
	// it; 0: ten seconds.
	Linger time.Duration

	credentials credentials
	sessions    atomic.Uint64 // numbers of connections
}

var _ profiles.Connector = (*Connector)(nil)

// Connect reaches p's server, checks its certificate and shows it ours. Its errors are
// ErrConnect, ErrHostKey, ErrAuth and ErrSetup. Nobody is asked anything.
func (c *Connector) Connect(ctx context.Context, p *profiles.Profile, via profiles.DialFunc, _ profiles.Prompter) (profiles.Transport, error) {
	if err := usable(p); err != nil {
		return nil, fmt.Errorf("%w: %w", profiles.ErrSetup, err)
	}
	if p.TLS.Proxy {
		return c.connectProxy(ctx, p, via)
	}
	conn, cred, err := c.reach(ctx, p, via, wire.ALPN)
	if err != nil {
		return nil, err
	}
	t, err := newTransport(ctx, conn, cred, p, c)
	if err != nil {
		return nil, err
	}
	return t, nil
}

func usable(p *profiles.Profile) error {
	switch {
	case p.Protocol != profiles.TLS:
		return errors.New("the profile is not one of protocol tls")
	case p.Port == 0:
		return errors.New("no port")
	case p.TLS.Certificate == "" && !p.TLS.Proxy:
		return errors.New("a gateway wants to know who we are: give the profile certificate and key")
	}
	return profiles.CheckHost(p.Host)
}

// connection is one of TLS whose handshake is over, on our side at least: a server that
// refuses our certificate says so afterwards (RFC 8446 section 4.4.2.4 and appendix E.1).
type connection struct {
	*tls.Conn
	socket  *socket.Conn
	state   tls.ConnectionState
	address string
	observe profiles.Observer
}

// reach connects to p's server and shakes hands, for the protocol of ALPN.
func (c *Connector) reach(ctx context.Context, p *profiles.Profile, via profiles.DialFunc, protocol string) (*connection, *credential, error) {
	cred, err := c.credentials.get(p)
	if err != nil {
		return nil, nil, err
	}
	// Of class ErrSetup, as the server has not refused it: the next connect may have
	// another one, and need not wait as long.
	if err := cred.Current(time.Now()); err != nil {
		return nil, nil, fmt.Errorf("%w: %s: %w", profiles.ErrSetup, p.TLS.Certificate, err)
	}
	if p.ConnectTimeout > 0 {
		var cancel context.CancelFunc
		late := fmt.Errorf("no connection within %s: %w", p.ConnectTimeout, context.DeadlineExceeded)
		ctx, cancel = context.WithTimeoutCause(ctx, p.ConnectTimeout, late)
		defer cancel()
	}
	address := net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port)))
	raw, err := proxy.Reach(ctx, c.Dial, via, p, address)
	if err != nil {
		return nil, nil, err
	}
	socket.Tune(raw, p.KeepaliveInterval, p.KeepaliveMisses)
	conn := &connection{socket: wire.NewSocket(raw), address: address, observe: c.numbered()}
	conn.Conn = tls.Client(conn.socket, cred.config(p, protocol))
	if err := conn.shakeHands(ctx, p, protocol); err != nil {
		conn.socket.Abort(err)
		<-conn.socket.Ended()
		return nil, nil, err
	}
	return conn, cred, nil
}

func (conn *connection) shakeHands(ctx context.Context, p *profiles.Profile, protocol string) error {
	err := conn.HandshakeContext(ctx)
	if err != nil {
		err = failure(ctx, conn.address, p, err)
		conn.tellJudged("refused", err)
		return err
	}
	conn.state = conn.ConnectionState()
	conn.tellJudged("trusted", nil)
	conn.observe.Tell(profiles.Event{Kind: profiles.KeyExchanged, Profile: p, Algorithms: conn.state.CurveID.String()})
	if conn.state.NegotiatedProtocol != protocol && protocol == wire.ALPN {
		return fmt.Errorf("connect to %s: %w: %s", conn.address, profiles.ErrSetup, noProtocol)
	}
	return nil
}

// tellJudged tells what became of the server's certificate, where it came to that.
func (conn *connection) tellJudged(status string, err error) {
	if err != nil && !errors.Is(err, profiles.ErrHostKey) {
		return
	}
	e := profiles.Event{Kind: profiles.HostKeyJudged, Status: status, Err: err}
	if len(conn.state.PeerCertificates) > 0 {
		leaf := conn.state.PeerCertificates[0]
		e.KeyType, e.KeyHash = leaf.PublicKeyAlgorithm.String(), fingerprint(leaf)
	}
	conn.observe.Tell(e)
}

// numbered tells the connector's observer, with the number of the connection.
func (c *Connector) numbered() profiles.Observer {
	if c.Observe == nil {
		return nil
	}
	session := c.sessions.Add(1)
	return func(e profiles.Event) {
		e.Session = session
		c.Observe(e)
	}
}

// fingerprint is the SHA256 of a certificate, as OpenSSH writes those of keys.
func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// describe names a certificate in a line.
func describe(c *x509.Certificate) string {
	return profiles.RemoteText(fmt.Sprintf("%s, %s", c.Subject, fingerprint(c)), 300, false)
}
