package nft

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/netlink"
)

// Ownership is who may change the table, and what becomes of it when its owner, a
// socket, is gone: the table's flags (linux/netfilter/nf_tables.h).
type Ownership uint32

// The kinds of ownership.
const (
	Unowned         Ownership = 0                       // anybody may change it, and it stays
	Owned           Ownership = flagOwner               // gone with its owner: policy "open"
	OwnedPersistent Ownership = flagOwner | flagPersist // stays without its owner, when anybody may change it: policy "closed"

	flagOwner   = 2
	flagPersist = 4
	attrOwner   = 7 // NFTA_TABLE_OWNER: the address of the socket that owns it
)

// String is for people.
func (o Ownership) String() string {
	return map[Ownership]string{Unowned: "none", Owned: "owner", OwnedPersistent: "owner, persist"}[o]
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
func (t *Table) File() *os.File { return t.socket.File() }

// Close closes this process's descriptor. What that means for the table says its
// ownership, unless another process has a duplicate.
func (t *Table) Close() error { return t.socket.Close() }

// Owns reports whether the kernel knows tables that belong to a socket.
func Owns() bool { return takes(Owned) }

// Persists reports whether the kernel knows tables that outlive their owner.
func Persists() bool { return takes(OwnedPersistent) }

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
		if old, err = t.contents(r.Table); err != nil {
			return err
		}
		b := newBatch(r.Table)
		switch {
		case !anew && old.exists && old.fits(t.ownership):
			b.mark, err = t.stage(&old, r)
		case old.exists:
			b.delTable()
			old = contents{}
		}
		if err == nil {
			b.newTable(t.ownership)
			b.clear(old, r)
			if err = b.fill(r); err != nil {
				return err
			}
			err = t.socket.commit(b)
		}
		if !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return err
}

// stage makes the named sets of r, a transaction before the rules that refer to them:
// for a moment after a transaction, nothing is found in an interval set that came with it
// (seen in Linux 6.18), and a SYN would be let through by a rule that is not its own. Sets
// that are there already stay, where nobody but us can have changed them; else the new
// ones are called otherwise, by the mark that stage returns.
func (t *Table) stage(old *contents, r Ruleset) (mark string, err error) {
	b := newBatch(r.Table)
	b.newTable(t.ownership)
	if !old.owned {
		b.mark = fmt.Sprintf("_%x", time.Now().UnixNano())
	}
	for _, s := range old.things {
		b.have[s.String()] = true
	}
	sets, _ := r.refersTo()
	for _, s := range sets {
		name := b.newSet("", *s)
		old.things = append(old.things, thing{kinds[1], name})
	}
	if b.sets == 0 {
		return b.mark, nil
	}
	return b.mark, t.socket.commit(b)
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

// kind is one of the kinds of things that are listed and deleted by name.
type kind struct {
	what     string
	get, del uint16
	attr     uint16 // that has the name
	also     []byte // to delete it
}

var kinds = []kind{
	{"chain", unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_DELCHAIN, unix.NFTA_CHAIN_NAME, nil},
	{"set", unix.NFT_MSG_GETSET, unix.NFT_MSG_DELSET, unix.NFTA_SET_NAME, nil},
	{"counter", unix.NFT_MSG_GETOBJ, unix.NFT_MSG_DELOBJ, unix.NFTA_OBJ_NAME, netlink.Uint32(unix.NFTA_OBJ_TYPE, objectCounter)},
}

// thing is a chain, a named set or a counter.
type thing struct {
	kind
	name string
}

func (t thing) String() string { return t.what + " " + t.name }

// contents is what is in the kernel under a table's name.
type contents struct {
	exists bool
	owned  bool // by our socket
	flags  Ownership
	things []thing
}

// fits reports whether the table can become one of ownership o as it is. One that
// outlived its owner may be adopted, by naming both flags.
func (c contents) fits(o Ownership) bool {
	return c.flags == o || o == OwnedPersistent && c.flags == flagPersist
}

func (t *Table) contents(table string) (c contents, err error) {
	tables, err := t.socket.dump(table, unix.NFT_MSG_GETTABLE)
	if err != nil || len(tables) == 0 {
		return c, err
	}
	c.exists, c.flags = true, Ownership(tables[0].num(unix.NFTA_TABLE_FLAGS))
	c.owned = uint32(tables[0].num(attrOwner)) == t.socket.Port()
	if c.flags&flagOwner != 0 && !c.owned {
		return c, fmt.Errorf("table %s: %w", table, ErrForeign)
	}
	for _, k := range kinds {
		found, err := t.socket.dump(table, k.get)
		if err != nil {
			return c, err
		}
		for _, a := range found {
			if k.get == unix.NFT_MSG_GETSET && a.num(unix.NFTA_SET_FLAGS)&unix.NFT_SET_ANONYMOUS != 0 {
				continue // goes with its rule
			}
			c.things = append(c.things, thing{k, a.text(k.attr)})
		}
	}
	return c, nil
}

// clear removes every rule of old that changes, and of the rest what r does not have.
func (b *batch) clear(old contents, r Ruleset) {
	stays := map[string]bool{} // what r has; true: as it is, with all that is in it
	for _, c := range r.Chains {
		stays["chain "+c.name] = c.constant
	}
	sets, counters := r.refersTo()
	for _, name := range counters {
		stays["counter "+name] = true
	}
	if r.meter.Rate != 0 {
		stays["set "+r.meter.name()] = true
	}
	for name := range sets { // staged
		stays["set "+name+b.mark] = true
	}
	for _, t := range old.things {
		b.have[t.String()] = stays[t.String()]
		if t.del == unix.NFT_MSG_DELCHAIN && !stays[t.String()] {
			b.add("flush "+t.String(), unix.NFT_MSG_DELRULE, 0, text(unix.NFTA_RULE_CHAIN, t.name))
		}
	}
	for _, t := range old.things {
		if _, ok := stays[t.String()]; !ok {
			b.add("delete "+t.String(), t.del, 0, text(t.attr, t.name), t.also)
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
	totals := map[string]*uint64{counterLostMark: &c.LostMark, counterDiverted: &c.Diverted, counterMetered: &c.Metered}
	counters, err := t.socket.dump(HostTableName, unix.NFT_MSG_GETOBJ)
	for _, a := range counters {
		name := a.text(unix.NFTA_OBJ_NAME)
		n := number(netlink.Find(a[unix.NFTA_OBJ_DATA], unix.NFTA_COUNTER_PACKETS))
		if total := totals[name]; total != nil {
			*total = n
		} else if h, ok := parseCounter(name); ok {
			h.Count = n
			c.Hits = append(c.Hits, h)
		}
	}
	return c, err
}
