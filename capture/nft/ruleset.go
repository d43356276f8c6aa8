package nft

import (
	"slices"
	"strings"

	"github.com/google/nftables/expr"
)

// HostTableName is that of the host's table.
const HostTableName = "ssh_captured"

// Chain priorities, each with its reason in docs/architecture.md: hold runs after
// connection tracking and mangle, divert before any foreign DNAT at -100.
const (
	prioApart  = -300 // before connection tracking
	PrioHold   = -145
	PrioRefuse = -110
	PrioDivert = -105
	// All NAT of a hook is done at -100, by the chains' priorities there (NF_IP_PRI_NAT_DST).
	prioConfirm = -99
	prioSettle  = -98 // right behind confirm
	PrioLast    = 0
	prioSender  = 200 // after whatever reads or writes marks
)

// PortDNS is where name queries go.
const PortDNS = 53

// QueueForm is how a kernel lets rules send packets to a queue.
type QueueForm uint8

const (
	NoQueue     QueueForm = iota // it has none: every SYN is diverted undecided
	TargetQueue                  // the xt target, through nft's compatibility expression
	NativeQueue                  // nft's own expression
)

// Ruleset is a table, ready to be loaded.
type Ruleset struct {
	Table  string
	Chains []Chain
	meter  Meter
}

// Chain is a base chain, or without a type one that others jump to.
type Chain struct {
	name     string
	typ      string
	hook     uint32
	priority int32
	rules    []Rule
	constant bool // always the same: where it is already, it is let alone
}

// Base returns a chain that packets come to by themselves.
func Base(name, typ string, hook uint32, priority int32, rules ...Rule) Chain {
	return Chain{name: name, typ: typ, hook: hook, priority: priority, rules: rules}
}

// Rule is what is done, at its end, with the packets that its conditions match.
type Rule []Term

// String is the rule in nft's language.
func (r Rule) String() string {
	texts := make([]string, len(r))
	for i, t := range r {
		texts[i] = t.text
	}
	return strings.Join(texts, " ")
}

// refersTo returns the sets and the counters that rules refer to by name, the latter in
// order and as often as they do.
func (r Ruleset) refersTo() (sets map[string]*set, counters []string) {
	sets = map[string]*set{}
	for _, c := range r.Chains {
		for _, t := range slices.Concat(c.rules...) {
			if t.set != nil && t.set.name != "" {
				sets[t.set.name] = t.set
			}
			for _, e := range t.exprs {
				if counter, ok := e.(*expr.Objref); ok {
					counters = append(counters, counter.Name)
				}
			}
		}
	}
	return sets, counters
}

// ProbeQueue finds out which form this kernel takes, in the current network namespace.
func ProbeQueue() QueueForm {
	for _, form := range []QueueForm{NativeQueue, TargetQueue} {
		if takes(0, Rule{ToQueue(0, form)}) {
			return form
		}
	}
	return NoQueue
}

// MatchesCgroups reports whether this kernel can tell packets by the cgroup of their socket,
// as the host's table does.
func MatchesCgroups() bool {
	return takes(0, Rule{say("socket cgroupv2 level 1", &expr.Socket{Key: expr.SocketKeyCgroupv2, Level: 1, Register: 1})})
}

// Zones reports whether this kernel can keep connections apart in zones. Like the end of
// any rule that sets zones, asking has the kernel drop every held SYN.
func Zones() bool { return takes(0, Rule{ownersZone}) }

// takes reports whether the kernel would take such a table. The chain is no base chain: one
// that is taken back, even in a transaction that fails, has the kernel drop every held SYN.
func takes(o Ownership, rules ...Rule) bool {
	s, err := dial(0)
	if err != nil {
		return false
	}
	defer s.Close()
	b := newBatch(HostTableName + "_probe")
	b.newTable(o)
	return b.fill(Ruleset{Chains: []Chain{{name: "probe", rules: rules}}}) == nil && s.try(b) == nil
}
