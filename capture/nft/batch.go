package nft

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sshbroker/capture/netlink"
)

const (
	attrTable = 1 // says whose everything is: NFTA_TABLE_NAME, NFTA_CHAIN_TABLE and so on

	verdictAccept = 1 // NF_ACCEPT

	elementsInOne = 32 << 10 // bytes of set elements in a message: an attribute holds 64 KiB
)

// batch is a transaction to be: the kernel does all of it or nothing.
type batch struct {
	table string
	buf   []byte
	what  []string        // each message is about, by its sequence number
	sets  uint32          // so far
	mark  string          // behind the names of sets
	have  map[string]bool // what is there as it is to be: "set NAME", "chain NAME", "counter NAME"
}

func newBatch(table string) *batch {
	b := &batch{table: table, have: map[string]bool{}}
	b.message("transaction", unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, nil)
	return b
}

// add appends one message about something in the table.
func (b *batch) add(what string, typ, flags uint16, attrs ...[]byte) {
	if len(b.what) == 1 {
		flags |= unix.NLM_F_ACK // one answer in any case; failures of others are told unasked
	}
	b.message(what, unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, unix.NFPROTO_INET, append([][]byte{text(attrTable, b.table)}, attrs...))
}

func (b *batch) message(what string, typ, flags uint16, family byte, attrs [][]byte) {
	header := netlink.Netfilter(family, unix.NFNL_SUBSYS_NFTABLES) // the resource is read at a batch's two ends only
	b.buf = netlink.Append(b.buf, typ, unix.NLM_F_REQUEST|flags, uint32(len(b.what)), append([][]byte{header}, attrs...)...)
	b.what = append(b.what, what)
}

func (b *batch) newTable(o Ownership) {
	b.add("table "+b.table, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, netlink.Uint32(unix.NFTA_TABLE_FLAGS, uint32(o)))
}

func (b *batch) delTable() { b.add("delete table "+b.table, unix.NFT_MSG_DELTABLE, 0) }

// fill adds everything that is in the table.
func (b *batch) fill(r Ruleset) error {
	_, counters := r.refersTo()
	for _, name := range counters {
		b.newCounter(name)
	}
	if r.meter.Rate != 0 {
		b.newMeter(r.meter)
	}
	for _, c := range r.Chains {
		b.newChain(c)
	}
	for _, c := range r.Chains {
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

func (b *batch) newChain(c Chain) {
	attrs := [][]byte{text(unix.NFTA_CHAIN_NAME, c.name)}
	if c.typ != "" {
		attrs = append(attrs,
			netlink.Nest(unix.NFTA_CHAIN_HOOK, netlink.Uint32(unix.NFTA_HOOK_HOOKNUM, c.hook), netlink.Uint32(unix.NFTA_HOOK_PRIORITY, uint32(c.priority))),
			netlink.Uint32(unix.NFTA_CHAIN_POLICY, verdictAccept), text(unix.NFTA_CHAIN_TYPE, c.typ))
	}
	b.add("chain "+c.name, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, attrs...)
}

// newRule appends a rule, after the sets that are its own.
func (b *batch) newRule(chain string, r Rule) error {
	var list []byte
	for _, t := range r {
		exprs := t.exprs
		if t.set != nil {
			name := b.newSet(chain, *t.set)
			exprs = append(exprs[:len(exprs):len(exprs)], &expr.Lookup{SourceRegister: 1, SetName: name, SetID: b.sets,
				IsDestRegSet: t.set.spans[0].chain != "", DestRegister: unix.NFT_REG_VERDICT})
		}
		for _, e := range exprs {
			data, err := expr.Marshal(unix.NFPROTO_INET, e)
			if err != nil {
				return fmt.Errorf("rule in chain %s: %s: %w", chain, t.text, err)
			}
			list = append(list, netlink.Nest(unix.NFTA_LIST_ELEM, data)...)
		}
		if t.raw != nil {
			list = append(list, netlink.Nest(unix.NFTA_LIST_ELEM, t.raw)...)
		}
	}
	b.add("chain "+chain+", rule: "+shorten(r.String()), unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND,
		text(unix.NFTA_RULE_CHAIN, chain), netlink.Nest(unix.NFTA_RULE_EXPRESSIONS, list))
	return nil
}

// anonymousName makes the kernel name a set, which lives as long as the one rule that
// refers to it.
const anonymousName = "__set%d"

// newSet appends a set for the rule that follows, which refers to it by the name that
// is returned, or where the kernel gives the name as b.sets.
func (b *batch) newSet(chain string, s set) string {
	if s.name != "" {
		s.name += b.mark
	}
	if b.have["set "+s.name] {
		return s.name
	}
	b.sets++
	flags := uint32(unix.NFT_SET_CONSTANT)
	if s.name == "" {
		s.name = anonymousName
		flags |= unix.NFT_SET_ANONYMOUS
	} else {
		b.have["set "+s.name] = true
	}
	size := len(s.spans)
	if s.ranges {
		flags |= unix.NFT_SET_INTERVAL
		size *= 2
	}
	attrs := [][]byte{}
	if s.spans[0].chain != "" {
		flags |= unix.NFT_SET_MAP
		attrs = append(attrs, netlink.Uint32(unix.NFTA_SET_DATA_TYPE, unix.NFT_DATA_VERDICT))
	}
	attrs = append(attrs, text(unix.NFTA_SET_NAME, s.name), netlink.Uint32(unix.NFTA_SET_ID, b.sets),
		netlink.Uint32(unix.NFTA_SET_FLAGS, flags), netlink.Uint32(unix.NFTA_SET_KEY_TYPE, s.keyType), netlink.Uint32(unix.NFTA_SET_KEY_LEN, uint32(len(s.spans[0].first))),
		netlink.Nest(unix.NFTA_SET_DESC, netlink.Uint32(unix.NFTA_SET_DESC_SIZE, uint32(size))))
	b.add("chain "+chain+", set", unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, attrs...)

	for list := []byte(nil); len(s.spans) > 0; list = list[:0] {
		for len(s.spans) > 0 && len(list) < elementsInOne {
			list, s.spans = append(list, s.spans[0].encode(s.ranges)...), s.spans[1:]
		}
		b.add("chain "+chain+", elements of a set", unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE,
			text(unix.NFTA_SET_ELEM_LIST_SET, s.name),
			netlink.Uint32(unix.NFTA_SET_ELEM_LIST_SET_ID, b.sets), netlink.Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, list))
	}
	return s.name
}

func (s span) encode(ranges bool) []byte {
	attrs := [][]byte{setKey(s.first)}
	if s.chain != "" {
		code := int32(unix.NFT_GOTO)
		attrs = append(attrs, netlink.Nest(unix.NFTA_SET_ELEM_DATA, netlink.Nest(unix.NFTA_DATA_VERDICT,
			netlink.Uint32(unix.NFTA_VERDICT_CODE, uint32(code)), text(unix.NFTA_VERDICT_CHAIN, s.chain))))
	}
	b := netlink.Nest(unix.NFTA_LIST_ELEM, attrs...)
	if beyond := next(s.last); ranges && beyond != nil {
		b = append(b, netlink.Nest(unix.NFTA_LIST_ELEM, setKey(beyond), netlink.Uint32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END))...)
	}
	return b
}

