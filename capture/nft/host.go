package nft

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sshbroker/capture"
)

// HostSpec says what the host's table refers to.
type HostSpec struct {
	Form     QueueForm
	TCP      uint16        // of the listeners on 127.0.0.1 and ::1, one for all captures
	Captures []HostCapture // no two with the same Cgroup and UID
	System   *HostCapture  // of the whole host; nil where that is not in force
	Meter    Meter
	NoZones  bool // Zones says so
}

// HostCapture is one capture of the host. A prefix or range of its Spec that is not
// valid matches nothing. Spec.Open is the caller's, who knows whether anybody serves.
//
// Before a capture is left out of the table, its held SYNs have to be decided: a
// verdict that comes later is carried out by no rule.
type HostCapture struct {
	ID             string // names its chains and counters: letters, digits, '-' and '.'
	Queue          uint16 // its own
	DNSUDP, DNSTCP uint16 // ports of its resolver's sockets on 127.0.0.1 and ::1

	// Whose sockets are taken: those of UID that were made in the cgroup, which is at
	// Level below the root of the hierarchy. Unused for System, whose Spec.Users says.
	Cgroup uint64
	Level  uint32
	UID    uint32

	Spec capture.Spec
}

// Meter bounds the SYNs that a uid may send to the queues. What is beyond is dropped
// and comes again a second later.
type Meter struct {
	Rate  uint32 // a second; 0 is no bound
	Burst uint32 // at once
}

// Names of counters. Those of rules are "OUTCOME_NUMBER_ID".
const (
	counterLostMark = "lost_mark"
	counterDiverted = "diverted"
	counterMetered  = "metered"
)

