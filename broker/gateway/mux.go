package gateway

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/hashicorp/yamux"

	"sshbroker/broker/gateway/policy"
	"sshbroker/broker/relay"
	"sshbroker/profiles/tlstun/wire"
)

// serveMux serves the streams of one of our own clients.
func (c *client) serveMux() {
	c.tcp.gather()
	session, err := wire.Server(c.tls)
	if err != nil {
		c.g.log.Error("session", "client", c.from, "error", err)
		return
	}
	defer session.Close()
	session.KeepAlive(signOfLife, missedSigns)
	c.mu.Lock()
	c.session = session
	retired := c.retired
	c.mu.Unlock()
	if retired != nil {
		c.retire(retired)
	}
	// A stream that we have ended is there until the client ends it, too.
	most := c.g.current.Load().Config.Limits.FlowsPerIdentity + spareStreams
	for {
		ys, err := session.Accept()
		if err != nil {
			break
		}
		if n := ys.Session().NumStreams(); n > most {
			c.end(fmt.Errorf("%w: %d", errStreams, n))
			break
		}
		c.g.serving.Go(func() { c.serveStream(session, ys) })
	}
	c.retire(errGone)
	c.cancel(errGone) // what is being dialled is for nobody
}

// A client that is gone without a word is noticed by this: what the kernel asks for
// waits behind what is unread.
const (
	signOfLife  = 30 * time.Second
	missedSigns = 3
)

// spareStreams is how many streams a client may have beside its flows.
const spareStreams = 1024

// errStreams is a client that takes streams and gives none back.
var errStreams = errors.New("the client does not end its streams")

// serveStream serves one stream of a session.
func (c *client) serveStream(session *wire.Session, ys *yamux.Stream) {
	c.serveFlow("mux", &muxed{session: session, ys: ys}, func() (request, error) {
		ys.SetReadDeadline(time.Now().Add(c.g.current.Load().Config.Limits.Handshake))
		q, err := wire.ReadRequest(ys)
		ys.SetReadDeadline(time.Time{})
		switch {
		case err != nil:
			return request{}, err
		case q.Kind == wire.KindServices:
			c.listServices(session, ys)
			return request{}, errServed
		}
		return request{host: q.Host, port: q.Port, service: q.Service, flowID: q.Flow, program: q.Program}, nil
	})
}

// answerTime is how long a client may take to read an answer.
const answerTime = 10 * time.Second

// muxed is a flow's stream before it is one.
type muxed struct {
	session *wire.Session
	ys      *yamux.Stream
}

func (m *muxed) accept(why func() string) (relay.Stream, error) {
	m.ys.SetWriteDeadline(time.Now().Add(answerTime))
	if err := wire.WriteAnswer(m.ys, wire.Answer{Status: wire.OK}); err != nil {
		return nil, err
	}
	m.ys.SetWriteDeadline(time.Time{})
	return &muxStream{m.session.NewStream(m.ys), why}, nil
}

func (m *muxed) refuse(no *refusal) {
	m.ys.SetWriteDeadline(time.Now().Add(answerTime))
	_ = wire.WriteAnswer(m.ys, wire.Answer{Status: no.answer, Detail: no.text, Rule: no.rule})
	m.session.NewStream(m.ys).Reset() // which throws away what the client still sends
}

// muxStream is a stream whose reset says why, where we are the reason.
type muxStream struct {
	*wire.Stream
	why func() string
}

func (s *muxStream) Reset() error {
	if why := s.why(); why != "" {
		s.EndFor(why)
		return nil
	}
	return s.Stream.Reset()
}

// settle waits until the end of the stream was said: the session may be closed next.
func (s *muxStream) settle() {
	limit := time.NewTimer(answerTime)
	defer limit.Stop()
	select {
	case <-s.Closed():
	case <-limit.C:
	}
}

// listServices tells a client what it may use.
func (c *client) listServices(session *wire.Session, ys *yamux.Stream) {
	defer func() { session.NewStream(ys).Reset() }()
	ys.SetWriteDeadline(time.Now().Add(answerTime))
	gen := c.g.current.Load()
	list := []wire.Service{}
	for _, s := range gen.Config.Services {
		if (c.bound && s.Name != c.service) || !s.Admit(&c.who).Allowed() {
			continue
		}
		list = append(list, offer(s))
	}
	if wire.WriteAnswer(ys, wire.Answer{Status: wire.OK}) != nil {
		return
	}
	if err := wire.WriteServices(ys, list); err != nil {
		c.g.log.Debug("list of services", "client", c.from, "error", err)
	}
}

// offer is a service in the words of the protocol.
func offer(s *policy.Service) wire.Service {
	o := wire.Service{Name: s.Name, Kind: s.Kind, Description: s.Description, Port: s.Client.Port, Overridable: s.Client.AllowOverride}
	if !s.Backend.HTTPConnect {
		o.Target = net.JoinHostPort(s.Backend.Target.Host.String(), strconv.Itoa(int(s.Backend.Target.Port)))
		return o
	}
	if o.Kind == "tcp" { // the default, which says nothing of a collection
		o.Kind = "http-connect"
	}
	for _, w := range s.Backend.Whitelist {
		o.Hosts = append(o.Hosts, w.String())
	}
	if len(o.Hosts) == 0 {
		for _, p := range s.Backend.AllowPatterns {
			for _, h := range p.Hostnames {
				o.Hosts = append(o.Hosts, h.String())
			}
			for _, n := range p.CIDRs {
				o.Hosts = append(o.Hosts, n.String())
			}
		}
	}
	if s.Backend.AllowAll {
		o.Hosts = []string{"*"}
	}
	return o
}
