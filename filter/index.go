package filter

import (
	"fmt"
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

// newIndex makes the index of rules.
func newIndex(rules []Rule) *index {
	var ways waysOfRule
	shared := make(map[key]int32) // rules that could be put there
	for i := range rules {
		for _, w := range ways.to(&rules[i]) {
			for _, row := range w.rows {
				for _, h := range row {
					shared[h.key]++
				}
			}
		}
	}
	ix := new(index)
	entries := make([]entry, 0, len(rules))
	alike := make(map[string]bool)
	for i := range rules {
		var best way
		least := int32(0)
		for _, w := range ways.to(&rules[i]) {
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
		if best.program {
			if other := rules[i].butProgram(); !alike[other] {
				alike[other] = true
				ix.askers = append(ix.askers, int32(i))
			}
		}
	}
	ix.table = newTable(entries)
	return ix
}

// rarest returns the handle of row that fewest rules share, of such the last.
func rarest(row []handle, shared map[key]int32) handle {
	best := row[0]
	for _, h := range row[1:] {
		if shared[h.key] <= shared[best.key] {
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

// with returns lengths, in which n is.
func with(lengths []uint8, n uint8) []uint8 {
	if slices.Contains(lengths, n) {
		return lengths
	}
	return append(lengths, n)
}
