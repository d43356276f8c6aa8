package names

import (
	"container/list"
	"net/netip"
	"slices"
	"sync"
)

// maxNamesPerAddr bounds the names kept behind one address; a content network puts
// thousands there.
const maxNamesPerAddr = 16

// memory remembers names behind addresses. A record's time to live does not count: a
// program may keep an address for as long as it runs. Beyond max names the address
// that was asked for least recently is forgotten.
type memory struct {
	mu     sync.Mutex
	max    int
	total  int // names
	byAddr map[netip.Addr]*list.Element
	recent list.List // of *remembered, most recent first
}

type remembered struct {
	addr  netip.Addr
	names []string // most recent first
}

func newMemory(max int) *memory {
	return &memory{max: max, byAddr: make(map[netip.Addr]*list.Element)}
}

func (m *memory) remember(addr netip.Addr, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.byAddr[addr]
	if !ok {
		e = m.recent.PushFront(&remembered{addr: addr})
		m.byAddr[addr] = e
	}
	m.recent.MoveToFront(e)
	r := e.Value.(*remembered)
	before := len(r.names)
	if i := slices.Index(r.names, name); i >= 0 {
		r.names = slices.Delete(r.names, i, i+1)
	} else if len(r.names) == maxNamesPerAddr {
		r.names = r.names[:maxNamesPerAddr-1]
	}
	r.names = slices.Insert(r.names, 0, name)
	m.total += len(r.names) - before
	for m.total > m.max {
		oldest := m.recent.Remove(m.recent.Back()).(*remembered)
		delete(m.byAddr, oldest.addr)
		m.total -= len(oldest.names)
	}
}

// lookup returns a copy.
func (m *memory) lookup(addr netip.Addr) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e, ok := m.byAddr[addr]; ok {
		return slices.Clone(e.Value.(*remembered).names)
	}
	return nil
}

func (m *memory) len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.total
}
