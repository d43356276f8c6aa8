package filter

import (
	"encoding/binary"
	"net/netip"

	"sshbroker/filter/egrep"
)

// Starts and ends of texts are looked up by these lengths: one bit each, 1 for the
// length 1. Not by all, as each is one more look for every flow.
const endLengths = 1<<48 | 1<<32 | 1<<28 | 1<<24 | 1<<22 | 1<<20 | 1<<18 | 1<<16 | 1<<14 | 1<<12 | 1<<10 | 1<<9 - 2

const (
	longestPiece = 4    // bytes that are looked up anywhere in a text
	maxRows      = 1024 // of a way
)

// handle is a key, and what kind it is.
type handle struct {
	key  key
	kind kind
}

// way is one way to find a rule: it is put under one handle of each row, and a flow
// that matches has all the handles of one row.
type way struct {
	rows    [][]handle
	program bool // what the handles are of
}

// waysOfRule finds the ways to one rule after another. It keeps what it uses for that.
type waysOfRule struct {
	ways    []way
	rows    [][]handle
	handles []handle
}

// to returns the ways to find r, until it is called again. Of those that are as good
// as one another the first is best: what few flows have comes before what many have.
func (w *waysOfRule) to(r *Rule) []way {
	w.ways, w.rows, w.handles = w.ways[:0], w.rows[:0], w.handles[:0]
	switch {
	case r.Host != nil:
		w.pattern(hostField, r.Host)
	case r.Address != nil:
		w.pattern(addressField, r.Address)
	case r.Prefix.IsValid():
		w.prefix(r.Prefix)
	}
	w.words(userName, r.Users)
	w.words(groupName, r.Groups)
	if !everyPort(r.Ports) {
		w.ports(r.Ports)
	}
	// The last, because askers are looked at one by one until the program is known.
	if r.Application != nil {
		w.pattern(programField, r.Application)
	}
	return w.ways
}

// add ends a row that has the handles from the given one on.
func (w *waysOfRule) add(from int) {
	w.rows = append(w.rows, w.handles[from:len(w.handles):len(w.handles)])
}

// end ends a way that has the rows from the given one on.
func (w *waysOfRule) end(from int, program bool) {
	if n := len(w.rows) - from; 0 < n && n <= maxRows {
		w.ways = append(w.ways, way{w.rows[from:len(w.rows):len(w.rows)], program})
	}
}

// handle appends a handle to the row in the making.
func (w *waysOfRule) handle(k kind, thing uint64) {
	w.handles = append(w.handles, handle{keyOf(uint64(k), thing), k})
}

// pattern adds the ways by the pattern p over f, by what p needs, which is in lower
// case; texts of flows are looked up in lower case too.
func (w *waysOfRule) pattern(f field, p *egrep.Pattern) {
	for _, need := range p.Needs() {
		way := len(w.rows)
		for _, text := range need.Texts {
			row := len(w.handles)
			switch need.Place {
			case egrep.Whole:
				w.handle(wholeText.of(f, 0), hashText(text))
			case egrep.Start:
				w.starts(f, text)
			case egrep.End:
				w.ends(f, text)
			case egrep.Inside:
				w.pieces(f, text)
			}
			w.add(row)
		}
		w.end(way, f == programField)
	}
}

func (w *waysOfRule) starts(f field, text string) {
	h := uint64(hashOfNothing)
	for i := range len(text) {
		h = hashed(h, text[i])
		if uint64(endLengths)>>(i+1)&1 != 0 {
			w.handle(startOfText.of(f, i+1), h)
		}
	}
}

func (w *waysOfRule) ends(f field, text string) {
	h := uint64(hashOfNothing)
	for n := 1; n <= len(text); n++ {
		h = hashed(h, text[len(text)-n])
		if uint64(endLengths)>>n&1 != 0 {
			w.handle(endOfText.of(f, n), h)
		}
	}
}

func (w *waysOfRule) pieces(f field, text string) {
	n := min(len(text), longestPiece)
	k, piece := pieceOfText.of(f, n), uint32(0)
	for i := range len(text) {
		piece = piece<<8 | uint32(text[i])
		if i >= n-1 {
			w.handle(k, pieceOf(piece, n))
		}
	}
}

// pieceOf returns the last n bytes of piece.
func pieceOf(piece uint32, n int) uint64 { return uint64(piece << (32 - 8*n)) }

// words adds the way by one of texts.
func (w *waysOfRule) words(k kind, texts []string) {
	way := len(w.rows)
	for _, text := range texts {
		row := len(w.handles)
		w.handle(k, hashText(text))
		w.add(row)
	}
	w.end(way, false)
}

// ports adds the way by ranges, each in blocks: 2^n ports, of which the first is a
// multiple of 2^n.
func (w *waysOfRule) ports(ranges []PortRange) {
	way := len(w.rows)
	for _, r := range ranges {
		for port := int(r.Lo); port <= int(r.Hi) && len(w.rows)-way <= maxRows; {
			length := 16
			for length > 0 && port%(1<<(17-length)) == 0 && port+1<<(17-length)-1 <= int(r.Hi) {
				length--
			}
			row := len(w.handles)
			k, block := portBlock(uint16(port), length)
			w.handle(k, block)
			w.add(row)
			port += 1 << (16 - length)
		}
	}
	w.end(way, false)
}

// portBlock returns the block of that length in which port is, and its kind.
func portBlock(port uint16, length int) (kind, uint64) {
	return blockOfPorts.of(0, length), uint64(port) >> (16 - length)
}

// prefix adds the way by p.
func (w *waysOfRule) prefix(p netip.Prefix) {
	way, row := len(w.rows), len(w.handles)
	k := prefix6
	if p.Addr().Is4() {
		k = prefix4
	}
	hi, lo := halves(p.Addr())
	w.handle(k.of(0, p.Bits()), firstBits(hi, lo, p.Bits()))
	w.add(row)
	w.end(way, false)
}

// firstBits returns a number for the first n bits of an address.
func firstBits(hi, lo uint64, n int) uint64 {
	if n > 64 {
		return uint64(keyOf(0, hi)) ^ lo>>(128-n)
	}
	return hi >> (64 - n)
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
