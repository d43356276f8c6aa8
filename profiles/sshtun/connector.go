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
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"sshbroker/profiles"
	"sshbroker/profiles/creds"
	"sshbroker/profiles/hostkeys"
	"sshbroker/profiles/proxy"
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
	conn, err := c.dial(ctx, p, via, address)
	if err != nil {
		return nil, dialFailure(ctx, address, err)
	}
	tune(conn, p)
	h := &handshake{connector: c, profile: p, address: address, trust: trust, ask: ask, wire: newWire(conn), observe: trust.Observe}
	return h.run(ctx, algos)
}

// dial reaches a server: through its gateway, which takes its proxy's place, else as its
// command or its ruleset says.
func (c *Connector) dial(ctx context.Context, p *profiles.Profile, via profiles.DialFunc, address string) (net.Conn, error) {
	switch {
	case via != nil:
		return via(ctx, "tcp", address)
	case p.ProxyCommand != "":
		return proxy.Command(ctx, p.ProxyCommand)
	}
	dial := c.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	rules, err := proxy.Parse(p.Proxy)
	if err == nil && p.Proxy == "" {
		rules, err = proxy.Environment{HTTPSProxy: p.HTTPSProxy, NoProxy: p.NoProxy}.Ruleset(address)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", profiles.ErrSetup, err)
	}
	return proxy.Dialer{Dial: dial}.DialContext(ctx, rules, network(p.AddressFamily), address)
}

func network(f profiles.AddressFamily) string {
	switch f {
	case profiles.OnlyIPv4:
		return "tcp4"
	case profiles.OnlyIPv6:
		return "tcp6"
	}
	return "tcp"
}

// dialFailure keeps the class that a gateway's or a proxy's failure has.
func dialFailure(ctx context.Context, address string, err error) error {
	for _, class := range []error{profiles.ErrConnect, profiles.ErrHostKey, profiles.ErrAuth, profiles.ErrSetup, profiles.ErrClosed} {
		if errors.Is(err, class) {
			return fmt.Errorf("dial %s: %w", address, err)
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("dial %s: %w: %w", address, profiles.ErrConnect, context.Cause(ctx))
	}
	return fmt.Errorf("dial %s: %w: %w", address, profiles.ErrConnect, err)
}

// goneAfter is how long the kernel tries to reach a server that acknowledges nothing, where
// the profile asks for no sign of life. By itself it would try for a quarter of an hour as
// soon as there is something to send (tcp_retries2, tcp(7)), keepalives or not.
const goneAfter = 2 * time.Minute

// unsentAt is how many bytes the kernel takes before it could send the ones it has
// (TCP_NOTSENT_LOWAT, tcp(7)). By itself it would take megabytes on a slow line, and what
// an interactive stream writes would wait behind all of them. What is on its way does not
// count, so that a long line is filled.
const unsentAt = 128 << 10

// tune sets up the socket, where there is one: small packets leave at once, little waits in
// the kernel before them, and a peer that is gone is noticed by the kernel as soon as by
// keepalives.
func tune(conn net.Conn, p *profiles.Profile) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	tcp.SetNoDelay(true)
	tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 4})
	gone := goneAfter
	if p.KeepaliveInterval > 0 {
		gone = p.KeepaliveInterval * time.Duration(max(p.KeepaliveMisses, 1)+1)
	}
	if raw, err := tcp.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			// A kernel without the one option has the keepalives above, without the other
			// it takes more.
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(gone.Milliseconds()))
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentAt)
		})
	}
}

// acknowledger returns a function that has the kernel acknowledge at once what came,
// which the kernel forgets again soon. sshd leaves Nagle's algorithm on for
// connections without a terminal, so that its second small packet in a row (data,
// then EOF) waits for the acknowledgement of the first, which the kernel would delay
// by 40 ms.
func acknowledger(c syscall.Conn) func() {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	set := func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) }
	return func() { _ = raw.Control(set) }
}

// handshake is the time from the dialled connection to the transport.
type handshake struct {
	connector *Connector
	profile   *profiles.Profile
	address   string
	trust     *hostkeys.Checker
	ask       profiles.Prompter
	wire      *wire

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
	stop := context.AfterFunc(ctx, func() { h.wire.abort(context.Cause(ctx)) })
	conn, chans, reqs, err := ssh.NewClientConn(h.wire, h.address, config)
	if !stop() && err == nil {
		conn.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		h.wire.Close()
		<-h.wire.ended
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
	case proof.Started() && h.wire.failure() == nil:
		said := ""
		if !creds.IsExhausted(err) {
			said = "; " + profiles.RemoteText(err.Error(), 300, false)
		}
		h.observe.Tell(profiles.Event{Kind: profiles.AuthRefused, Profile: h.profile, Err: errors.New(proof.Trail() + said)})
		return fmt.Errorf("%w: %s@%s: %s%s", profiles.ErrAuth, h.profile.User, h.address, proof.Trail(), said)
	}
	if cause := h.wire.failure(); cause != nil {
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
