package filter

import (
	"cmp"
	"math/bits"
	"slices"
)

// key stands for a thing that a flow may have: a port, an end of a name, the group
// of its owner. Two things may have the same key: what is found under it is
// only worth looking at.
type key uint64

// keyOf mixes a number that tells things of one kind apart.
func keyOf(kind, thing uint64) key {
	x := (thing ^ kind*0x9e3779b97f4a7c15) * 0xff51afd7ed558ccd
	return key(x ^ x>>32)
}

// Texts are told apart by the FNV-1a hash of their bytes.
const hashOfNothing = 0xcbf29ce484222325

func hashed(h uint64, c byte) uint64 { return (h ^ uint64(c)) * 0x100000001b3 }

func hashText(text string) uint64 {
	h := uint64(hashOfNothing)
	for i := range len(text) {
		h = hashed(h, text[i])
	}
	return h
}

// entry is the place of a rule under one of its keys.
type entry struct {
	key   key
	place int32
}

// table holds the places of rules by keys. It does not change once made.
type table struct {
	filled []uint64 // a bit for some bits of each key: most keys that are asked for are not there
	slots  []slot   // open addressing; one is free at least
	shift  int      // of a key, to the slot where the search begins
	places []int32
}

// slot is where the places of one key are. It is free where there are none.
type slot struct {
	key      key
	from, to uint32
}

// newTable makes a table of entries, which it sorts.
func newTable(entries []entry) table {
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.place, b.place))
	})
	entries = slices.Compact(entries)
	keys := 0
	for i := range entries {
		if i == 0 || entries[i].key != entries[i-1].key {
			keys++
		}
	}
	size := bits.Len(uint(2 * keys)) // more than twice as many
	t := table{
		filled: make([]uint64, 1<<max(size+3-6, 0)),
		slots:  make([]slot, 1<<size),
		shift:  64 - size,
		places: make([]int32, len(entries)),
	}
	for i := 0; i < len(entries); {
		k := entries[i].key
		s := slot{key: k, from: uint32(i)}
		for ; i < len(entries) && entries[i].key == k; i++ {
			t.places[i] = entries[i].place
		}
		s.to = uint32(i)
		at := uint64(k) >> t.shift
		for t.slots[at].to != 0 {
			at = (at + 1) & uint64(len(t.slots)-1)
		}
		t.slots[at] = s
		t.filled[uint64(k)>>6&uint64(len(t.filled)-1)] |= 1 << (k & 63)
	}
	return t
}

// mayHave tells whether get is worth its time.
func (t *table) mayHave(k key) bool {
	return t.filled[uint64(k)>>6&uint64(len(t.filled)-1)]&(1<<(k&63)) != 0
}

// get returns the places under k, in their order.
func (t *table) get(k key) []int32 {
	for at := uint64(k) >> t.shift; ; at = (at + 1) & uint64(len(t.slots)-1) {
		switch s := &t.slots[at]; {
		case s.to == 0:
			return nil
		case s.key == k:
			return t.places[s.from:s.to]
		}
	}
}
