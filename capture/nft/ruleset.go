package nft

import (
	"fmt"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sshbroker/capture"
)

// The only tables that are ever touched: that of a capture with a network namespace to
// itself, and the host's.
const (
	TableName     = "ssh_capture"
	HostTableName = "ssh_captured"
)

// Chain priorities, each with its reason in docs/architecture.md: hold runs after
// connection tracking and mangle, divert before any foreign DNAT at -100.
const (
	prioApart  = -300 // before connection tracking
	prioHold   = -145
	prioRefuse = -110
	prioDivert = -105
	// All NAT of a hook is done at -100, by the chains' priorities there (NF_IP_PRI_NAT_DST).
	prioConfirm = -99
	prioSettle  = -98 // right behind confirm
	prioLast    = 0
	prioSender  = 200 // after whatever reads or writes marks
)

const portDNS = 53

// Spec says what a capture's rules refer to. Ports are those of sockets on
// 127.0.0.1 and ::1.
type Spec struct {
	Queue    uint16
	Form     QueueForm
	TCP      uint16
	DNSUDP   uint16
	DNSTCP   uint16
	UDPRelay uint16 // 0: UDP that leaves the namespace is refused
}

// QueueForm is how a kernel lets rules send packets to a queue.
type QueueForm uint8

const (
	NoQueue     QueueForm = iota // it has none: every SYN is diverted undecided
	TargetQueue                  // the xt target, through nft's compatibility expression
	NativeQueue                  // nft's own expression
)

// Ruleset is a table, ready to be loaded or shown.
type Ruleset struct {
	table    string
	counters []string // named ones
	meter    *meterSet
	chains   []chain
}

// chain is a base chain, or without a type one that others jump to.
type chain struct {
	name     string
	typ      string
	hook     uint32
	priority int32
	rules    []rule
	constant bool // always the same: where it is already, it is let alone
}

type rule []term

func (r rule) String() string {
	texts := make([]string, len(r))
	for i, t := range r {
		texts[i] = t.text
	}
	return strings.Join(texts, " ")
}

// namedSets are those that have one.
func (r Ruleset) namedSets() map[string]*set {
	sets := map[string]*set{}
	for _, c := range r.chains {
		for _, rule := range c.rules {
			for _, t := range rule {
				if t.set != nil && t.set.name != "" {
					sets[t.set.name] = t.set
				}
			}
		}
	}
	return sets
}

// base returns a chain that packets come to by themselves.
func base(name, typ string, hook uint32, priority int32, rules ...rule) chain {
	return chain{name: name, typ: typ, hook: hook, priority: priority, rules: rules}
}

// Namespace returns the rules of a capture that has a network namespace to itself:
// every SYN waits in the queue, and nothing but loopback gets anywhere. Without a
// queue every SYN that leaves is diverted, and loopback is the namespace's own.
func Namespace(s Spec) Ruleset {
	hold := base("hold", "route", unix.NF_INET_LOCAL_OUT, prioHold,
		rule{tcp(), dport(portDNS), accept()})
	if s.Form == NoQueue {
		hold.rules = append(hold.rules,
			rule{tcp(), syn(), outLoopback(true), setClass(capture.MarkPass), accept()},
			rule{tcp(), syn(), setClass(capture.MarkTunnel), accept()})
	} else {
		hold.rules = append(hold.rules, rule{tcp(), syn(), toQueue(s.Queue, s.Form == NativeQueue)})
	}

	refuse := base("refuse", "filter", unix.NF_INET_LOCAL_OUT, prioRefuse,
		rule{tcp(), class(capture.MarkReset), resetTCP()},
		rule{tcp(), class(capture.MarkUnreachable), hostUnreachable()},
		rule{tcp(), dport(portDNS), accept()},
		rule{udp(), dport(portDNS), accept()},
		// Guard 1: a SYN whose verdict was lost on the way.
		rule{tcp(), syn(), notClass(capture.MarkPass), notClass(capture.MarkTunnel), countedDrop()},
		rule{tcp(), accept()},
		rule{outLoopback(true), accept()})
	if s.UDPRelay != 0 {
		refuse.rules = append(refuse.rules, rule{udp(), accept()})
	}
	// Refused at once, so that QUIC falls back to TCP without waiting.
	refuse.rules = append(refuse.rules, rule{hostUnreachable()})

	divert := base("divert", "nat", unix.NF_INET_LOCAL_OUT, prioDivert,
		rule{tcp(), class(capture.MarkTunnel), redirect(s.TCP)},
		rule{tcp(), dport(portDNS), redirect(s.DNSTCP)},
		rule{udp(), dport(portDNS), redirect(s.DNSUDP)})
	if s.UDPRelay != 0 {
		divert.rules = append(divert.rules, rule{udp(), outLoopback(false), redirect(s.UDPRelay)})
	}
	// Live diverted flows hang once no rule uses NAT any more.
	divert.rules = append(divert.rules, rule{never(), redirect(s.TCP)})

	last := base("last", "filter", unix.NF_INET_POST_ROUTING, prioLast,
		// Guard 2: a SYN for the tunnel that something else diverted first.
		rule{tcp(), syn(), class(capture.MarkTunnel), outLoopback(false), countedDrop()})
	return Ruleset{table: TableName, chains: []chain{hold, refuse, divert, last}}
}

