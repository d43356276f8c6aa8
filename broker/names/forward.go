package names

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	maxUpstream    = 256              // queries at the resolvers at once
	forwardTimeout = 15 * time.Second // for one query, all tries
	serverPause    = 30 * time.Second // a server that did not answer is asked last for so long
	minReadUDP     = 4096
)

var (
	errNoAnswer     = errors.New("no resolver answered")
	errPoolAddress  = errors.New("the answer holds an address of the pseudo address pool")
	errBadAnswer    = errors.New("the answer cannot be read")
	errNoResolvFile = errors.New("no resolvers are known")
)

// upstream is the host's resolvers.
type upstream struct {
	conf   watched[resolvConf]
	dialer Dialer
	slots  chan struct{}

	mu   sync.Mutex
	down map[netip.AddrPort]time.Time // until when
}

func newUpstream(path string, dialer Dialer) *upstream {
	return &upstream{
		conf:   watched[resolvConf]{path: path, parse: parseResolvConf},
		dialer: dialer,
		slots:  make(chan struct{}, maxUpstream),
		down:   make(map[netip.AddrPort]time.Time),
	}
}

// forward asks the host's resolvers, remembers the addresses, and returns the answer
// as it came, but for addresses that nobody asked for, under the asker's id.
func (r *responder) forward(ctx context.Context, q *query) []byte {
	answer := r.forwarding(ctx, q)
	r.trace(q, "a resolver of the host", answer)
	return answer
}

func (r *responder) forwarding(ctx context.Context, q *query) []byte {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	answer, err := r.askUpstream(ctx, q)
	if err == nil {
		answer, err = withoutExtras(answer)
	}
	if err == nil {
		err = r.learn(q, answer)
	}
	if err != nil {
		if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
			r.warn("query could not be forwarded", r.failed.Add(1), "error", err)
		}
		return q.reply(dnsmessage.RCodeServerFailure)
	}
	r.forwarded.Add(1)
	setID(answer, q.header.ID)
	if !q.tcp && len(answer) > q.limit {
		h := q.answerHeader(dnsmessage.RCodeSuccess)
		h.Truncated = true
		return q.build(h, nil)
	}
	return answer
}

// askUpstream waits for the asker's turn first, behind nobody else's queries.
func (r *responder) askUpstream(ctx context.Context, q *query) ([]byte, error) {
	if err := enter(ctx, q.asker.upstream); err != nil {
		return nil, fmt.Errorf("%w: too many queries of one user wait: %w", errNoAnswer, err)
	}
	defer leave(q.asker.upstream)
	return r.up.ask(ctx, q)
}

// learn remembers every address that a program could take from answer, hints of HTTPS
// and SVCB records among them, under the name that was asked, whatever aliases lie
// between. It refuses an answer that it cannot read, and one that leads into the pool,
// where the address stands for another name.
func (r *responder) learn(q *query, answer []byte) error {
	name := q.name
	switch {
	case q.mayHint():
		name = serviceHost(name)
	case q.question.Type != dnsmessage.TypeA && q.question.Type != dnsmessage.TypeAAAA:
		return nil // nobody takes an address from it
	}
	addrs, err := addressesIn(answer)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if r.pool.contains(a) {
			return errPoolAddress
		}
	}
	if name != "" {
		for _, a := range addrs {
			q.asker.remember(a, name)
		}
	}
	return nil
}

// addressesIn returns the addresses of the answer section.
func addressesIn(answer []byte) (addrs []netip.Addr, err error) {
	var p dnsmessage.Parser
	header, err := p.Start(answer)
	if err != nil {
		return nil, errBadAnswer
	}
	if err := p.SkipAllQuestions(); err != nil {
		return nil, errBadAnswer
	}
	for {
		h, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return addrs, nil
		}
		more := addrs
		if err == nil {
			more, err = appendAddresses(addrs, &p, h.Type)
		}
		if err != nil && header.Truncated {
			return addrs, nil // the program sees no more of it than we do
		}
		if err != nil {
			return nil, errBadAnswer
		}
		addrs = more
	}
}

// appendAddresses reads one record; for HTTPS and SVCB the hints, which a program may
// use at once (RFC 9460 section 7.3).
func appendAddresses(addrs []netip.Addr, p *dnsmessage.Parser, t dnsmessage.Type) ([]netip.Addr, error) {
	switch t {
	case dnsmessage.TypeA:
		r, err := p.AResource()
		return append(addrs, netip.AddrFrom4(r.A)), err
	case dnsmessage.TypeAAAA:
		r, err := p.AAAAResource()
		return append(addrs, netip.AddrFrom16(r.AAAA).Unmap()), err
	case dnsmessage.TypeHTTPS:
		r, err := p.HTTPSResource()
		return appendHints(addrs, r.Params), err
	case dnsmessage.TypeSVCB:
		r, err := p.SVCBResource()
		return appendHints(addrs, r.Params), err
	}
	return addrs, p.SkipAnswer()
}

