package names

import (
	"container/list"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

var (
	errPoolFull  = errors.New("every pseudo address is in use or in quarantine")
	errShareFull = errors.New("this user's pseudo addresses are all in use or in quarantine")
	errUnsaved   = errors.New("pseudo address cannot be saved")
)

// pool gives pseudo addresses to names. An address stands for one name for good,
// until there is no fresh one left and it has not been used for the quarantine.
//
// IPv4 and IPv6 pseudo addresses of a name have the same offset in their prefixes.
type pool struct {
	v4, v6     netip.Prefix
	end        uint32 // offsets are 1 to end-1
	max        int
	quarantine time.Duration

	mu       sync.Mutex
	journal  *journal // nil: none
	byName   map[string]*assigned
	byOffset map[uint32]*assigned
	unused   list.List // of *assigned, least recently used first
	next     uint32    // the next offset that may be fresh
}

type assigned struct {
	offset uint32
	name   string
	used   time.Time
	holds  int
	place  *list.Element // in unused

	share        *share        // it counts there; nil: it counts nowhere
	placeInShare *list.Element // in the share's unused
}

// share is what one user may take of the pool. The pool's lock guards it.
type share struct {
	max    int
	unused list.List // of *assigned, least recently used first
}

func (s *share) full() bool { return s != nil && s.unused.Len() >= s.max }

func newPool(v4, v6 netip.Prefix, max int, quarantine time.Duration) (*pool, error) {
	if !v4.IsValid() || !v4.Addr().Is4() || v4.Bits() > 30 {
		return nil, fmt.Errorf("%v cannot be the IPv4 pool", v4)
	}
	hostBits := 32 - v4.Bits()
	if v6 != (netip.Prefix{}) {
		if !v6.IsValid() || !v6.Addr().Is6() || v6.Addr().Is4In6() || v6.Bits() > 126 {
			return nil, fmt.Errorf("%v cannot be the IPv6 pool", v6)
		}
		hostBits = min(hostBits, 128-v6.Bits())
	}
	return &pool{
		v4:         v4.Masked(),
		v6:         v6.Masked(),
		end:        uint32(1)<<min(hostBits, 24) - 1, // without the broadcast address
		max:        max,
		quarantine: quarantine,
		byName:     make(map[string]*assigned),
		byOffset:   make(map[uint32]*assigned),
		next:       1,
	}, nil
}

func (p *pool) contains(addr netip.Addr) bool {
	addr = addr.WithZone("")
	return p.v4.Contains(addr) || p.v6.IsValid() && p.v6.Contains(addr)
}

// usable passes over addresses that some programs take for networks or broadcasts.
func (p *pool) usable(offset uint32) bool {
	last := p.addr4(offset).As4()[3]
	return offset > 0 && offset < p.end && last != 0 && last != 255
}

func (p *pool) addr4(offset uint32) netip.Addr {
	b := p.v4.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+offset)
	return netip.AddrFrom4(b)
}

func (p *pool) addr6(offset uint32) netip.Addr {
	b := p.v6.Addr().As16()
	low := binary.BigEndian.Uint32(b[12:]) // masked: the sum stays in the prefix
	binary.BigEndian.PutUint32(b[12:], low+offset)
	return netip.AddrFrom16(b)
}

// offset is the place of addr in its prefix; false for addresses that are never given.
func (p *pool) offset(addr netip.Addr) (uint32, bool) {
	addr = addr.WithZone("")
	var off uint32
	switch {
	case p.v4.Contains(addr):
		a, base := addr.As4(), p.v4.Addr().As4()
		off = binary.BigEndian.Uint32(a[:]) - binary.BigEndian.Uint32(base[:])
	case p.v6.IsValid() && p.v6.Contains(addr):
		a, base := addr.As16(), p.v6.Addr().As16()
		off = binary.BigEndian.Uint32(a[12:]) - binary.BigEndian.Uint32(base[12:])
		if p.addr6(off) != addr {
			return 0, false
		}
	default:
		return 0, false
	}
	return off, p.usable(off)
}

