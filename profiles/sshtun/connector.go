package sshtun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"strconv"
	"sync/atomic"
	"syscall"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
	"sshbroker/profiles/creds"
	"sshbroker/profiles/hostkeys"
	"sshbroker/profiles/proxy"
	"sshbroker/profiles/socket"
)

// Connector makes transports over SSH. Safe for concurrent use.
type Connector struct {
	// Log is required.
	Log *slog.Logger
	// Observe is told of every step on the way to a server; nil: nobody is.
	Observe profiles.Observer
	// Dial reaches servers that have no gateway; nil uses a plain net.Dialer. What it
	// returns belongs to the transport.
	Dial profiles.DialFunc
	// Keys remembers passphrases and has the keys that people added; nil remembers
	// nothing.
	Keys *creds.Keyring
	// Version is told to the server after "SSH-2.0-", RFC 4253 section 4.2; it has no
	// space or hyphen. Empty: "sshbroker".
	Version string

	sessions atomic.Uint64 // numbers of connections
	logins   logins
}

var _ profiles.Connector = (*Connector)(nil)

// Connect reaches p's server, checks its host key and authenticates. Its errors are
// ErrConnect, ErrHostKey, ErrAuth and ErrSetup.
func (c *Connector) Connect(ctx context.Context, p *profiles.Profile, via profiles.DialFunc, ask profiles.Prompter) (profiles.Transport, error) {
	if p.User != "" {
		return c.connect(ctx, p, via, ask)
	}
	named, err := c.logins.ask(ctx, p, ask)
	if err != nil {
		return nil, err
	}
	t, err := c.connect(ctx, named, via, ask)
	if err == nil {
		c.logins.keep(p.Key(), named.User)
	}
	return t, err
}

func (c *Connector) connect(ctx context.Context, p *profiles.Profile, via profiles.DialFunc, ask profiles.Prompter) (profiles.Transport, error) {
	if err := errors.Join(profiles.CheckHost(p.Host), profiles.CheckUser(p.User)); err != nil {
		return nil, fmt.Errorf("%w: %w", profiles.ErrSetup, err)
	}
	if p.Port == 0 {
		return nil, fmt.Errorf("%w: no port", profiles.ErrSetup)
	}
	if p.ControlPath != "" {
		if t := c.reuse(ctx, p); t != nil {
			return t, nil
		}
	}
	algos, err := choose(p, c.Log)
	if err != nil {
		return nil, err
	}
	trust, err := hostkeys.New(p, c.Log)
	if err != nil {
		return nil, err
	}
	session := c.sessions.Add(1)
	trust.Observe = c.numbered(session)
	if algos.hostKeys = trust.Algorithms(algos.hostKeys); len(algos.hostKeys) == 0 {
		return nil, trust.Unprovable()
	}
	ctx, patience := newPatience(ctx, p.ConnectTimeout)
	defer patience.end()
	if ask != nil {
		ask = patientPrompter{ask, patience}
	}

	address := net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port)))
	conn, err := proxy.Reach(ctx, c.Dial, via, p, address)
	if err != nil {
		return nil, err
	}
	socket.Tune(conn, p.KeepaliveInterval, p.KeepaliveMisses)
	h := &handshake{connector: c, profile: p, address: address, trust: trust, ask: ask, wire: socket.New(conn, unfinished), observe: trust.Observe}
	return h.run(ctx, algos)
}

// libraryBuffer is what the library gathers before it calls Write: the first piece of a
// larger packet has this size, and the rest follows at once.
const libraryBuffer = 4 << 10

func unfinished(n int) bool { return n == libraryBuffer }

// handshake is the time from the dialled connection to the transport.
type handshake struct {
	connector *Connector
	profile   *profiles.Profile
	address   string
	trust     *hostkeys.Checker
	ask       profiles.Prompter
	wire      *socket.Conn

	observe  profiles.Observer
	distrust error  // the verdict on the host key
	hostKey  string // once trusted
	secured  bool   // the first key exchange is done
}