func appendHints(addrs []netip.Addr, params []dnsmessage.SVCParam) []netip.Addr {
	for _, param := range params {
		v := param.Value
		switch param.Key {
		case dnsmessage.SVCParamIPv4Hint:
			for ; len(v) >= 4; v = v[4:] {
				addrs = append(addrs, netip.AddrFrom4([4]byte(v)))
			}
		case dnsmessage.SVCParamIPv6Hint:
			for ; len(v) >= 16; v = v[16:] {
				addrs = append(addrs, netip.AddrFrom16([16]byte(v)).Unmap())
			}
		}
	}
	return addrs
}

// ask tries the servers in turn. The answer is the caller's.
func (u *upstream) ask(ctx context.Context, q *query) ([]byte, error) {
	if u.conf.path == "" {
		return nil, errNoResolvFile
	}
	conf := u.conf.get()
	select {
	case u.slots <- struct{}{}:
		defer func() { <-u.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: too many queries wait: %w", errNoAnswer, ctx.Err())
	}
	var failure []byte // of a server that did answer, but says that it cannot
	lastErr := errNoAnswer
	for range conf.attempts {
		for _, server := range u.order(conf.servers) {
			answer, err := u.askServer(ctx, q, server, conf.timeout)
			if ctx.Err() != nil {
				return nil, fmt.Errorf("%w: %w", errNoAnswer, context.Cause(ctx))
			}
			if err != nil {
				u.mark(server, false)
				lastErr = fmt.Errorf("%w: %s: %w", errNoAnswer, server, err)
				continue
			}
			u.mark(server, true)
			switch rcode(answer) {
			case dnsmessage.RCodeServerFailure, dnsmessage.RCodeNotImplemented, dnsmessage.RCodeRefused:
				failure = answer
				continue
			}
			return answer, nil
		}
		if failure != nil {
			return failure, nil
		}
	}
	return nil, lastErr
}

// order puts servers that did not answer lately last.
func (u *upstream) order(servers []netip.AddrPort) []netip.AddrPort {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	var good, bad []netip.AddrPort
	for _, s := range servers {
		if until, ok := u.down[s]; ok && now.Before(until) {
			bad = append(bad, s)
		} else {
			good = append(good, s)
		}
	}
	return append(good, bad...)
}

func (u *upstream) mark(server netip.AddrPort, good bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if good {
		delete(u.down, server)
		return
	}
	if len(u.down) >= 4*maxServers {
		clear(u.down) // of files long replaced
	}
	u.down[server] = time.Now().Add(serverPause)
}

// askServer asks over UDP and, where that answer is cut short and the asker came over
// TCP, over TCP too. An asker over UDP gets the short answer: it comes back over TCP
// if it wants more.
func (u *upstream) askServer(ctx context.Context, q *query, server netip.AddrPort, timeout time.Duration) ([]byte, error) {
	answer, err := u.exchange(ctx, "udp", q, server, timeout)
	if err != nil || !q.tcp || !truncated(answer) {
		return answer, err
	}
	if long, err := u.exchange(ctx, "tcp", q, server, timeout); err == nil {
		return long, nil
	}
	return answer, nil
}

func (u *upstream) exchange(ctx context.Context, network string, q *query, server netip.AddrPort, timeout time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := u.dialer.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	// A new socket with its own port and id for each query: nobody can guess them.
	var id [2]byte
	rand.Read(id[:])
	msg := bytes.Clone(q.msg)
	copy(msg, id[:])

	if network == "tcp" {
		if err := writeFramed(conn, msg); err != nil {
			return nil, err
		}
		answer, err := readFramed(conn)
		if err != nil {
			return nil, err
		}
		if !answers(answer, id, q) {
			return nil, errBadAnswer
		}
		return answer, nil
	}
	if _, err := conn.Write(msg); err != nil {
		return nil, err
	}
	buf := make([]byte, max(q.limit, minReadUDP))
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if answers(buf[:n], id, q) {
			return buf[:n], nil
		}
	}
}

// answers reports whether msg is the answer to q sent under id.
func answers(msg []byte, id [2]byte, q *query) bool {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || !h.Response || h.OpCode != 0 || !bytes.Equal(msg[:2], id[:]) {
		return false
	}
	got, err := p.Question()
	if errors.Is(err, dnsmessage.ErrSectionDone) {
		return h.RCode != dnsmessage.RCodeSuccess // some leave the question out of an error
	}
	return err == nil && got.Type == q.question.Type && got.Class == q.question.Class &&
		strings.EqualFold(got.Name.String(), q.question.Name.String())
}

// The caller has parsed msg, so that it has a whole header.

func rcode(msg []byte) dnsmessage.RCode { return dnsmessage.RCode(msg[3] & 0xf) }

func truncated(msg []byte) bool { return msg[2]&0x2 != 0 }

// writeFramed and readFramed speak DNS over TCP, RFC 1035 section 4.2.2.

func writeFramed(w io.Writer, msg []byte) error {
	if len(msg) > 0xffff {
		return errBadAnswer
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg))), msg...))
	return err
}

func readFramed(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

var _ Dialer = (*net.Dialer)(nil)