// assign returns the addresses of name, giving it some first where it has none. When
// it returns without error the mapping is in the journal. v6 is zero without a pool.
// What is given first counts for s, unless that is nil.
func (p *pool) assign(name string, s *share) (v4, v6 netip.Addr, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.byName[name]
	if !ok {
		offset, err := p.free(s)
		if err != nil {
			return v4, v6, err
		}
		if p.journal != nil {
			if err := p.journal.add(p.addr4(offset), name); err != nil {
				return v4, v6, fmt.Errorf("%w: %w", errUnsaved, err)
			}
		}
		a = p.put(offset, name, s)
	}
	p.touch(a)
	v4 = p.addr4(a.offset)
	if p.v6.IsValid() {
		v6 = p.addr6(a.offset)
	}
	return v4, v6, nil
}

// free finds an offset for a new name of s: a fresh one, else one out of quarantine;
// one of its own where s is full.
func (p *pool) free(s *share) (uint32, error) {
	if s.full() {
		if offset, ok := p.expired(&s.unused); ok {
			return offset, nil
		}
		return 0, errShareFull
	}
	if len(p.byOffset) < p.max {
		for ; p.next < p.end; p.next++ {
			if _, taken := p.byOffset[p.next]; !taken && p.usable(p.next) {
				return p.next, nil
			}
		}
	}
	if offset, ok := p.expired(&p.unused); ok {
		return offset, nil
	}
	return 0, errPoolFull
}

// expired finds an offset out of quarantine.
func (p *pool) expired(unused *list.List) (uint32, bool) {
	// Held ones are at the end of the list as long as flows come and go.
	now, tries := time.Now(), 0
	for e := unused.Front(); e != nil && tries < 64; e = e.Next() {
		a := e.Value.(*assigned)
		if now.Sub(a.used) < p.quarantine {
			break
		}
		if a.holds == 0 {
			return a.offset, true
		}
		tries++
	}
	return 0, false
}

// put makes offset stand for name, and no longer for another.
func (p *pool) put(offset uint32, name string, s *share) *assigned {
	if old, ok := p.byOffset[offset]; ok {
		if p.byName[old.name] == old {
			delete(p.byName, old.name)
		}
		p.unused.Remove(old.place)
		if old.share != nil {
			old.share.unused.Remove(old.placeInShare)
		}
	}
	a := &assigned{offset: offset, name: name, share: s}
	a.place = p.unused.PushBack(a)
	if s != nil {
		a.placeInShare = s.unused.PushBack(a)
	}
	p.byOffset[offset] = a
	p.byName[name] = a
	return a
}

func (p *pool) touch(a *assigned) {
	a.used = time.Now()
	p.unused.MoveToBack(a.place)
	if a.share != nil {
		a.share.unused.MoveToBack(a.placeInShare)
	}
}

// restore takes a mapping from the journal, where later ones win. Its quarantine
// starts anew, as nobody knows when it was used last.
func (p *pool) restore(addr netip.Addr, name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	offset, ok := p.offset(addr)
	if _, known := p.byOffset[offset]; !ok || !known && len(p.byOffset) >= p.max {
		return false
	}
	p.touch(p.put(offset, name, nil))
	return true
}

// each calls f for every mapping.
func (p *pool) each(f func(addr netip.Addr, name string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for e := p.unused.Front(); e != nil; e = e.Next() {
		a := e.Value.(*assigned)
		f(p.addr4(a.offset), a.name)
	}
}

func (p *pool) name(addr netip.Addr) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	offset, ok := p.offset(addr)
	a := p.byOffset[offset]
	if !ok || a == nil {
		return "", false
	}
	p.touch(a)
	return a.name, true
}

func (p *pool) hold(addr netip.Addr) (release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	offset, ok := p.offset(addr)
	a := p.byOffset[offset]
	if !ok || a == nil {
		return func() {}
	}
	a.holds++
	p.touch(a)
	var once sync.Once
	return func() {
		once.Do(func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			a.holds--
			p.touch(a)
		})
	}
}

func (p *pool) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.byOffset)
}

func (p *pool) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.journal == nil {
		return nil
	}
	j := p.journal
	p.journal = &journal{path: j.path} // closed: nothing is assigned any more
	return j.close()
}
