package nft

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
)

// Ownership is who may change the table, and what becomes of it when its owner, a
// socket, is gone.
type Ownership uint8

// The kinds of ownership.
const (
	Unowned         Ownership = iota // anybody may change it, and it stays
	Owned                            // gone with its owner: policy "open"
	OwnedPersistent                  // stays without its owner, when anybody may change it: policy "closed"
)

// String is for people.
func (o Ownership) String() string {
	switch o {
	case Owned:
		return "owner"
	case OwnedPersistent:
		return "owner, persist"
	default:
		return "none"
	}
}

// Flags of a table (linux/netfilter/nf_tables.h), and the attribute that has the
// address of the socket that owns it.
const (
	flagOwner   = 2
	flagPersist = 4
	attrOwner   = 7 // NFTA_TABLE_OWNER
)

func (o Ownership) flags() uint32 {
	switch o {
	case Owned:
		return flagOwner
	case OwnedPersistent:
		return flagOwner | flagPersist
	default:
		return 0
	}
}

// ErrForeign means that the table belongs to another socket, which still lives: to
// another ssh-captured.
var ErrForeign = errors.New("the table belongs to another process")

// Table is the host's table, and the socket that may change it. Its methods are safe
// for concurrent use.
type Table struct {
	mu        sync.Mutex
	socket    *socket
	ownership Ownership
}

// NewTable opens a socket in the current network namespace. The first Apply makes the
// table, or takes over one that was left behind.
func NewTable(o Ownership) (*Table, error) {
	s, err := dial(0)
	if err != nil {
		return nil, err
	}
	return &Table{socket: s, ownership: o}, nil
}

// AdoptTable takes over the socket of a process that is gone, and with it what that
// owned. It owns f from now on, also where it fails.
func AdoptTable(f *os.File, o Ownership) (*Table, error) {
	s, err := adopt(f)
	if err != nil {
		return nil, err
	}
	return &Table{socket: s, ownership: o}, nil
}

// File is the socket, to be duplicated into another process. The table keeps owning it.
func (t *Table) File() *os.File { return t.socket.file }

// Close closes this process's descriptor. What that means for the table says its
// ownership, unless another process has a duplicate.
func (t *Table) Close() error { return t.socket.file.Close() }

// Persists reports whether the kernel knows tables that outlive their owner.
func Persists() bool { return takes(OwnedPersistent.flags(), chain{name: "probe"}) }

// Apply puts r in force in one transaction, whatever was there of ours before. Base
// chains stay, and so live flows and held SYNs do; so do counters and the meter. Where
// the table has another ownership than this one's it is replaced.
func (t *Table) Apply(r Ruleset) error { return t.put(r, false) }

// Replace is Apply to a new table with another ownership. Live flows survive it. Held
// SYNs are dropped and come again; counters begin at 0.
func (t *Table) Replace(r Ruleset, o Ownership) error {
	t.mu.Lock()
	t.ownership = o
	t.mu.Unlock()
	return t.put(r, true)
}