// String renders the rule set in nft's language, for people and golden files.
func (r Ruleset) String() string {
	var parts []string
	for _, name := range r.counters {
		parts = append(parts, fmt.Sprintf("\tcounter %s {\n\t}\n", name))
	}
	if r.meter != nil {
		parts = append(parts, r.meter.String())
	}
	for _, c := range r.chains {
		var b strings.Builder
		fmt.Fprintf(&b, "\tchain %s {\n", c.name)
		if c.typ != "" {
			hook := "output"
			switch c.hook {
			case unix.NF_INET_POST_ROUTING:
				hook = "postrouting"
			case unix.NF_INET_LOCAL_IN:
				hook = "input"
			}
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy accept;\n", c.typ, hook, c.priority)
		}
		for _, rule := range c.rules {
			fmt.Fprintf(&b, "\t\t%s\n", rule)
		}
		parts = append(parts, b.String()+"\t}\n")
	}
	return fmt.Sprintf("table inet %s {\n%s}\n", r.table, strings.Join(parts, "\n"))
}

// Load adds the table in the current network namespace, all of it or nothing.
func (r Ruleset) Load() error {
	s, err := dial(0)
	if err != nil {
		return err
	}
	defer s.Close()
	b := newBatch(r.table)
	b.newTable(0)
	if err := b.fill(r); err != nil {
		return err
	}
	return s.commit(b)
}

// fill adds everything that is in the table.
func (b *batch) fill(r Ruleset) error {
	for _, name := range r.counters {
		b.newCounter(name)
	}
	if r.meter != nil {
		b.newMeter(*r.meter)
	}
	for _, c := range r.chains {
		b.newChain(c)
	}
	for _, c := range r.chains {
		if b.have["chain "+c.name] {
			continue
		}
		for _, rule := range c.rules {
			if err := b.newRule(c.name, rule); err != nil {
				return fmt.Errorf("nftables: %w", err)
			}
		}
	}
	return nil
}

// ProbeQueue finds out which form this kernel takes, in the current network namespace.
func ProbeQueue() QueueForm {
	for _, form := range []QueueForm{NativeQueue, TargetQueue} {
		if takes(0, chain{name: "probe", rules: []rule{{toQueue(0, form == NativeQueue)}}}) {
			return form
		}
	}
	return NoQueue
}

// MatchesCgroups reports whether this kernel can tell packets by the cgroup of their socket,
// as the host's table does.
func MatchesCgroups() bool {
	return takes(0, chain{name: "probe", rules: []rule{{say("socket cgroupv2 level 1", &expr.Socket{Key: expr.SocketKeyCgroupv2, Level: 1, Register: 1})}}})
}

// Zones reports whether this kernel can keep connections apart in zones. Like the end of
// any rule that sets zones, asking has the kernel drop every held SYN.
func Zones() bool { return takes(0, chain{name: "probe", rules: []rule{{ownersZone()}}}) }

// takes reports whether the kernel would take such a table. c is no base chain: one that
// is taken back, even in a transaction that fails, has the kernel drop every held SYN.
func takes(flags uint32, c chain) bool {
	s, err := dial(0)
	if err != nil {
		return false
	}
	defer s.Close()
	b := newBatch(TableName + "_probe")
	b.newTable(flags)
	return b.fill(Ruleset{chains: []chain{c}}) == nil && s.try(b) == nil
}
