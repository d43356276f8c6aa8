package filter

import "strings"

// list is rules with an index over them.
type list struct {
	rules []Rule
	index *index
	away  []bool // by place: it is for a network that the host is not on; nil: none is
}

func (l *list) inForce(i int) bool { return l.away == nil || !l.away[i] }

// search looks for the first rule of a list that matches a flow.
type search struct {
	matcher
	*list
	best int    // place of the first rule that is known to match; len(rules) where none is
	name string // by which it does

	// Place of the first rule that holds but for the program, which has not been
	// asked for; len(rules) where none does.
	waiting int
}

// first returns the place of the first rule of l that matches f, and the name by
// which it does; below zero where none matches.
//
// The program is asked for just if it would be by trying rule after rule: if a rule
// before the first that matches without it holds in all else.
func (l *list) first(f *Flow) (place int, name string) {
	n := len(l.rules)
	if n == 0 {
		return -1, ""
	}
	s := search{matcher: newMatcher(f), list: l, best: n, waiting: n}
	s.byFlow()
	if s.needsProgram() && s.program() != "" {
		if s.waiting < s.best {
			s.byFlow()
		}
		s.byProgram()
	}
	if s.best == n {
		return -1, ""
	}
	return s.best, s.name
}

// byFlow tries the rules that are found by everything but the program.
func (s *search) byFlow() {
	ix, f := s.index, s.flow
	s.try(ix.always)
	for _, n := range ix.ports {
		k, block := portBlock(f.Port, int(n))
		s.look(keyOf(uint64(k), block))
	}
	if ix.users {
		s.look(keyOf(uint64(userName), hashText(f.User)))
	}
	if ix.groups {
		for _, g := range f.Groups {
			s.look(keyOf(uint64(groupName), hashText(g)))
		}
	}
	s.byAddress()
	hosts := &ix.texts[hostField]
	switch {
	case *hosts == textKeys{}:
	case len(f.Names) == 0:
		tryText(s, hostField, s.addressText(), false)
	default:
		for _, name := range f.Names {
			tryText(s, hostField, name, false)
		}
	}
}

func (s *search) byAddress() {
	ix := s.index
	if !s.addr.IsValid() {
		return
	}
	if (ix.texts[addressField] != textKeys{}) {
		tryText(s, addressField, s.addressText(), false)
	}
	k, lengths := prefix6, ix.nets6
	if s.addr.Is4() {
		k, lengths = prefix4, ix.nets4
	}
	if len(lengths) == 0 {
		return
	}
	hi, lo := halves(s.addr)
	for _, n := range lengths {
		s.look(keyOf(uint64(k.of(0, int(n))), firstBits(hi, lo, int(n))))
	}
}

// tryText tries the rules that are found by a text of the flow. With startOnly those
// are left out that are found as well by a longer text that ends with this one.
func tryText[T string | []byte](s *search, f field, text T, startOnly bool) {
	keys := &s.index.texts[f]
	if keys.whole || keys.starts != 0 {
		h := uint64(hashOfNothing)
		for i := range len(text) {
			h = hashed(h, lower(text[i]))
			if keys.starts>>i&1 != 0 {
				s.look(keyOf(uint64(startOfText.of(f, i+1)), h))
			}
		}
		if keys.whole {
			s.look(keyOf(uint64(wholeText.of(f, 0)), h))
		}
	}
	if startOnly {
		return
	}
	h := uint64(hashOfNothing)
	for n, ends := 1, keys.ends; n <= len(text) && ends != 0; n, ends = n+1, ends>>1 {
		h = hashed(h, lower(text[len(text)-n]))
		if ends&1 != 0 {
			s.look(keyOf(uint64(endOfText.of(f, n)), h))
		}
	}
	for n := 1; n <= longestPiece; n++ {
		if keys.pieces>>(n-1)&1 == 0 {
			continue
		}
		k, piece := uint64(pieceOfText.of(f, n)), uint32(0)
		for i := range len(text) {
			piece = piece<<8 | uint32(lower(text[i]))
			if i >= n-1 {
				s.look(keyOf(k, pieceOf(piece, n)))
			}
		}
	}
}

// look tries the rules under k. Few keys that are looked up are there.
func (s *search) look(k key) {
	if s.index.mayHave(k) {
		s.try(s.index.get(k))
	}
}

// try holds the rules at places, which are in order, against the flow.
func (s *search) try(places []int32) {
	for _, p := range places {
		i := int(p)
		if i >= s.best {
			return
		}
		if !s.inForce(i) {
			continue
		}
		r := &s.rules[i]
		if r.Application != nil && !s.exeKnown {
			if failed, _ := s.failsAnyway(r); failed == 0 {
				s.waiting = min(s.waiting, i)
			}
			continue
		}
		if failed, name := s.fails(r); failed == 0 {
			s.best, s.name = i, name
			return
		}
	}
}

// needsProgram tells whether a rule before the best waits for the program.
func (s *search) needsProgram() bool {
	if s.waiting < s.best {
		return true
	}
	for _, p := range s.index.askers {
		i := int(p)
		if i >= s.best {
			return false
		}
		if !s.inForce(i) {
			continue
		}
		if failed, _ := s.failsAnyway(&s.rules[i]); failed == 0 {
			return true
		}
	}
	return false
}

// byProgram tries the rules that are found by the program, which is known.
func (s *search) byProgram() {
	if (s.index.texts[programField] == textKeys{}) {
		return
	}
	exe := s.program()
	tryText(s, programField, exe, false)
	tryText(s, programField, exe[strings.LastIndexByte(exe, '/')+1:], true)
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c - 'A' + 'a'
	}
	return c
}
