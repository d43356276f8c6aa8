package nft

import (
	"cmp"
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
	r := Ruleset{table: HostTableName, counters: []string{counterLostMark, counterDiverted, counterMetered}}
	if s.Meter.Rate != 0 && s.Form != NoQueue {
		r.meter = &meterSet{s.Meter}
	}
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
	r.chains = append(r.chains,
		base("hold", "filter", unix.NF_INET_LOCAL_OUT, prioHold, rule{tcp(), syn(), jump("syn")}),
		chain{name: "syn", rules: append([]rule{{dport(portDNS), accept()}}, s.dispatch(HostCapture.rulesChain)...)})

	refuse := base("refuse", "filter", unix.NF_INET_LOCAL_OUT, prioRefuse, rule{toJudge(), tcp(), syn(), jump("judge")})
	toPool := ending(inPrefixes(pools), jump("pool"))
	refuse.rules = append(refuse.rules, toPool...)
	if refuseUDP {
		refuse.rules = append(refuse.rules, rule{notTCP(), outLoopback(false), jump("datagrams")})
	}
	if !s.NoZones {
		apart := base("apart", "filter", unix.NF_INET_LOCAL_OUT, prioApart, rule{udp(), dport(portDNS), ownersZone()})
		apart.constant = true // kernels drop all that is held when a rule that sets zones goes
		r.chains = append(r.chains, apart)
	}
	if len(all) > 0 {
		refuse.rules = append(refuse.rules, rule{outLoopback(true), jump("straight")})
		r.chains = append(r.chains, straight(append(resolversTCP, s.TCP), resolvers))
	}
	judged := []rule{
		{dport(portDNS), accept()},
		{class(capture.MarkReset), resetTCP()},
		{class(capture.MarkUnreachable), hostUnreachable()},
		{class(capture.MarkTunnel), accept()},
	}
	r.chains = append(r.chains, refuse,
		chain{name: "judge", rules: s.dispatch(func(HostCapture) string { return "judged" })},
		chain{name: "judged", rules: judged},
		chain{name: "pool", rules: s.pool()})
	if refuseUDP {
		r.chains = append(r.chains,
			chain{name: "datagrams", rules: append([]rule{{udp(), dport(portDNS), accept()}}, s.dispatch(s.datagramChain)...)},
			chain{name: "refused", rules: []rule{{hostUnreachable()}}})
	}

	r.chains = append(r.chains,
		base("divert", "nat", unix.NF_INET_LOCAL_OUT, prioDivert,
			rule{class(capture.MarkTunnel), tcp(), jump("captured")},
			rule{dport(portDNS), jump("captured")}),
		chain{name: "captured", rules: s.dispatch(HostCapture.divertChain)},
		// Live diverted flows hang once no rule uses NAT any more. No packet comes here.
		chain{name: "resident", rules: []rule{{redirect(s.TCP)}}},
		// Wherever foreign rules stand, after NAT a SYN is on its way to us or may leave.
		// A route chain, so that the latter goes the way that its mark without our class
		// stands for in foreign policy rules.
		base("confirm", "route", unix.NF_INET_LOCAL_OUT, prioConfirm, rule{tcp(), syn(), jump("check")}, rule{udp(), jump("datagram")}),
		chain{name: "datagram", rules: []rule{{dport(portDNS), goTo("asked")}, {askedFor(portDNS), goTo("asked")}}},
		// A SYN on its way since before it had our class, which nobody has changed since, need
		// not be sent on it again: hold is no route chain. Its class is taken off behind us.
		// A program that gave up while its SYN was held has no socket any more whose owner
		// could be told: nothing has diverted that SYN, or refused it.
		chain{name: "check", rules: slices.Concat([]rule{{direct(), unchanged(), accept()}},
			s.dispatch(func(HostCapture) string { return "checked" }),
			[]rule{{hasOwner(), accept()}, {mayLeave(), setClass(0), accept()}, {notClass(0), drop()}})},
		base("settle", "filter", unix.NF_INET_LOCAL_OUT, prioSettle, rule{direct(), tcp(), syn(), jump("leaves")}),
		chain{name: "leaves", rules: s.dispatch(func(HostCapture) string { return "left" })},
		chain{name: "left", rules: []rule{{setClass(0)}}},
		chain{name: "asked", rules: append(s.dispatch(HostCapture.namesChain),
			// Of a socket that is not captured, from where one was that is.
			ending(toServers(onLoopback(resolvers...)), count(counterDiverted), drop())...)},
		chain{name: "checked", rules: slices.Concat(
			[]rule{{mayLeave(), setClass(0), accept()}},
			ending(toServers(onLoopback(resolversTCP...)), askedFor(portDNS), accept()),
			ending(s.toListener(), class(capture.MarkTunnel), accept()),
			[]rule{
				// Guard 2: a SYN for the tunnel that something else diverted first.
				{class(capture.MarkTunnel), count(counterDiverted), drop()},
				// Guard 1: a SYN whose verdict was lost on the way.
				{count(counterLostMark), drop()},
			})},
		// Guard 2 once more, on the way out. Here the cgroup cannot be asked for; forwarded
		// packets have no owner.
		base("last", "filter", unix.NF_INET_POST_ROUTING, prioLast,
			append(preceded(rule{class(capture.MarkTunnel), tcp(), syn(), outLoopback(false)}, inUsers(users),
				count(counterDiverted), drop()), s.queries(outLoopback(true), noteSender())...)...),
		// Foreign rules of prerouting write marks, WireGuard's for one, and those of
		// input act on them; by now the packet has no socket any more, but its priority.
		base("sender", "filter", unix.NF_INET_LOCAL_IN, prioSender, slices.Concat(
			[]rule{{fromElsewhere(), accept()}},
			s.queries(markSender()),
			ending(toServers(onLoopback(resolvers...)), udp(), jump("arrives")),
			ending(toServers(onLoopback(resolversTCP...)), tcp(), syn(), jump("arrives")))...),
		// Once a resolver is gone, and ssh-captured with it, somebody else may bind its port:
		// what the table still sends there is dropped. A SYN may also meet what lingers of a
		// connection, which has the port until then; any other socket is somebody else's.
		chain{name: "arrives", rules: []rule{{heard(), accept()}, {lingers(), jump("lingers")}, {drop()}}},
		chain{name: "lingers", rules: []rule{{overheard(), drop()}, {accept()}}})

	for _, c := range all {
		r.chains = append(r.chains, s.ask(c), s.divert(c), s.rules(c), chain{name: c.namesChain(), rules: []rule{
			{dport(c.DNSUDP), accept()},
			// Guard 2 for name queries: others would be asked what only our resolver may hear.
			{count(counterDiverted), drop()}}})
		r.counters = append(r.counters, c.counters()...)
	}
	return r
}

