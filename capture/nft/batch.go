package nft

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	headerLen = 4      // of nfnetlink, after netlink's
	typeMask  = 0x3fff // of an attribute, without the nested and byte-order flags

	verdictAccept = 1 // NF_ACCEPT

	elementsInOne = 32 << 10 // bytes of set elements in a message: an attribute holds 64 KiB
)

// batch is a transaction to be: the kernel does all of it or nothing.
type batch struct {
	table string
	buf   []byte
	what  []string        // each message is about, by its sequence number
	last  int             // where in buf the last message begins
	sets  uint32          // so far
	have  map[string]bool // names of sets that need not be made
}

func newBatch(table string) *batch {
	b := &batch{table: table, have: map[string]bool{}}
	b.message("transaction", unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, nil)
	return b
}

// add appends one message of nf_tables.
func (b *batch) add(what string, typ, flags uint16, attrs ...[]byte) {
	b.message(what, unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, unix.NFPROTO_INET, attrs)
}

func (b *batch) message(what string, typ, flags uint16, family byte, attrs [][]byte) {
	b.last = len(b.buf)
	b.buf = appendMessage(b.buf, typ, flags, uint32(len(b.what)), family, attrs)
	b.what = append(b.what, what)
}

// appendMessage appends a netlink message with nfnetlink's header.
func appendMessage(buf []byte, typ, flags uint16, seq uint32, family byte, attrs [][]byte) []byte {
	n := unix.SizeofNlMsghdr + headerLen
	for _, a := range attrs {
		n += len(a)
	}
	buf = binary.NativeEndian.AppendUint32(buf, uint32(n))
	buf = binary.NativeEndian.AppendUint16(buf, typ)
	buf = binary.NativeEndian.AppendUint16(buf, unix.NLM_F_REQUEST|flags)
	buf = binary.NativeEndian.AppendUint32(buf, seq)
	buf = binary.NativeEndian.AppendUint32(buf, 0)
	buf = append(buf, family, unix.NFNETLINK_V0)
	buf = binary.BigEndian.AppendUint16(buf, unix.NFNL_SUBSYS_NFTABLES) // read at a batch's two ends only
	for _, a := range attrs {
		buf = append(buf, a...)
	}
	return buf
}

func (b *batch) newTable(flags uint32) {
	b.add("table "+b.table, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, text(unix.NFTA_TABLE_NAME, b.table), num(unix.NFTA_TABLE_FLAGS, flags))
}

func (b *batch) delTable() {
	b.add("delete table "+b.table, unix.NFT_MSG_DELTABLE, 0, text(unix.NFTA_TABLE_NAME, b.table))
}

func (b *batch) newChain(c chain) {
	attrs := [][]byte{text(unix.NFTA_CHAIN_TABLE, b.table), text(unix.NFTA_CHAIN_NAME, c.name)}
	if c.typ != "" {
		attrs = append(attrs,
			nest(unix.NFTA_CHAIN_HOOK, num(unix.NFTA_HOOK_HOOKNUM, c.hook), num(unix.NFTA_HOOK_PRIORITY, uint32(c.priority))),
			num(unix.NFTA_CHAIN_POLICY, verdictAccept), text(unix.NFTA_CHAIN_TYPE, c.typ))
	}
	b.add("chain "+c.name, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, attrs...)
}

// newRule appends a rule, after the sets that are its own.
func (b *batch) newRule(chain string, r rule) error {
	var list []byte
	for _, t := range r {
		exprs := t.exprs
		if t.set != nil {
			name := b.newSet(chain, *t.set)
			exprs = append(exprs[:len(exprs):len(exprs)], &expr.Lookup{SourceRegister: 1, SetName: name, SetID: b.sets,
				IsDestRegSet: t.set.verdicts, DestRegister: unix.NFT_REG_VERDICT})
		}
		for _, e := range exprs {
			data, err := expr.Marshal(unix.NFPROTO_INET, e)
			if err != nil {
				return fmt.Errorf("rule in chain %s: %s: %w", chain, t.text, err)
			}
			list = append(list, nest(unix.NFTA_LIST_ELEM, data)...)
		}
		if t.raw != nil {
			list = append(list, nest(unix.NFTA_LIST_ELEM, t.raw)...)
		}
	}
	b.add("chain "+chain+", rule: "+shorten(r.String()), unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND,
		text(unix.NFTA_RULE_TABLE, b.table), text(unix.NFTA_RULE_CHAIN, chain), nest(unix.NFTA_RULE_EXPRESSIONS, list))
	return nil
}

// anonymousName makes the kernel name a set, which lives as long as the one rule that
// refers to it.
const anonymousName = "__set%d"