func (t *Table) put(r Ruleset, anew bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var err error
	for range 3 { // somebody may delete an unowned table before us
		var old contents
		if old, err = t.contents(r.table); err != nil {
			return err
		}
		b := newBatch(r.table)
		if anew || !old.fits(t.ownership) {
			if old.exists {
				b.delTable()
			}
			old = contents{}
		}
		b.newTable(t.ownership.flags())
		b.clear(old, r)
		if err = b.fill(r); err != nil {
			return err
		}
		if err = t.socket.commit(b); !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return err
}

// Delete removes the table, if there is one.
func (t *Table) Delete() error { return t.remove(HostTableName) }

func (t *Table) remove(name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := newBatch(name)
	b.delTable()
	if err := t.socket.commit(b); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// contents is what is in the kernel under a table's name.
type contents struct {
	exists   bool
	owned    bool // by our socket
	flags    uint32
	chains   []string
	sets     []string // named ones
	counters []string
}

// fits reports whether the table can become one of ownership o as it is. One that
// outlived its owner may be adopted, by naming both flags.
func (c contents) fits(o Ownership) bool {
	return !c.exists || c.flags == o.flags() || o == OwnedPersistent && c.flags == flagPersist
}

func (t *Table) contents(table string) (c contents, err error) {
	err = t.socket.dump(unix.NFT_MSG_GETTABLE, func(a attributes) {
		if a.text(unix.NFTA_TABLE_NAME) == table {
			c.exists, c.flags = true, uint32(a.num(unix.NFTA_TABLE_FLAGS))
			c.owned = uint32(a.num(attrOwner)) == t.socket.port
		}
	})
	switch {
	case err != nil || !c.exists:
		return c, err
	case c.flags&flagOwner != 0 && !c.owned:
		return c, fmt.Errorf("table %s: %w", table, ErrForeign)
	}
	for _, list := range []struct {
		typ, table, name uint16
		to               *[]string
	}{
		{unix.NFT_MSG_GETCHAIN, unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME, &c.chains},
		{unix.NFT_MSG_GETSET, unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME, &c.sets},
		{unix.NFT_MSG_GETOBJ, unix.NFTA_OBJ_TABLE, unix.NFTA_OBJ_NAME, &c.counters},
	} {
		err := t.socket.dump(list.typ, func(a attributes) {
			anonymous := list.typ == unix.NFT_MSG_GETSET && a.num(unix.NFTA_SET_FLAGS)&unix.NFT_SET_ANONYMOUS != 0
			if a.text(list.table) == table && !anonymous {
				*list.to = append(*list.to, a.text(list.name))
			}
		})
		if err != nil {
			return c, err
		}
	}
	return c, nil
}

// clear removes every rule of old that changes, and of the rest what r does not have.
func (b *batch) clear(old contents, r Ruleset) {
	if len(old.chains) == 0 {
		return
	}
	keep := map[string]bool{}
	for _, c := range r.chains {
		keep["chain "+c.name], b.have["chain "+c.name] = true, c.constant && slices.Contains(old.chains, c.name)
	}
	for _, name := range old.chains {
		if !b.have["chain "+name] {
			b.add("flush chain "+name, unix.NFT_MSG_DELRULE, 0, text(unix.NFTA_RULE_TABLE, b.table), text(unix.NFTA_RULE_CHAIN, name))
		}
	}
	for _, name := range r.counters {
		keep["counter "+name] = true
	}
	if r.meter != nil {
		keep["set "+r.meter.name()] = true
	}
	for name := range r.largeSets() {
		// Nobody else can have changed those of a table that was ours all the time.
		b.have[name] = old.owned && slices.Contains(old.sets, name)
		keep["set "+name] = b.have[name]
	}
	for _, kind := range []struct {
		name  string
		names []string
		typ   uint16
		attrs func(string) [][]byte
	}{
		{"chain ", old.chains, unix.NFT_MSG_DELCHAIN, func(s string) [][]byte {
			return [][]byte{text(unix.NFTA_CHAIN_TABLE, b.table), text(unix.NFTA_CHAIN_NAME, s)}
		}},
		{"set ", old.sets, unix.NFT_MSG_DELSET, func(s string) [][]byte {
			return [][]byte{text(unix.NFTA_SET_TABLE, b.table), text(unix.NFTA_SET_NAME, s)}
		}},
		{"counter ", old.counters, unix.NFT_MSG_DELOBJ, func(s string) [][]byte {
			return [][]byte{text(unix.NFTA_OBJ_TABLE, b.table), text(unix.NFTA_OBJ_NAME, s), num(unix.NFTA_OBJ_TYPE, objectCounter)}
		}},
	} {
		for _, name := range kind.names {
			if !keep[kind.name+name] {
				b.add("delete "+kind.name+name, kind.typ, 0, kind.attrs(name)...)
			}
		}
	}
}

// Counters are what the kernel did by itself.
type Counters struct {
	LostMark uint64 // SYNs dropped by guard 1: a foreign rule took our mark
	Diverted uint64 // SYNs dropped by guard 2: a foreign rule diverted them first
	Metered  uint64 // SYNs dropped because their uid made too many
	Hits     []Hit
}

// Hit counts the SYNs that were decided by one rule of a capture's Spec. It goes on
// counting when rules change, as long as there is one with this number and outcome.
type Hit struct {
	Capture string
	Rule    int // 0: what no rule names
	Outcome capture.Outcome
	Count   uint64
}

// Counters reads them.
func (t *Table) Counters() (c Counters, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err = t.socket.dump(unix.NFT_MSG_GETOBJ, func(a attributes) {
		if a.text(unix.NFTA_OBJ_TABLE) != HostTableName {
			return
		}
		data, _ := parseAttributes(a[unix.NFTA_OBJ_DATA]) // no count is 0
		n := data.num(unix.NFTA_COUNTER_PACKETS)
		switch name := a.text(unix.NFTA_OBJ_NAME); name {
		case counterLostMark:
			c.LostMark = n
		case counterDiverted:
			c.Diverted = n
		case counterMetered:
			c.Metered = n
		default:
			if h, ok := parseCounter(name); ok {
				h.Count = n
				c.Hits = append(c.Hits, h)
			}
		}
	})
	return c, err
}