// pool is the chain for packets to an address of some capture's pool: what a live
// diverted connection sends, or what may not get out. What a user's capture calls a pool
// concerns that user alone: any range can be.
func (s HostSpec) pool() []rule {
	rules := []rule{{diverted(), accept()}}
	for _, c := range s.Captures {
		for _, way := range inPrefixes(c.Spec.Pools) {
			rules = append(rules, preceded(way, inUsers([]capture.UIDRange{{Lo: c.UID, Hi: c.UID}}), hostUnreachable())...)
		}
	}
	if s.System != nil {
		rules = append(rules, ending(inPrefixes(s.System.Spec.Pools), hostUnreachable())...)
	}
	return rules
}

// queries is a rule about the name queries that arrive at System's resolver over UDP,
// redirected or sent there, where there is a System.
func (s HostSpec) queries(act ...term) []rule {
	if s.System == nil {
		return nil
	}
	return []rule{append(rule{udp(), dport(s.System.DNSUDP)}, act...)}
}

// straight is the chain that refuses what goes to our own sockets without having been
// diverted there, which is before NAT: another user could ask a capture's resolver what
// its owner asked, and have it remember names that the owner never asked for.
func straight(tcpPorts, udpPorts []uint16) chain {
	return chain{name: "straight", rules: append(
		ending(toServers(onLoopback(tcpPorts...)), tcp(), resetTCP()),
		ending(toServers(onLoopback(udpPorts...)), udp(), hostUnreachable())...)}
}

// onLoopback are ports on both of its addresses.
func onLoopback(ports ...uint16) (list []netip.AddrPort) {
	for _, p := range ports {
		list = append(list, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), p), netip.AddrPortFrom(netip.IPv6Loopback(), p))
	}
	return list
}

// toListener are the ways for a packet to go to the listeners.
func (s HostSpec) toListener() []rule {
	return toServers(onLoopback(s.TCP))
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
	return "" // accepted, also where another user's capture around this one refuses
}

// dispatch returns rules that send the packets of captured sockets to a chain: by the
// deepest cgroup first, as a capture within another has its own rules, and System last.
func (s HostSpec) dispatch(chain func(HostCapture) string) (rules []rule) {
	captures := slices.Clone(s.Captures)
	slices.SortStableFunc(captures, func(a, b HostCapture) int { return cmp.Compare(b.Level, a.Level) })
	for len(captures) > 0 {
		var elements []element
		var texts []string
		level := captures[0].Level
		for len(captures) > 0 && captures[0].Level == level {
			c, to := captures[0], chain(captures[0])
			elements = append(elements, element{key: socketKey(c.Cgroup, c.UID), chain: to})
			texts = append(texts, fmt.Sprintf("%d . %d : %s", c.Cgroup, c.UID, goOrAccept(to).text))
			captures = captures[1:]
		}
		rules = append(rules, rule{bySocket(level, elements, texts)})
	}
	if s.System != nil {
		rules = append(rules, preceded(nil, inUsers(s.System.Spec.Users), goOrAccept(chain(*s.System)))...)
	}
	return rules
}

func goOrAccept(chain string) term {
	if chain == "" {
		return accept()
	}
	return goTo(chain)
}

