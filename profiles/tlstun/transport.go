package tlstun

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"sshbroker/profiles"
	"sshbroker/profiles/tlstun/wire"
)

// maxOpens is how many streams may wait for the gateway's answer. It is below what yamux
// lets through, so that a stream can be given up while it waits.
const maxOpens = 512

// transport is one connection to a gateway of ours.
type transport struct {
	*wire.Session
	conn        *connection
	profile     *profiles.Profile
	credential  *credential
	openTimeout time.Duration
	opens       chan struct{}

	retireOnce sync.Once
	retired    chan struct{}
}

// Services is a transport that can tell what the gateway offers.
type Services interface {
	// Services asks which services the gateway offers to our certificate. Their texts are
	// the gateway's: make them fit for a terminal before they are shown.
	Services(ctx context.Context) ([]wire.Service, error)
}

var (
	_ Services           = (*transport)(nil)
	_ profiles.Transport = (*transport)(nil)
	_ profiles.Describer = (*transport)(nil)
	_ profiles.Prober    = (*transport)(nil)
	_ profiles.Retirer   = (*transport)(nil)
	_ profiles.Carrying  = (*transport)(nil)
)

// newTransport makes sure that the gateway takes us and begins the session. It owns conn.
func newTransport(ctx context.Context, conn *connection, cred *credential, p *profiles.Profile, c *Connector) (*transport, error) {
	session, err := wire.Client(conn.Conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to %s: %w: %w", conn.address, profiles.ErrSetup, err)
	}
	if err := admitted(ctx, session); err != nil {
		session.Lose(err)
		session.Close()
		err = failure(ctx, conn.address, p, err)
		if errors.Is(err, profiles.ErrAuth) {
			conn.observe.Tell(profiles.Event{Kind: profiles.AuthRefused, Profile: p, Err: err})
		}
		return nil, err
	}
	conn.observe.Tell(profiles.Event{Kind: profiles.Authenticated, Profile: p, Method: "certificate " + describe(cred.Certificate.Leaf)})
	t := &transport{
		Session: session, conn: conn, profile: p, credential: cred, openTimeout: p.OpenTimeout,
		opens: make(chan struct{}, maxOpens), retired: make(chan struct{}),
	}
	go t.refuseStreams()
	go c.watch(t)
	if p.KeepaliveInterval > 0 {
		session.KeepAlive(p.KeepaliveInterval, max(p.KeepaliveMisses, 1))
	}
	return t, nil
}

