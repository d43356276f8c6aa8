package filter

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"sshbroker/filter/egrep"
)

// index finds the rules of a list that are worth holding against a flow. It knows
// each rule by one of its conditions, the one that fewest others share: a flow
// that has not what that condition needs does not meet the rule. Whether a rule
// matches is not for the index to say.
//
// What a condition needs is put in keys, of which a matching flow has one: its port
// and the blocks of ports around it, the prefixes of its address, its owner; and,
// because an egrep.Pattern tells what it needs, the beginnings, ends and pieces of
// its names, of its address as text and of its program. A search looks up the keys
// of its flow.
type index struct {
	table
	always []int32 // places of the rules without such a condition

	// Places of rules that are known by their program: of those that are alike in all
	// else the first. They tell whether the program has to be asked for.
	askers []int32

	// What kinds of keys there are.
	texts         [fields]textKeys
	ports         []uint8 // lengths of blocks of ports
	nets4, nets6  []uint8 // lengths of prefixes
	users, groups bool
}

// textKeys says which keys of a text there are.
type textKeys struct {
	whole        bool
	starts, ends uint64 // by length: bit 0 is for 1
	pieces       uint8  // likewise
}

// field is a text of a flow that patterns are held against.
type field uint64

const (
	hostField field = iota
	addressField
	programField
	fields
)

// kind is a class of keys, with the field and the length that belong to it.
type kind uint64

const (
	wholeText kind = iota << 16
	startOfText
	endOfText
	pieceOfText
	blockOfPorts // 16 bits of a port, cut to the length
	prefix4
	prefix6
	userName
	groupName
)

func (k kind) of(f field, length int) kind { return k | kind(f)<<8 | kind(length) }
func (k kind) class() kind                 { return k &^ 0xffff }
func (k kind) field() field                { return field(k >> 8 & 0xff) }
func (k kind) length() uint8               { return uint8(k) }

const (
	longestEnd   = 64  // bytes of a text that are looked up at its start or end
	longestPiece = 4   // in the middle; of a longer text, the piece that fewest rules need is
	maxRows      = 512 // of a way
)

// handle is a key, and what kind it is.
type handle struct {
	key  key
	kind kind
}

// way is one way to find a rule: it is put under one handle of each row, and a flow
// that matches has the handles of a row. The zero way finds nothing.
type way struct {
	rows    [][]handle
	program bool
}

func newIndex(rules []Rule) *index {
	shared := make(map[key]int32) // rules that could be put there
	for i := range rules {
		for _, w := range waysTo(&rules[i]) {
			for _, row := range w.rows {
				for _, h := range row {
					shared[h.key]++
				}
			}
		}
	}
	ix := new(index)
	var entries []entry
	asking := make(map[string]bool)
	for i := range rules {
		best, least := way{}, int32(0)
		for _, w := range waysTo(&rules[i]) {
			crowd := int32(0)
			for _, row := range w.rows {
				crowd = max(crowd, shared[rarest(row, shared).key])
			}
			if best.rows == nil || crowd < least {
				best, least = w, crowd
			}
		}
		if best.rows == nil {
			ix.always = append(ix.always, int32(i))
		}
		for _, row := range best.rows {
			h := rarest(row, shared)
			entries = append(entries, entry{h.key, int32(i)})
			ix.note(h.kind)
		}
		if other := rules[i].butProgram(); best.program && !asking[other] {
			asking[other] = true
			ix.askers = append(ix.askers, int32(i))
		}
	}
	ix.table = newTable(entries)
	return ix
}

func rarest(row []handle, shared map[key]int32) handle {
	best := row[0]
	for _, h := range row[1:] {
		if shared[h.key] < shared[best.key] {
			best = h
		}
	}
	return best
}

// butProgram is the same for rules that hold for the same flows as long as any
// program does.
func (r *Rule) butProgram() string {
	pattern := func(p *egrep.Pattern) string {
		if p == nil {
			return ""
		}
		return fmt.Sprintf("%v %v", p.Options(), p)
	}
	return fmt.Sprintf("%q %q %q %v %v %q %q", r.Network, pattern(r.Host), pattern(r.Address), r.Prefix, r.Ports, r.Users, r.Groups)
}

// note remembers that there are keys of k, so that they are looked up.
func (ix *index) note(k kind) {
	text := func() *textKeys { return &ix.texts[k.field()] }
	switch k.class() {
	case wholeText:
		text().whole = true
	case startOfText:
		text().starts |= 1 << (k.length() - 1)
	case endOfText:
		text().ends |= 1 << (k.length() - 1)
	case pieceOfText:
		text().pieces |= 1 << (k.length() - 1)
	case blockOfPorts:
		ix.ports = with(ix.ports, k.length())
	case prefix4:
		ix.nets4 = with(ix.nets4, k.length())
	case prefix6:
		ix.nets6 = with(ix.nets6, k.length())
	case userName:
		ix.users = true
	case groupName:
		ix.groups = true
	}
}