// rules is the chain of what the kernel decides of a capture's SYNs by itself. Its
// rules are those of Spec, in their order.
func (s HostSpec) rules(c HostCapture) chain {
	pass := []term{setClass(capture.MarkDirect), accept()}
	if s.under(c) {
		pass = []term{goTo(s.System.rulesChain())}
	}
	rules := ending(inPrefixes(c.Spec.Pools), goTo(c.askChain()))
	if !c.Spec.Local {
		rules = append(rules, append(rule{outLoopback(true)}, pass...))
	}
	rules = append(rules, ending(toServers(c.Spec.Exempt), pass...)...)
	for _, sr := range c.Spec.Rules {
		places, ports := []rule{nil}, []term{{}}
		if len(sr.Prefixes) > 0 {
			places = inPrefixes(sr.Prefixes)
		}
		if len(sr.Ports) > 0 {
			ports = inPorts(sr.Ports)
		}
		for _, place := range places {
			for _, p := range ports {
				match := slices.Clone(place)
				if p.exprs != nil {
					match = append(match, p)
				}
				rules = append(rules, append(match, c.outcome(sr.Outcome, sr.Number, pass)...))
			}
		}
	}
	return chain{name: c.rulesChain(), rules: append(rules, c.outcome(c.Spec.Rest, 0, pass))}
}

func (c HostCapture) outcome(o capture.Outcome, number int, pass []term) rule {
	switch o {
	case capture.Pass:
		return append(rule{count(c.counter(o, number))}, pass...)
	case capture.Reset:
		return rule{count(c.counter(o, number)), setClass(capture.MarkReset), accept()}
	default:
		return rule{goTo(c.askChain())}
	}
}

func (c HostCapture) counter(o capture.Outcome, number int) string {
	return fmt.Sprintf("%s_%d_%s", o, number, c.ID)
}

// counters are the names of those that rules refers to.
func (c HostCapture) counters() (names []string) {
	there := map[string]bool{}
	for _, sr := range append(slices.Clone(c.Spec.Rules), capture.SpecRule{Outcome: c.Spec.Rest}) {
		name := c.counter(sr.Outcome, sr.Number)
		if (sr.Outcome == capture.Pass || sr.Outcome == capture.Reset) && !there[name] {
			there[name] = true
			names = append(names, name)
		}
	}
	return names
}

// parseCounter is counter's inverse.
func parseCounter(name string) (h Hit, ok bool) {
	parts := strings.SplitN(name, "_", 3)
	if len(parts) != 3 {
		return h, false
	}
	number, err := strconv.Atoi(parts[1])
	h.Capture, h.Rule, h.Outcome = parts[2], number, capture.Pass
	if parts[0] == capture.Reset.String() {
		h.Outcome = capture.Reset
	}
	return h, err == nil && parts[0] == h.Outcome.String()
}

// ask is the chain for SYNs that a broker decides.
func (s HostSpec) ask(c HostCapture) chain {
	if s.Form == NoQueue {
		return chain{name: c.askChain(), rules: []rule{{setClass(capture.MarkTunnel), accept()}}}
	}
	var rules []rule
	if s.Meter.Rate != 0 {
		rules = append(rules, rule{meterSet{s.Meter}.over(), count(counterMetered), drop()})
	}
	return chain{name: c.askChain(), rules: append(rules, rule{toQueue(c.Queue, s.Form == NativeQueue)})}
}

func (s HostSpec) divert(c HostCapture) chain {
	return chain{name: c.divertChain(), rules: []rule{
		{tcp(), dport(portDNS), redirect(c.DNSTCP)},
		{udp(), dport(portDNS), redirect(c.DNSUDP)},
		{tcp(), redirect(s.TCP)}, // of class tunnel
	}}
}

// ending returns each of ways with the same end.
func ending(ways []rule, end ...term) (rules []rule) {
	for _, w := range ways {
		rules = append(rules, append(slices.Clone(w), end...))
	}
	return rules
}

// preceded returns a rule for each of ways, between the same begin and end.
func preceded(begin rule, ways []term, end ...term) (rules []rule) {
	for _, w := range ways {
		rules = append(rules, append(append(slices.Clone(begin), w), end...))
	}
	return rules
}

// meterSet remembers how many SYNs each uid has sent to the queues. It stays when
// rules change; its name has its figures, as elements keep those they were made with.
type meterSet struct{ Meter }

const (
	meterUsers   = 1 << 16
	meterTimeout = 60 // seconds
)

func (m meterSet) name() string { return fmt.Sprintf("meter_%d_%d", m.Rate, m.Burst) }

func (m meterSet) String() string {
	return fmt.Sprintf("\tset %s {\n\t\ttype uid\n\t\tsize %d\n\t\tflags dynamic,timeout\n\t\ttimeout %ds\n\t}\n", m.name(), meterUsers, meterTimeout)
}

// over matches what is beyond the meter.
func (m meterSet) over() term {
	return say(fmt.Sprintf("update @%s { meta skuid limit rate over %d/second burst %d packets }", m.name(), m.Rate, m.Burst),
		meta(expr.MetaKeySKUID),
		&expr.Dynset{SrcRegKey: 1, SetName: m.name(), Operation: unix.NFT_DYNSET_OP_UPDATE, Exprs: []expr.Any{
			&expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(m.Rate), Unit: expr.LimitTimeSecond, Burst: m.Burst, Over: true}}})
}