func (h *handshake) run(ctx context.Context, algos algorithms) (profiles.Transport, error) {
	proof := creds.NewSession(ctx, h.profile, h.ask, h.connector.Log)
	defer proof.Close()
	proof.Observe = h.observe
	proof.Ring = h.connector.Keys
	version := h.connector.Version
	if version == "" {
		version = "sshbroker"
	}
	config := &ssh.ClientConfig{
		Config: ssh.Config{
			KeyExchanges:   algos.kex,
			Ciphers:        algos.ciphers,
			MACs:           algos.macs,
			RekeyThreshold: math.MaxInt64, // never by us; see the package's comment
		},
		User:              h.profile.User,
		ClientVersion:     "SSH-2.0-" + version,
		HostKeyAlgorithms: algos.hostKeys,
		HostKeyCallback: func(_ string, remote net.Addr, key ssh.PublicKey) error {
			err := h.judge(ctx, remote, key)
			if err == nil {
				proof.Server(key)
			}
			return err
		},
		BannerCallback: func(text string) error {
			h.connector.Log.Info("banner of the server", "profile", h.profile.Label(), "text", profiles.RemoteText(text, 2000, true))
			return nil
		},
		AuthCallback: func(now *ssh.ClientAuthContext) (ssh.AuthMethod, error) {
			h.exchanged(now.Metadata.SessionID(), now.Algorithms)
			return proof.Next(now)
		},
	}
	// The end of the context ends the connection under the handshake, which ends it.
	stop := context.AfterFunc(ctx, func() { h.wire.Abort(context.Cause(ctx)) })
	conn, chans, reqs, err := ssh.NewClientConn(h.wire, h.address, config)
	if !stop() && err == nil {
		conn.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		h.wire.Close()
		<-h.wire.Ended()
		return nil, h.failure(ctx, err, proof)
	}
	if c, ok := conn.(ssh.AlgorithmsConnMetadata); ok { // a server that wants no proof at all
		h.exchanged(conn.SessionID(), c.Algorithms())
	}
	h.observe.Tell(profiles.Event{Kind: profiles.Authenticated, Profile: h.profile, Method: proof.Accepted()})
	t := newTransport(conn, chans, reqs, h.wire, h.hostKey, h.profile)
	t.attended = proof.Attended()
	return t, nil
}

// judge checks the host key of the first key exchange and of every later one. The
// key may not change within a connection, RFC 4253 section 9.
func (h *handshake) judge(ctx context.Context, remote net.Addr, key ssh.PublicKey) error {
	shown := hostkeys.Describe(key)
	if h.hostKey != "" {
		if shown != h.hostKey {
			return fmt.Errorf("%w: the server shows another key when re-keying: %s, before %s", profiles.ErrHostKey, shown, h.hostKey)
		}
		return nil
	}
	h.distrust = h.trust.Check(ctx, remote, key, h.ask)
	judged := profiles.Event{Kind: profiles.HostKeyJudged, Profile: h.profile, Status: "trusted",
		KeyType: key.Type(), KeyHash: ssh.FingerprintSHA256(key), Err: h.distrust}
	if h.distrust != nil {
		judged.Status = "refused"
		h.observe.Tell(judged)
		return h.distrust
	}
	h.observe.Tell(judged)
	h.hostKey = shown
	return nil
}

// failure puts the end of a handshake into its class.
func (h *handshake) failure(ctx context.Context, err error, proof *creds.Session) error {
	var noCommon *ssh.AlgorithmNegotiationError
	switch {
	case h.distrust != nil:
		return h.distrust
	case ctx.Err() != nil:
		return fmt.Errorf("connect to %s: %w: %w", h.address, profiles.ErrConnect, context.Cause(ctx))
	case errors.As(err, &noCommon):
		h.observe.Tell(profiles.Event{Kind: profiles.AlgorithmsFailed, Profile: h.profile, Algorithms: noCommon.What,
			Ours: noCommon.SupportedAlgorithms, Theirs: noCommon.RequestedAlgorithms})
		return fmt.Errorf("connect to %s: %w: %w", h.address, profiles.ErrSetup, noCommon)
	case proof.Lack() != nil:
		return fmt.Errorf("%w: %s@%s: %w", profiles.ErrSetup, h.profile.User, h.address, proof.Lack())
	case proof.Started() && h.wire.Failure() == nil:
		said := ""
		if !creds.IsExhausted(err) {
			said = "; " + profiles.RemoteText(err.Error(), 300, false)
		}
		h.observe.Tell(profiles.Event{Kind: profiles.AuthRefused, Profile: h.profile, Err: errors.New(proof.Trail() + said)})
		return fmt.Errorf("%w: %s@%s: %s%s", profiles.ErrAuth, h.profile.User, h.address, proof.Trail(), said)
	}
	if cause := h.wire.Failure(); cause != nil {
		err = cause
	}
	said := profiles.RemoteText(err.Error(), 300, false)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		said = "the connection was closed during the handshake"
	case h.hostKey == "":
		said += " (no SSH server, or one that does not want us)"
	}
	if !h.secured {
		h.observe.Tell(profiles.Event{Kind: profiles.KeyExchangeFailed, Profile: h.profile, Err: errors.New(said)})
	}
	return fmt.Errorf("connect to %s: %w: %s", h.address, profiles.ErrConnect, said)
}
