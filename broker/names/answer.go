package names

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	headerSize = 12
	udpPlain   = 512  // RFC 1035 section 4.2.1
	udpOurs    = 1232 // what we say that we take over UDP
)

// pseudoTTL is short, so that a changed rule soon holds, and no shorter, as asking
// again gives the same address anyway. In seconds.
const pseudoTTL = 30

// Zone transfers have more than one message for an answer.
const typeIXFR, typeAXFR dnsmessage.Type = 251, 252

// query is a message that asks one question.
type query struct {
	msg      []byte // as it came
	header   dnsmessage.Header
	question dnsmessage.Question
	name     string // normalized; "" for the root
	edns     bool
	limit    int // bytes that an answer over UDP may have
	tcp      bool
	asker    *asker // set before it is answered
}

// handle answers one message of a's. It returns nil where no answer is due. It does
// not keep msg. Only a forwarded query blocks.
func (r *responder) handle(ctx context.Context, a *asker, msg []byte, tcp bool) []byte {
	q, answer := r.parse(msg, tcp)
	if q == nil {
		return answer
	}
	q.asker = a
	if answer = r.answerLocally(q); answer == nil {
		answer = r.forward(ctx, q)
	}
	return answer
}

// trace tells who watches of an answer.
func (r *responder) trace(q *query, how string, answer []byte) {
	if r.cfg.Trace != nil && len(answer) > headerSize {
		r.cfg.Trace(fmt.Sprintf("name query: %s %s, answered by %s (%s)", strings.TrimPrefix(q.question.Type.String(), "Type"),
			q.name, how, strings.TrimPrefix(dnsmessage.RCode(answer[3]&15).String(), "RCode")))
	}
}

// parse reads a query. Where it returns none, it has the answer, or nil for nothing.
func (r *responder) parse(msg []byte, tcp bool) (*query, []byte) {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || h.Response {
		r.malformed.Add(1)
		return nil, nil
	}
	q := &query{msg: msg, header: h, limit: udpPlain, tcp: tcp}
	if h.OpCode != 0 {
		r.queries.Add(1)
		return nil, q.bare(dnsmessage.RCodeNotImplemented)
	}
	if err := q.read(&p); err != nil {
		r.malformed.Add(1)
		return nil, q.bare(dnsmessage.RCodeFormatError)
	}
	r.queries.Add(1)
	if q.question.Class != dnsmessage.ClassINET || q.question.Type == typeAXFR || q.question.Type == typeIXFR {
		return nil, q.reply(dnsmessage.RCodeRefused)
	}
	text := q.question.Name.String()
	if text == "." {
		return q, nil
	}
	if q.name, err = Normalize(text); err != nil {
		r.warn("query for a name that cannot be used was refused", r.badNames.Add(1))
		return nil, q.reply(dnsmessage.RCodeRefused)
	}
	return q, nil
}

// read takes the one question and what EDNS (RFC 6891) says, and checks that the rest
// of the message can be read as well: it may be handed on.
func (q *query) read(p *dnsmessage.Parser) error {
	qs, err := p.AllQuestions()
	if err != nil {
		return err
	}
	if len(qs) != 1 {
		return errors.New("not one question")
	}
	q.question = qs[0]
	if err := p.SkipAllAnswers(); err != nil {
		return err
	}
	if err := p.SkipAllAuthorities(); err != nil {
		return err
	}
	for {
		h, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Type == dnsmessage.TypeOPT {
			if q.edns {
				return errors.New("two OPT records")
			}
			q.edns = true
			q.limit = max(int(h.Class), udpPlain)
		}
		if err := p.SkipAdditional(); err != nil {
			return err
		}
	}
}

// answerLocally answers what needs no resolver; nil for the rest. An address that was
// remembered for nobody would lead a connection past the rules by name: better none.
func (r *responder) answerLocally(q *query) []byte {
	var answer []byte
	if q.asker.unknown {
		r.warn("name query was refused, as nobody could tell whose it was", r.unowned.Add(1))
		answer = q.reply(dnsmessage.RCodeServerFailure)
	} else {
		answer = r.localAnswer(q)
	}
	if answer != nil {
		r.trace(q, "the broker", answer)
	}
	return answer
}