// Host returns the rules of the host's table. Packets of sockets that no capture takes
// are let alone, but for those to an address of a pool, which are refused. Datagrams to
// System's resolver arrive with their sender's capture.SenderMark, whoever that is.
func Host(s HostSpec) Ruleset {
	r := Ruleset{Table: HostTableName, meter: s.Meter}
	all := slices.Clone(s.Captures)
	var users []capture.UIDRange // whose sockets may be taken
	for _, c := range all {
		users = append(users, capture.UIDRange{Lo: c.UID, Hi: c.UID})
	}
	if s.System != nil {
		all = append(all, *s.System)
		users = append(users, s.System.Spec.Users...)
	}
	var pools []netip.Prefix
	var resolvers, resolversTCP []uint16
	refuseUDP := false
	for _, c := range all {
		resolvers, resolversTCP = append(resolvers, c.DNSUDP), append(resolversTCP, c.DNSTCP)
		pools = append(pools, c.Spec.Pools...)
		refuseUDP = refuseUDP || c.Spec.RefuseUDP
	}

	// A packet that is no SYN passes one rule of hold and, unless it goes to a pool,
	// few of refuse.
	r.Chains = append(r.Chains,
		Base("hold", "filter", unix.NF_INET_LOCAL_OUT, PrioHold, Rule{TCP, SYN, jump("syn")}),
		Chain{name: "syn", rules: append([]Rule{{DestPort(PortDNS), Accept}}, s.dispatch(HostCapture.rulesChain)...)})

	refuse := Base("refuse", "filter", unix.NF_INET_LOCAL_OUT, PrioRefuse, Rule{toJudge, TCP, SYN, jump("judge")})
	refuse.rules = append(refuse.rules, ending(inPrefixes(pools), jump("pool"))...)
	if refuseUDP {
		refuse.rules = append(refuse.rules, Rule{notTCP, OutElsewhere, jump("datagrams")})
	}
	if !s.NoZones {
		apart := Base("apart", "filter", unix.NF_INET_LOCAL_OUT, prioApart, Rule{UDP, DestPort(PortDNS), ownersZone})
		apart.constant = true // kernels drop all that is held when a rule that sets zones goes
		r.Chains = append(r.Chains, apart)
	}
	if len(all) > 0 {
		refuse.rules = append(refuse.rules, Rule{OutLoopback, jump("straight")})
		r.Chains = append(r.Chains, straight(append(resolversTCP, s.TCP), resolvers))
	}
	judged := []Rule{
		{DestPort(PortDNS), Accept},
		{HasClass(capture.MarkReset), ResetTCP},
		{HasClass(capture.MarkUnreachable), HostUnreachable},
		{HasClass(capture.MarkTunnel), Accept},
	}
	r.Chains = append(r.Chains, refuse,
		Chain{name: "judge", rules: s.dispatch(func(HostCapture) string { return "judged" })},
		Chain{name: "judged", rules: judged},
		Chain{name: "pool", rules: s.pool()})
	if refuseUDP {
		r.Chains = append(r.Chains,
			Chain{name: "datagrams", rules: append([]Rule{{UDP, DestPort(PortDNS), Accept}}, s.dispatch(s.datagramChain)...)},
			Chain{name: "refused", rules: []Rule{{HostUnreachable}}},
			Chain{name: "accepted", rules: []Rule{{Accept}}})
	}

	r.Chains = append(r.Chains,
		Base("divert", "nat", unix.NF_INET_LOCAL_OUT, PrioDivert,
			Rule{HasClass(capture.MarkTunnel), TCP, jump("captured")},
			Rule{DestPort(PortDNS), jump("captured")}),
		Chain{name: "captured", rules: s.dispatch(HostCapture.divertChain)},
		// Live diverted flows hang once no rule uses NAT any more. No packet comes here.
		Chain{name: "resident", rules: []Rule{{Redirect(s.TCP)}}},
		// Wherever foreign rules stand, after NAT a SYN is on its way to us or may leave.
		// A route chain, so that the latter goes the way that its mark without our class
		// stands for in foreign policy rules.
		Base("confirm", "route", unix.NF_INET_LOCAL_OUT, prioConfirm, Rule{TCP, SYN, jump("check")}, Rule{UDP, jump("datagram")}),
		Chain{name: "datagram", rules: []Rule{{DestPort(PortDNS), goTo("asked")}, {askedFor(PortDNS), goTo("asked")}}},
		// A SYN on its way since before it had our class, which nobody has changed since, need
		// not be sent on it again: hold is no route chain. Its class is taken off behind us.
		// A program that gave up while its SYN was held has no socket any more whose owner
		// could be told: nothing has diverted that SYN, or refused it.
		Chain{name: "check", rules: slices.Concat([]Rule{{direct, unchanged, Accept}},
			s.dispatch(func(HostCapture) string { return "checked" }),
			[]Rule{{hasOwner, Accept}, {mayLeave, SetClass(0), Accept}, {HasNotClass(0), drop}})},
		Base("settle", "filter", unix.NF_INET_LOCAL_OUT, prioSettle, Rule{direct, TCP, SYN, jump("leaves")}),
		Chain{name: "leaves", rules: s.dispatch(func(HostCapture) string { return "left" })},
		Chain{name: "left", rules: []Rule{{SetClass(0)}}},
		Chain{name: "asked", rules: append(s.dispatch(HostCapture.namesChain),
			// Of a socket that is not captured, from where one was that is.
			ending(toLoopback(resolvers...), count(counterDiverted), drop)...)},
		Chain{name: "checked", rules: slices.Concat(
			[]Rule{{mayLeave, SetClass(0), Accept}},
			ending(toLoopback(resolversTCP...), askedFor(PortDNS), Accept),
			ending(toLoopback(s.TCP), HasClass(capture.MarkTunnel), Accept),
			[]Rule{
				// Guard 2: a SYN for the tunnel that something else diverted first.
				{HasClass(capture.MarkTunnel), count(counterDiverted), drop},
				// Guard 1: a SYN whose verdict was lost on the way.
				{count(counterLostMark), drop},
			})},
		// Guard 2 once more, on the way out. Here the cgroup cannot be asked for; forwarded
		// packets have no owner.
		Base("last", "filter", unix.NF_INET_POST_ROUTING, PrioLast,
			append(ending(product([]Rule{{HasClass(capture.MarkTunnel), TCP, SYN, OutElsewhere}}, inUsers(users...)),
				count(counterDiverted), drop), s.queries(OutLoopback, noteSender)...)...),
		// Foreign rules of prerouting write marks, WireGuard's for one, and those of
		// input act on them; by now the packet has no socket any more, but its priority.
		Base("sender", "filter", unix.NF_INET_LOCAL_IN, prioSender, slices.Concat(
			[]Rule{{fromElsewhere, Accept}},
			s.queries(markSender),
			ending(toLoopback(resolvers...), UDP, jump("arrives")),
			ending(toLoopback(resolversTCP...), TCP, SYN, jump("arrives")))...),
		// Once a resolver is gone, and ssh-captured with it, somebody else may bind its port:
		// what the table still sends there is dropped. A SYN may also meet what lingers of a
		// connection, which has the port until then; any other socket is somebody else's.
		Chain{name: "arrives", rules: []Rule{{heard, Accept}, {lingers, jump("lingers")}, {drop}}},
		Chain{name: "lingers", rules: []Rule{{overheard, drop}, {Accept}}})

	for _, c := range all {
		r.Chains = append(r.Chains, s.ask(c), s.divert(c), s.rules(c), Chain{name: c.namesChain(), rules: []Rule{
			{DestPort(c.DNSUDP), Accept},
			// Guard 2 for name queries: others would be asked what only our resolver may hear.
			{count(counterDiverted), drop}}})
	}
	return r
}