// waysTo returns the ways to find r. Of those that are as good as one another the
// first is best: what few flows have comes before what many have.
func waysTo(r *Rule) []way {
	var ways []way
	add := func(w way) {
		if len(w.rows) > 0 && len(w.rows) <= maxRows {
			ways = append(ways, w)
		}
	}
	switch {
	case r.Host != nil:
		ways = appendPattern(ways, hostField, r.Host)
	case r.Address != nil:
		ways = appendPattern(ways, addressField, r.Address)
	case r.Prefix.IsValid():
		add(way{rows: [][]handle{{prefixHandle(r.Prefix.Addr(), r.Prefix.Bits())}}})
	}
	add(way{rows: textRows(userName, r.Users)})
	add(way{rows: textRows(groupName, r.Groups)})
	if !everyPort(r.Ports) {
		add(way{rows: portRows(r.Ports)})
	}
	// The last, because askers are looked at one by one as long as nobody asked.
	if r.Application != nil {
		ways = appendPattern(ways, programField, r.Application)
	}
	return ways
}

// appendPattern appends the ways to find a rule by the pattern p over f.
func appendPattern(ways []way, f field, p *egrep.Pattern) []way {
	for _, need := range p.Needs() {
		if len(need.Texts) > maxRows {
			continue
		}
		w := way{program: f == programField}
		for _, text := range need.Texts {
			w.rows = append(w.rows, patternRow(f, need.Place, text))
		}
		ways = append(ways, w)
	}
	return ways
}

// patternRow returns the handles that a text has in common with every text that has
// the given one at that place.
func patternRow(f field, place egrep.Place, text string) []handle {
	switch place {
	case egrep.Whole:
		k := wholeText.of(f, 0)
		return []handle{{keyOf(uint64(k), hashText(text)), k}}
	case egrep.Start:
		text = text[:min(len(text), longestEnd)]
		k := startOfText.of(f, len(text))
		return []handle{{keyOf(uint64(k), hashText(text)), k}}
	case egrep.End:
		text = text[max(len(text)-longestEnd, 0):]
		k := endOfText.of(f, len(text))
		return []handle{{keyOf(uint64(k), hashBackwards(text)), k}}
	}
	n := min(len(text), longestPiece)
	k := pieceOfText.of(f, n)
	row := make([]handle, 0, len(text)-n+1)
	piece := uint32(0)
	for i := range len(text) {
		piece = piece<<8 | uint32(lower(text[i]))
		if i >= n-1 {
			row = append(row, handle{keyOf(uint64(k), pieceOf(piece, n)), k})
		}
	}
	return row
}

// pieceOf returns the last n bytes of piece.
func pieceOf(piece uint32, n int) uint64 { return uint64(piece << (32 - 8*n)) }

func textRows(k kind, texts []string) (rows [][]handle) {
	for _, text := range texts {
		rows = append(rows, []handle{{keyOf(uint64(k), hashText(text)), k}})
	}
	return rows
}

// portRows writes ranges as blocks: 2^n ports, of which the first is a multiple of 2^n.
func portRows(ranges []PortRange) (rows [][]handle) {
	for _, r := range ranges {
		for port := int(r.Lo); port <= int(r.Hi) && len(rows) <= maxRows; {
			length := 16
			for port&(1<<(17-length)-1) == 0 && length > 0 && port+1<<(17-length)-1 <= int(r.Hi) {
				length--
			}
			rows = append(rows, []handle{portHandle(uint16(port), length)})
			port += 1 << (16 - length)
		}
	}
	return rows
}

func portHandle(port uint16, length int) handle {
	k := blockOfPorts.of(0, length)
	return handle{keyOf(uint64(k), uint64(port)>>(16-length)), k}
}

// prefixHandle is the handle of the first bits of addr, which has no zone.
func prefixHandle(addr netip.Addr, length int) handle {
	hi, lo := halves(addr)
	k := prefix6.of(0, length)
	if addr.Is4() {
		k = prefix4.of(0, length)
	}
	return handle{k.prefixKey(hi, lo), k}
}

// prefixKey is the key of the first bits of an address, as many as k says.
func (k kind) prefixKey(hi, lo uint64) key {
	if n := k.length(); n > 64 {
		return keyOf(uint64(k), uint64(keyOf(0, hi))^lo>>(128-n))
	}
	return keyOf(uint64(k), hi>>(64-k.length()))
}

// halves returns the bits of addr from the first half on; IPv4 has the first 32.
func halves(addr netip.Addr) (hi, lo uint64) {
	if addr.Is4() {
		b := addr.As4()
		return uint64(binary.BigEndian.Uint32(b[:])) << 32, 0
	}
	b := addr.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

// with returns lengths, in which n is.
func with(lengths []uint8, n uint8) []uint8 {
	if slices.Contains(lengths, n) {
		return lengths
	}
	return append(lengths, n)
}