func (r *responder) localAnswer(q *query) []byte {
	if within(q.name, "localhost") { // RFC 6761 section 6.3
		r.local.Add(1)
		return q.addresses(hostsTTL, netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback())
	}
	if within(q.name, "resolver.arpa") { // RFC 9462 sections 6.1, 6.4; it would lead past us
		r.local.Add(1)
		return q.reply(dnsmessage.RCodeSuccess)
	}
	if addr, ok := reverseName(q.name); ok {
		return r.answerReverse(q, addr)
	}
	if r.isPseudo(q) {
		return r.answerPseudo(q)
	}
	if q.question.Type == dnsmessage.TypeA || q.question.Type == dnsmessage.TypeAAAA {
		if addrs := r.hosts.get().addrs[q.name]; len(addrs) > 0 {
			return r.answerHosts(q, addrs)
		}
	}
	return nil
}

// within reports whether name is zone or below it.
func within(name, zone string) bool {
	rest, ok := strings.CutSuffix(name, zone)
	return ok && (rest == "" || strings.HasSuffix(rest, "."))
}

func (r *responder) isPseudo(q *query) bool {
	switch {
	case r.cfg.AllPseudo:
		return true
	case q.name == "":
		return false
	case r.cfg.Policy.Pseudo(q.name):
		return true
	}
	// The hints of such a record would lead past the pseudo address.
	return q.mayHint() && r.cfg.Policy.Pseudo(serviceHost(q.name))
}

func (r *responder) answerPseudo(q *query) []byte {
	want4 := q.question.Type == dnsmessage.TypeA
	want6 := q.question.Type == dnsmessage.TypeAAAA && r.pool.v6.IsValid()
	if !want4 && !want6 || q.name == "" {
		r.local.Add(1)
		return q.reply(dnsmessage.RCodeSuccess)
	}
	v4, v6, err := r.pool.assign(q.name, q.asker.share)
	switch {
	case errors.Is(err, errPoolFull):
		r.warn("no pseudo address is free", r.full.Add(1), "pool", r.pool.v4)
		return q.reply(dnsmessage.RCodeServerFailure)
	case errors.Is(err, errShareFull):
		r.warn("a user has too many pseudo addresses", r.full.Add(1), "user", q.asker.label)
		return q.reply(dnsmessage.RCodeServerFailure)
	case err != nil:
		r.warn("pseudo address cannot be saved", r.unsaved.Add(1), "error", err)
		return q.reply(dnsmessage.RCodeServerFailure)
	}
	r.pseudo.Add(1)
	if q.asker.apart { // so that it may ask for the name behind them
		q.asker.remember(v4, q.name)
		if v6.IsValid() {
			q.asker.remember(v6, q.name)
		}
	}
	return q.addresses(pseudoTTL, v4, v6)
}

// hostsTTL is that of answers from a file that is looked at for every query.
const hostsTTL = 0

func (r *responder) answerHosts(q *query, addrs []netip.Addr) []byte {
	r.local.Add(1)
	for _, a := range addrs {
		if r.pool.contains(a) {
			r.warn("the hosts file has an address of the pseudo address pool", r.failed.Add(1), "address", a)
			return q.reply(dnsmessage.RCodeServerFailure)
		}
		q.asker.remember(a, q.name)
	}
	return q.addresses(hostsTTL, addrs...)
}

// answerReverse answers from what is known here; nil to ask the resolvers.
func (r *responder) answerReverse(q *query, addr netip.Addr) []byte {
	var name string
	pseudo := r.pool.contains(addr)
	switch list := r.hosts.get().names[addr]; {
	case pseudo:
		name, _ = r.pool.name(addr)
		if q.asker.apart && !slices.Contains(q.asker.names(addr), name) {
			name = "" // somebody else's
		}
	case addr.IsLoopback():
		name = "localhost"
	case len(list) > 0:
		name = list[0]
	case !r.cfg.AllPseudo:
		return nil
	}
	r.local.Add(1)
	if name == "" && pseudo {
		return q.reply(dnsmessage.RCodeNameError)
	}
	if name == "" || q.question.Type != dnsmessage.TypePTR {
		return q.reply(dnsmessage.RCodeSuccess)
	}
	return q.pointer(name)
}

