package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"sshbroker/broker/audit"
	"sshbroker/broker/gateway/generation"
	"sshbroker/broker/gateway/policy"
	"sshbroker/profiles/socket"
	"sshbroker/profiles/tlstun/wire"
)

// client is one TLS connection whose handshake is done.
type client struct {
	g     *Gateway
	id    uint64
	tcp   *tcpConn
	tls   *tls.Conn
	from  netip.AddrPort
	who   policy.Identity
	key   string // of the identity, for limits
	chain []*x509.Certificate

	service string // that it has chosen, "" for none
	bound   bool   // and no other

	ctx    context.Context // ended with end
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	gen     *generation.Generation // that it was judged by last
	flows   map[*flow]struct{}
	retired error         // no flow begins any more
	session *wire.Session // nil where the connection is one flow
}

// serve is one connection, from its first byte to its last. ready is called when the
// handshake is over.
func (g *Gateway) serve(l *listener, tcp *net.TCPConn, from netip.AddrPort, ready func()) {
	neg := &generation.Negotiation{Gen: g.current.Load(), Port: l.addr.Port()}
	ctx, cancel := context.WithTimeout(context.Background(), neg.Gen.Config.Limits.Handshake)
	socket.Tune(tcp, 0, 0)
	below := &tcpConn{TCPConn: tcp}
	conn := tls.Server(below, neg.TLS())
	err := conn.HandshakeContext(ctx)
	cancel()
	outcome := neg.Outcome(err)
	if err != nil {
		g.metrics.Handshake(outcome)
		g.say.Say(slog.LevelWarn, "handshake "+outcome, "handshake refused", "client", from, "outcome", outcome, "error", neg.Refused(err))
		farewell(tcp)
		ready()
		return
	}
	ready()
	c := newClient(g, neg, below, conn, from)
	release, err := g.limiter.Identity(c.key)
	if err != nil {
		g.limited(err)
		g.metrics.Handshake(generation.Limit)
		g.say.Say(slog.LevelWarn, "limit", "connection refused", "client", from, "identity", c.who.Name(), "error", err)
		conn.Close()
		return
	}
	defer release()
	g.metrics.Handshake(outcome)
	if !g.join(c) {
		conn.Close()
		return
	}
	defer g.leave(c)
	// The handshake may have been judged by a generation that has been replaced since,
	// by one that did not find this connection.
	if err := c.judge(g.current.Load()); err != nil {
		conn.Close()
		return
	}
	stop := c.untilExpiry()
	defer stop()
	state := conn.ConnectionState()
	g.log.Debug("client connected", "client", from, "identity", c.who.Name(), "protocol", state.NegotiatedProtocol, "service", c.service)
	switch {
	case state.NegotiatedProtocol == wire.ALPN:
		c.serveMux()
	case neg.Service != nil && !neg.Service.Backend.HTTPConnect:
		c.serveRaw()
	default:
		c.serveConnect()
	}
}

func newClient(g *Gateway, neg *generation.Negotiation, tcp *tcpConn, conn *tls.Conn, from netip.AddrPort) *client {
	c := &client{
		g: g, id: g.connections.Add(1), tcp: tcp, tls: conn, from: from, who: neg.Identity, gen: neg.Gen, bound: neg.Bound,
		key: neg.Identity.Issuer + "\x00" + neg.Identity.Name(), chain: conn.ConnectionState().PeerCertificates, flows: map[*flow]struct{}{},
	}
	if neg.Service != nil {
		c.service = neg.Service.Name
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	return c
}

// join has reloads and the end find the client. It fails where the end has come.
func (g *Gateway) join(c *client) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.stopped {
		g.clients[c] = struct{}{}
	}
	return !g.stopped
}

func (g *Gateway) leave(c *client) {
	c.cancel(nil)
	c.tls.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.clients, c)
}

// untilExpiry ends the client with its certificate. The clock that is set is looked at
// by the sweep.
func (c *client) untilExpiry() (stop func() bool) {
	return time.AfterFunc(time.Until(c.who.NotAfter), func() {
		if time.Now().After(c.who.NotAfter) {
			c.end(errExpired)
		}
	}).Stop
}

// judge holds the client against a generation, and ends it where it may not go on.
func (c *client) judge(gen *generation.Generation) error {
	c.mu.Lock()
	done := c.gen == gen
	c.mu.Unlock()
	if done {
		return nil
	}
	err := c.allowed(gen)
	if err != nil {
		c.end(fmt.Errorf("no longer allowed: %w", err))
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gen = gen
	return nil
}

func (c *client) allowed(gen *generation.Generation) error {
	if err := gen.Trust.Verify(c.chain[0], c.chain[1:], time.Now()); err != nil {
		return err
	}
	service := gen.Service(c.service)
	if c.service != "" && service == nil {
		return fmt.Errorf("the service %s is gone", c.service)
	}
	if verdict := gen.Admits(service, &c.who); !verdict.Allowed() {
		return fmt.Errorf("%s", verdict)
	}
	return nil
}

// retire has no flow begin any more, and the connection end with its last one. Our own
// clients are told, and open another one for the next.
func (c *client) retire(why error) {
	c.mu.Lock()
	if c.retired == nil {
		c.retired = why
	}
	session := c.session
	c.mu.Unlock()
	if session != nil {
		session.GoAway()
	}
	c.closeEmpty()
}

// end ends all flows now, and the connection.
func (c *client) end(why error) {
	c.mu.Lock()
	again := c.ctx.Err() != nil
	c.retired = why
	flows := slices.Collect(maps.Keys(c.flows))
	c.mu.Unlock()
	if again {
		return
	}
	c.g.say.Say(slog.LevelInfo, "client ended", "client ended", "client", c.from, "identity", c.who.Name(), "flows", len(flows), "reason", why)
	c.cancel(why)
	for _, f := range flows {
		f.end(why)
	}
	c.closeEmpty()
}

// closeEmpty closes the session of a client that is retired and has no flow left.
func (c *client) closeEmpty() {
	c.mu.Lock()
	session := c.session
	over := c.retired != nil && len(c.flows) == 0
	c.mu.Unlock()
	if over && session != nil {
		session.Close()
	}
}

// begin enters a flow, or says why none begins.
func (c *client) begin(f *flow) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.retired != nil {
		return c.retired
	}
	c.flows[f] = struct{}{}
	return nil
}

// finish takes a flow out and keeps its count.
func (c *client) finish(f *flow) {
	c.g.mu.Lock()
	c.mu.Lock()
	if _, there := c.flows[f]; there {
		delete(c.flows, f)
		c.g.up += f.count.Down.Load()
		c.g.down += f.count.Up.Load()
	}
	c.mu.Unlock()
	c.g.mu.Unlock()
	c.closeEmpty()
}

// record begins an audit record with what is known of the client.
func (c *client) record(f *flow) audit.GatewayRecord {
	return audit.GatewayRecord{
		Time: time.Now(), Instance: c.g.instance, Connection: c.id,
		Client: c.from, Carrier: f.carrier,
		Subject: c.who.Subject, Issuer: c.who.Issuer, Serial: c.who.Serial, Fingerprint: c.who.Fingerprint,
		Emails: c.who.Emails, URIs: c.who.URIs, Groups: c.who.Groups, NotAfter: c.who.NotAfter,
	}
}