// pool is the chain for packets to an address of some capture's pool: what a live
// diverted connection sends, or what may not get out. What a user's capture calls a pool
// concerns that user alone: any range can be.
func (s HostSpec) pool() []Rule {
	rules := []Rule{{diverted, Accept}}
	for _, c := range s.Captures {
		rules = append(rules, ending(product(inPrefixes(c.Spec.Pools), inUsers(capture.UIDRange{Lo: c.UID, Hi: c.UID})), HostUnreachable)...)
	}
	if s.System != nil {
		rules = append(rules, ending(inPrefixes(s.System.Spec.Pools), HostUnreachable)...)
	}
	return rules
}

// queries is a rule about the name queries that arrive at System's resolver over UDP,
// redirected or sent there, where there is a System.
func (s HostSpec) queries(act ...Term) []Rule {
	if s.System == nil {
		return nil
	}
	return []Rule{append(Rule{UDP, DestPort(s.System.DNSUDP)}, act...)}
}

// straight is the chain that refuses what goes to our own sockets without having been
// diverted there, which is before NAT: another user could ask a capture's resolver what
// its owner asked, and have it remember names that the owner never asked for.
func straight(tcpPorts, udpPorts []uint16) Chain {
	return Chain{name: "straight", rules: append(
		ending(toLoopback(tcpPorts...), TCP, ResetTCP),
		ending(toLoopback(udpPorts...), UDP, HostUnreachable)...)}
}

func (c HostCapture) rulesChain() string  { return "rules_" + c.ID }
func (c HostCapture) askChain() string    { return "ask_" + c.ID }
func (c HostCapture) divertChain() string { return "divert_" + c.ID }
func (c HostCapture) namesChain() string  { return "names_" + c.ID }

// under reports whether System takes the sockets of c's user as well. What c lets
// through is then for System's rules, which are not a user's to lift.
func (s HostSpec) under(c HostCapture) bool {
	return s.System != nil && c.ID != s.System.ID && slices.ContainsFunc(s.System.Spec.Users,
		func(r capture.UIDRange) bool { return r.Lo <= c.UID && c.UID <= r.Hi })
}

func (s HostSpec) datagramChain(c HostCapture) string {
	if c.Spec.RefuseUDP || s.under(c) && s.System.Spec.RefuseUDP {
		return "refused"
	}
	return "accepted" // also where another user's capture around this one refuses
}

// dispatch returns rules that send the packets of captured sockets to a chain: by the
// deepest cgroup first, as a capture within another has its own rules, and System last.
func (s HostSpec) dispatch(chain func(HostCapture) string) (rules []Rule) {
	captures := slices.Clone(s.Captures)
	slices.SortStableFunc(captures, func(a, b HostCapture) int { return cmp.Compare(b.Level, a.Level) })
	for len(captures) > 0 {
		var ways []span
		level := captures[0].Level
		for len(captures) > 0 && captures[0].Level == level {
			ways = append(ways, captures[0].leads(chain(captures[0])))
			captures = captures[1:]
		}
		rules = append(rules, Rule{socketAt(level).lookup(ways)})
	}
	if s.System != nil {
		rules = append(rules, ending(product([]Rule{nil}, inUsers(s.System.Spec.Users...)), goTo(chain(*s.System)))...)
	}
	return rules
}

// leads has the packets of c's sockets go to a chain.
func (c HostCapture) leads(chain string) span {
	key := binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint64(nil, c.Cgroup), c.UID)
	return span{key, key, fmt.Sprintf("%d . %d : goto %s", c.Cgroup, c.UID, chain), chain}
}