func setKey(key []byte) []byte {
	return netlink.Nest(unix.NFTA_SET_ELEM_KEY, netlink.Attr(unix.NFTA_DATA_VALUE, key))
}

func text(typ uint16, s string) []byte { return netlink.Attr(typ, []byte(s), []byte{0}) }

func shorten(s string) string { return s[:min(len(s), 300)] }

// newCounter appends a named counter, unless it is there and goes on counting.
func (b *batch) newCounter(name string) {
	if b.have["counter "+name] {
		return
	}
	b.have["counter "+name] = true
	zero := make([]byte, 8)
	b.add("counter "+name, unix.NFT_MSG_NEWOBJ, unix.NLM_F_CREATE, text(unix.NFTA_OBJ_NAME, name),
		netlink.Uint32(unix.NFTA_OBJ_TYPE, objectCounter),
		netlink.Nest(unix.NFTA_OBJ_DATA, netlink.Attr(unix.NFTA_COUNTER_BYTES, zero), netlink.Attr(unix.NFTA_COUNTER_PACKETS, zero)))
}

// newMeter appends the meter's set. One that is there keeps what it remembers.
func (b *batch) newMeter(m Meter) {
	b.add("set "+m.name(), unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, text(unix.NFTA_SET_NAME, m.name()),
		netlink.Uint32(unix.NFTA_SET_ID, 0), netlink.Uint32(unix.NFTA_SET_FLAGS, unix.NFT_SET_EVAL|unix.NFT_SET_TIMEOUT),
		netlink.Uint32(unix.NFTA_SET_KEY_TYPE, typeUID), netlink.Uint32(unix.NFTA_SET_KEY_LEN, 4),
		netlink.Attr(unix.NFTA_SET_TIMEOUT, binary.BigEndian.AppendUint64(nil, meterTimeout*1000)),
		netlink.Nest(unix.NFTA_SET_DESC, netlink.Uint32(unix.NFTA_SET_DESC_SIZE, meterUsers)))
}