// reverseName returns the address that a name of in-addr.arpa or ip6.arpa stands for.
func reverseName(name string) (netip.Addr, bool) {
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(s, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return a, err == nil && a.Is4()
	}
	s, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(s) != 63 {
		return netip.Addr{}, false
	}
	var text strings.Builder
	for i := 62; i >= 0; i -= 2 {
		if i < 62 && s[i+1] != '.' {
			return netip.Addr{}, false
		}
		text.WriteByte(s[i])
		if i > 0 && (62-i)/2%4 == 3 {
			text.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(text.String())
	return a, err == nil
}

// mayHint reports whether the answer may have hints in place of addresses, RFC 9460.
func (q *query) mayHint() bool {
	t := q.question.Type
	return t == dnsmessage.TypeHTTPS || t == dnsmessage.TypeSVCB || t == dnsmessage.TypeALL
}

// bare answers a message whose question could not be read.
func (q *query) bare(code dnsmessage.RCode) []byte {
	b := dnsmessage.NewBuilder(make([]byte, 0, headerSize), q.answerHeader(code))
	msg, err := b.Finish()
	if err != nil {
		return nil
	}
	return msg
}

func (q *query) answerHeader(code dnsmessage.RCode) dnsmessage.Header {
	return dnsmessage.Header{
		ID:                 q.header.ID,
		Response:           true,
		OpCode:             q.header.OpCode,
		RecursionDesired:   q.header.RecursionDesired,
		RecursionAvailable: true,
		CheckingDisabled:   q.header.CheckingDisabled,
		RCode:              code,
	}
}

// reply answers without data.
func (q *query) reply(code dnsmessage.RCode) []byte {
	return q.build(q.answerHeader(code), nil)
}

// addresses answers with those of addrs that are of the type asked for.
func (q *query) addresses(ttl uint32, addrs ...netip.Addr) []byte {
	return q.build(q.answerHeader(dnsmessage.RCodeSuccess), func(b *dnsmessage.Builder, h dnsmessage.ResourceHeader) error {
		h.TTL = ttl
		for _, a := range addrs {
			var err error
			switch {
			case q.question.Type == dnsmessage.TypeA && a.Is4():
				err = b.AResource(h, dnsmessage.AResource{A: a.As4()})
			case q.question.Type == dnsmessage.TypeAAAA && a.Is6():
				err = b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: a.As16()})
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (q *query) pointer(name string) []byte {
	return q.build(q.answerHeader(dnsmessage.RCodeSuccess), func(b *dnsmessage.Builder, h dnsmessage.ResourceHeader) error {
		target, err := dnsmessage.NewName(name + ".")
		if err != nil {
			return err
		}
		h.TTL = pseudoTTL
		return b.PTRResource(h, dnsmessage.PTRResource{PTR: target})
	})
}

// build makes an answer with the question in it, spelt as it was asked.
func (q *query) build(h dnsmessage.Header, answers func(*dnsmessage.Builder, dnsmessage.ResourceHeader) error) []byte {
	b := dnsmessage.NewBuilder(make([]byte, 0, udpPlain), h)
	b.EnableCompression()
	err := b.StartQuestions()
	if err == nil {
		err = b.Question(q.question)
	}
	if err == nil && answers != nil {
		if err = b.StartAnswers(); err == nil {
			err = answers(&b, dnsmessage.ResourceHeader{Name: q.question.Name, Class: q.question.Class})
		}
	}
	if err == nil && q.edns {
		if err = b.StartAdditionals(); err == nil {
			var opt dnsmessage.ResourceHeader
			if err = opt.SetEDNS0(udpOurs, dnsmessage.RCodeSuccess, false); err == nil {
				err = b.OPTResource(opt, dnsmessage.OPTResource{})
			}
		}
	}
	var msg []byte
	if err == nil {
		msg, err = b.Finish()
	}
	if err != nil {
		return q.bare(dnsmessage.RCodeServerFailure)
	}
	if !q.tcp && len(msg) > q.limit {
		h.Truncated = true
		return q.build(h, nil)
	}
	return msg
}

// setID makes msg the answer to, or a copy of, another message.
func setID(msg []byte, id uint16) { binary.BigEndian.PutUint16(msg, id) }