// rules is the chain of what the kernel decides of a capture's SYNs by itself. Its
// rules are those of Spec, in their order.
func (s HostSpec) rules(c HostCapture) Chain {
	pass := []Term{SetClass(capture.MarkDirect), Accept}
	if s.under(c) {
		pass = []Term{goTo(s.System.rulesChain())}
	}
	rules := ending(inPrefixes(c.Spec.Pools), goTo(c.askChain()))
	if !c.Spec.Local {
		rules = append(rules, append(Rule{OutLoopback}, pass...))
	}
	rules = append(rules, ending(toServers(c.Spec.Exempt), pass...)...)
	for _, sr := range c.Spec.Rules {
		ways := []Rule{nil}
		if len(sr.Prefixes) > 0 {
			ways = inPrefixes(sr.Prefixes)
		}
		if len(sr.Ports) > 0 {
			ways = product(ways, inPorts(sr.Ports...))
		}
		rules = append(rules, ending(ways, c.outcome(sr.Outcome, sr.Number, pass)...)...)
	}
	return Chain{name: c.rulesChain(), rules: append(rules, c.outcome(c.Spec.Rest, 0, pass))}
}

func (c HostCapture) outcome(o capture.Outcome, number int, pass []Term) Rule {
	switch o {
	case capture.Pass:
		return append(Rule{count(c.counter(o, number))}, pass...)
	case capture.Reset:
		return Rule{count(c.counter(o, number)), SetClass(capture.MarkReset), Accept}
	default:
		return Rule{goTo(c.askChain())}
	}
}

func (c HostCapture) counter(o capture.Outcome, number int) string {
	return fmt.Sprintf("%s_%d_%s", o, number, c.ID)
}

// parseCounter is counter's inverse.
func parseCounter(name string) (h Hit, ok bool) {
	outcome, rest, _ := strings.Cut(name, "_")
	number, id, ok := strings.Cut(rest, "_")
	n, err := strconv.Atoi(number)
	for _, o := range []capture.Outcome{capture.Pass, capture.Reset} {
		if ok && err == nil && o.String() == outcome {
			return Hit{Capture: id, Rule: n, Outcome: o}, true
		}
	}
	return Hit{}, false
}

// ask is the chain for SYNs that a broker decides.
func (s HostSpec) ask(c HostCapture) Chain {
	if s.Form == NoQueue {
		return Chain{name: c.askChain(), rules: []Rule{{SetClass(capture.MarkTunnel), Accept}}}
	}
	var rules []Rule
	if s.Meter.Rate != 0 {
		rules = append(rules, Rule{s.Meter.over(), count(counterMetered), drop})
	}
	return Chain{name: c.askChain(), rules: append(rules, Rule{ToQueue(c.Queue, s.Form)})}
}

func (s HostSpec) divert(c HostCapture) Chain {
	return Chain{name: c.divertChain(), rules: []Rule{
		{TCP, DestPort(PortDNS), Redirect(c.DNSTCP)},
		{UDP, DestPort(PortDNS), Redirect(c.DNSUDP)},
		{TCP, Redirect(s.TCP)}, // of class tunnel
	}}
}

// ending returns each of ways with the same end.
func ending(ways []Rule, end ...Term) (rules []Rule) {
	for _, w := range ways {
		rules = append(rules, append(slices.Clone(w), end...))
	}
	return rules
}

// product returns each of ways with each of terms behind it.
func product(ways []Rule, terms []Term) (rules []Rule) {
	for _, w := range ways {
		for _, t := range terms {
			rules = append(rules, append(slices.Clone(w), t))
		}
	}
	return rules
}

const (
	meterUsers   = 1 << 16
	meterTimeout = 60 // seconds
)

// name is that of the set which remembers how many SYNs each uid has sent to the queues. It
// stays when rules change; its name has its figures, as elements keep those they were made with.
func (m Meter) name() string { return fmt.Sprintf("meter_%d_%d", m.Rate, m.Burst) }

// over matches what is beyond the meter.
func (m Meter) over() Term {
	return say(fmt.Sprintf("update @%s { meta skuid limit rate over %d/second burst %d packets }", m.name(), m.Rate, m.Burst),
		meta(expr.MetaKeySKUID),
		&expr.Dynset{SrcRegKey: 1, SetName: m.name(), Operation: unix.NFT_DYNSET_OP_UPDATE, Exprs: []expr.Any{
			&expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(m.Rate), Unit: expr.LimitTimeSecond, Burst: m.Burst, Over: true}}})
}