// newSet appends a set for the rule that follows, which refers to it by the name that
// is returned, or where the kernel gives the name as b.sets.
func (b *batch) newSet(chain string, s set) string {
	if b.have[s.name] {
		return s.name
	}
	b.sets++
	flags := uint32(unix.NFT_SET_CONSTANT)
	if s.name == "" {
		s.name = anonymousName
		flags |= unix.NFT_SET_ANONYMOUS
	} else {
		b.have[s.name] = true
	}
	if s.ranges {
		flags |= unix.NFT_SET_INTERVAL
	}
	attrs := [][]byte{}
	if s.verdicts {
		flags |= unix.NFT_SET_MAP
		attrs = append(attrs, num(unix.NFTA_SET_DATA_TYPE, unix.NFT_DATA_VERDICT))
	}
	attrs = append(attrs, text(unix.NFTA_SET_TABLE, b.table), text(unix.NFTA_SET_NAME, s.name), num(unix.NFTA_SET_ID, b.sets),
		num(unix.NFTA_SET_FLAGS, flags), num(unix.NFTA_SET_KEY_TYPE, s.keyType), num(unix.NFTA_SET_KEY_LEN, uint32(s.keyLen)),
		nest(unix.NFTA_SET_DESC, num(unix.NFTA_SET_DESC_SIZE, uint32(len(s.elements)))))
	b.add("chain "+chain+", set", unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, attrs...)

	for list := []byte(nil); len(s.elements) > 0; list = list[:0] {
		for len(s.elements) > 0 && len(list) < elementsInOne {
			list, s.elements = append(list, s.elements[0].encode(s.verdicts)...), s.elements[1:]
		}
		b.add("chain "+chain+", elements of a set", unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE,
			text(unix.NFTA_SET_ELEM_LIST_TABLE, b.table), text(unix.NFTA_SET_ELEM_LIST_SET, s.name),
			num(unix.NFTA_SET_ELEM_LIST_SET_ID, b.sets), nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, list))
	}
	return s.name
}

func (e element) encode(verdict bool) []byte {
	attrs := [][]byte{nest(unix.NFTA_SET_ELEM_KEY, attr(unix.NFTA_DATA_VALUE, e.key))}
	if e.end {
		attrs = append(attrs, num(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END))
	}
	if verdict {
		v := num(unix.NFTA_VERDICT_CODE, verdictAccept)
		if e.chain != "" {
			code := int32(unix.NFT_GOTO)
			v = append(num(unix.NFTA_VERDICT_CODE, uint32(code)), text(unix.NFTA_VERDICT_CHAIN, e.chain)...)
		}
		attrs = append(attrs, nest(unix.NFTA_SET_ELEM_DATA, nest(unix.NFTA_DATA_VERDICT, v)))
	}
	return nest(unix.NFTA_LIST_ELEM, attrs...)
}

// attr is one netlink attribute; nest is one that holds others.
func attr(typ uint16, parts ...[]byte) []byte {
	n := unix.SizeofNlAttr
	for _, p := range parts {
		n += len(p)
	}
	b := make([]byte, unix.SizeofNlAttr, (n+3)&^3)
	binary.NativeEndian.PutUint16(b, uint16(n))
	binary.NativeEndian.PutUint16(b[2:], typ)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b[:cap(b)]
}

func nest(typ uint16, parts ...[]byte) []byte { return attr(typ|unix.NLA_F_NESTED, parts...) }
func text(typ uint16, s string) []byte        { return attr(typ, append([]byte(s), 0)) }
func num(typ uint16, v uint32) []byte         { return attr(typ, binary.BigEndian.AppendUint32(nil, v)) }

func shorten(s string) string { return s[:min(len(s), 300)] }

// newCounter appends a named counter. One that is there goes on counting.
func (b *batch) newCounter(name string) {
	zero := make([]byte, 8)
	b.add("counter "+name, unix.NFT_MSG_NEWOBJ, unix.NLM_F_CREATE, text(unix.NFTA_OBJ_TABLE, b.table), text(unix.NFTA_OBJ_NAME, name),
		num(unix.NFTA_OBJ_TYPE, objectCounter),
		nest(unix.NFTA_OBJ_DATA, attr(unix.NFTA_COUNTER_BYTES, zero), attr(unix.NFTA_COUNTER_PACKETS, zero)))
}

// newMeter appends the meter's set. One that is there keeps what it remembers.
func (b *batch) newMeter(m meterSet) {
	b.add("set "+m.name(), unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, text(unix.NFTA_SET_TABLE, b.table), text(unix.NFTA_SET_NAME, m.name()),
		num(unix.NFTA_SET_ID, 0), num(unix.NFTA_SET_FLAGS, unix.NFT_SET_EVAL|unix.NFT_SET_TIMEOUT),
		num(unix.NFTA_SET_KEY_TYPE, typeUID), num(unix.NFTA_SET_KEY_LEN, 4),
		attr(unix.NFTA_SET_TIMEOUT, binary.BigEndian.AppendUint64(nil, meterTimeout*1000)),
		nest(unix.NFTA_SET_DESC, num(unix.NFTA_SET_DESC_SIZE, meterUsers)))
}