// admitted waits for the first sign that the gateway has taken our certificate.
func admitted(ctx context.Context, session *wire.Session) error {
	answered := make(chan struct{})
	go func() {
		session.Ask()
		close(answered)
	}()
	select {
	case <-answered:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return session.Err()
}

// refuseStreams ends a session whose gateway begins streams: it has no reason to.
func (t *transport) refuseStreams() {
	if _, err := t.Accept(); err == nil {
		t.Lose(errors.New("the gateway began a stream"))
	}
}

// watch retires a transport whose credential has changed, and ends it with its
// certificate: its gateway would, and what looks open must be.
func (c *Connector) watch(t *transport) {
	interval := c.Look
	if interval == 0 {
		interval = 5 * time.Second
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var told string
	for {
		select {
		case <-t.Done():
			return
		case now := <-tick.C:
			// By the clock on the wall, which a sleep does not stop.
			if err := t.credential.Current(now); err != nil {
				t.Lose(err)
				return
			}
		}
		switch cred, err := c.credentials.get(t.profile); {
		case err != nil && err.Error() != told: // half of a change; what we have counts on
			told = err.Error()
			c.Log.Warn("certificate, key or authorities cannot be read anew", "profile", t.profile.Label(), "error", err)
		case err == nil && cred != t.credential:
			t.retire()
		}
	}
}

// retire has new streams go over another connection.
func (t *transport) retire() { t.retireOnce.Do(func() { close(t.retired) }) }

// Retired is profiles.Retirer's.
func (t *transport) Retired() <-chan struct{} { return t.retired }

// Carried is profiles.Carrying's.
func (t *transport) Carried() uint64 { return t.Sent() + t.Received() }

// Describe is profiles.Describer's.
func (t *transport) Describe() profiles.Description {
	d := t.conn.describe(t.credential)
	d.Sent, d.Received = t.Sent(), t.Received()
	return d
}

func (conn *connection) describe(cred *credential) profiles.Description {
	d := profiles.Description{
		Local:         conn.LocalAddr().String(),
		Remote:        conn.RemoteAddr().String(),
		ServerVersion: tls.VersionName(conn.state.Version),
		KeyExchange:   conn.state.CurveID.String(),
		Cipher:        tls.CipherSuiteName(conn.state.CipherSuite),
		Expires:       cred.Expires(),
	}
	if p := conn.state.NegotiatedProtocol; p != "" {
		d.ServerVersion += " " + p
	}
	if len(conn.state.PeerCertificates) > 0 {
		d.HostKey = describe(conn.state.PeerCertificates[0])
	}
	if cred.Certificate != nil {
		d.User = cred.Certificate.Leaf.Subject.String()
	}
	return d
}

// Open asks the gateway for a flow to dst. Where ctx or the profile's OpenTimeout ends
// first, the stream is reset.
func (t *transport) Open(ctx context.Context, dst profiles.Destination) (profiles.Stream, error) {
	s, err := t.open(ctx, wire.Request{
		Kind: wire.KindFlow, Host: dst.Host, Port: dst.Port, Service: cmp.Or(dst.Service, t.profile.TLS.Service), Flow: dst.Flow, Program: dst.Program,
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dst, err)
	}
	local := t.conn.LocalAddr()
	if dst.Origin.IsValid() {
		local = net.TCPAddrFromAddrPort(dst.Origin)
	}
	return t.NewStream(s).Between(local, dst.Addr()), nil
}

// Services is that of the interface.
func (t *transport) Services(ctx context.Context) ([]wire.Service, error) {
	s, err := t.open(ctx, wire.Request{Kind: wire.KindServices})
	if err != nil {
		return nil, fmt.Errorf("services: %w", err)
	}
	defer t.NewStream(s).Close()
	defer context.AfterFunc(ctx, func() { s.SetDeadline(time.Unix(1, 0)) })()
	list, err := wire.ReadServices(s)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return list, err
}

// answered is what became of a request.
type answered struct {
	stream *yamux.Stream
	err    error
}

// open makes a request and waits for its answer.
func (t *transport) open(ctx context.Context, r wire.Request) (*yamux.Stream, error) {
	if t.openTimeout > 0 {
		var cancel context.CancelFunc
		late := fmt.Errorf("%w: no answer from the gateway within %s", profiles.ErrOpen, t.openTimeout)
		ctx, cancel = context.WithTimeoutCause(ctx, t.openTimeout, late)
		defer cancel()
	}
	select {
	case t.opens <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-t.Done():
		return nil, t.Err()
	}
	answer := make(chan answered)
	left := make(chan struct{})
	defer close(left)
	go func() {
		a := t.ask(r)
		<-t.opens
		select {
		case answer <- a:
		case <-left:
			if a.stream != nil {
				t.NewStream(a.stream).Reset()
			}
		}
	}()
	select {
	case a := <-answer:
		return a.stream, a.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-t.Done():
		return nil, t.Err()
	}
}

// ask waits for the gateway's answer, however long that takes.
func (t *transport) ask(r wire.Request) answered {
	s, err := t.Session.Open()
	if err != nil {
		if errors.Is(err, wire.ErrGoingAway) {
			t.retire()
		}
		return answered{err: err}
	}
	if err = wire.WriteRequest(s, r); err != nil {
		t.NewStream(s).Reset()
		return answered{err: t.lostOr(fmt.Errorf("%w: %w", profiles.ErrOpen, err))}
	}
	a, err := wire.ReadAnswer(s)
	switch {
	case err != nil:
		t.NewStream(s).Reset()
		return answered{err: t.lostOr(fmt.Errorf("%w: the gateway did not answer: %w", profiles.ErrOpen, err))}
	case a.Status != wire.OK:
		t.NewStream(s).Reset()
		return answered{err: refusal(a)}
	}
	return answered{stream: s}
}

// lostOr is err, or why the transport is lost where it is.
func (t *transport) lostOr(err error) error {
	if lost := t.Err(); lost != nil {
		return lost
	}
	return err
}

// refusal puts the gateway's answer into its class and keeps what it said.
func refusal(a wire.Answer) error {
	class := profiles.ErrOpen
	switch a.Status {
	case wire.Refused:
		class = profiles.ErrRefused
	case wire.Prohibited:
		class = profiles.ErrProhibited
	case wire.NameNotFound:
		class = profiles.ErrNameNotFound
	}
	text := a.Status.String()
	if a.Detail != "" {
		text += ": " + a.Detail
	}
	if a.Rule != "" {
		text += " (rule " + a.Rule + ")"
	}
	return fmt.Errorf("%w: %q", class, profiles.RemoteText(text, 300, false))
}
