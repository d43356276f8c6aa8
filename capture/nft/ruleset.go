package nft

import (
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"sshbroker/capture"
)

// TableName is the only table that is ever touched.
const TableName = "ssh_capture"

// Chain priorities, each with its reason in docs/architecture.md: hold runs after
// connection tracking and mangle, divert before any foreign DNAT at -100.
const (
	prioHold   = -145
	prioRefuse = -110
	prioDivert = -105
	prioLast   = 0
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
type Ruleset struct{ chains []chain }

type chain struct {
	name     string
	typ      nftables.ChainType
	hook     *nftables.ChainHook
	hookName string
	priority int
	rules    [][]term
}

// Namespace returns the rules of a capture that has a network namespace to itself:
// every SYN waits in the queue, and nothing but loopback gets anywhere. Without a
// queue every SYN that leaves is diverted, and loopback is the namespace's own.
func Namespace(s Spec) Ruleset {
	hold := chain{name: "hold", typ: nftables.ChainTypeRoute, hook: nftables.ChainHookOutput, hookName: "output", priority: prioHold,
		rules: [][]term{{tcp(), dport(portDNS), accept()}}}
	if s.Form == NoQueue {
		hold.rules = append(hold.rules,
			[]term{tcp(), syn(), outLoopback(true), setClass(capture.MarkPass), accept()},
			[]term{tcp(), syn(), setClass(capture.MarkTunnel), accept()})
	} else {
		hold.rules = append(hold.rules, []term{tcp(), syn(), toQueue(s.Queue, s.Form == NativeQueue)})
	}

	refuse := chain{name: "refuse", typ: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput, hookName: "output", priority: prioRefuse,
		rules: [][]term{
			{tcp(), class(capture.MarkReset), resetTCP()},
			{tcp(), class(capture.MarkUnreachable), hostUnreachable()},
			{tcp(), dport(portDNS), accept()},
			{udp(), dport(portDNS), accept()},
			// Guard 1: a SYN whose verdict was lost on the way.
			{tcp(), syn(), notClass(capture.MarkPass), notClass(capture.MarkTunnel), countedDrop()},
			{tcp(), accept()},
			{outLoopback(true), accept()},
		}}
	if s.UDPRelay != 0 {
		refuse.rules = append(refuse.rules, []term{udp(), accept()})
	}
	// Refused at once, so that QUIC falls back to TCP without waiting.
	refuse.rules = append(refuse.rules, []term{hostUnreachable()})

	divert := chain{name: "divert", typ: nftables.ChainTypeNAT, hook: nftables.ChainHookOutput, hookName: "output", priority: prioDivert,
		rules: [][]term{
			{tcp(), class(capture.MarkTunnel), redirect(s.TCP)},
			{tcp(), dport(portDNS), redirect(s.DNSTCP)},
			{udp(), dport(portDNS), redirect(s.DNSUDP)},
		}}
	if s.UDPRelay != 0 {
		divert.rules = append(divert.rules, []term{udp(), outLoopback(false), redirect(s.UDPRelay)})
	}
	// Live diverted flows hang once no rule uses NAT any more.
	divert.rules = append(divert.rules, []term{never(), redirect(s.TCP)})

	last := chain{name: "last", typ: nftables.ChainTypeFilter, hook: nftables.ChainHookPostrouting, hookName: "postrouting", priority: prioLast,
		rules: [][]term{
			// Guard 2: a SYN for the tunnel that something else diverted first.
			{tcp(), syn(), class(capture.MarkTunnel), outLoopback(false), countedDrop()},
		}}
	return Ruleset{[]chain{hold, refuse, divert, last}}
}

// String renders the rule set in nft's language, for people and golden files.
func (r Ruleset) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", TableName)
	for i, c := range r.chains {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "\tchain %s {\n\t\ttype %s hook %s priority %d; policy accept;\n", c.name, c.typ, c.hookName, c.priority)
		for _, rule := range c.rules {
			texts := make([]string, len(rule))
			for i, t := range rule {
				texts[i] = t.text
			}
			fmt.Fprintf(&b, "\t\t%s\n", strings.Join(texts, " "))
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// Load adds the table in the current network namespace, all of it or nothing.
func (r Ruleset) Load() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	r.addTo(c)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: load table %s: %w", TableName, err)
	}
	return nil
}

func (r Ruleset) addTo(c *nftables.Conn) {
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: TableName})
	for _, spec := range r.chains {
		priority := nftables.ChainPriority(spec.priority)
		ch := c.AddChain(&nftables.Chain{Name: spec.name, Table: table, Type: spec.typ, Hooknum: spec.hook, Priority: &priority})
		for _, rule := range spec.rules {
			var exprs []expr.Any
			for _, t := range rule {
				exprs = append(exprs, t.exprs...)
			}
			c.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: exprs})
		}
	}
}

// ProbeQueue finds out which form this kernel takes, by a table that nothing refers
// to and that is gone at once.
func ProbeQueue() QueueForm {
	for _, form := range []QueueForm{NativeQueue, TargetQueue} {
		if takes(toQueue(0, form == NativeQueue)) {
			return form
		}
	}
	return NoQueue
}

func takes(t term) bool {
	c, err := nftables.New()
	if err != nil {
		return false
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: TableName + "_probe"})
	ch := c.AddChain(&nftables.Chain{Name: "probe", Table: table})
	c.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: t.exprs})
	if c.Flush() != nil {
		return false
	}
	c.DelTable(table)
	return c.Flush() == nil
}
