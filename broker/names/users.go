package names

import (
	"container/list"
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync"
)

// Bounds for one uid of Users.
const (
	userInFlight    = 256 // queries that wait, UDP
	userUpstream    = 32  // queries at the resolvers at once
	userConnections = 16  // over TCP
)

// Users is the knowledge of a host's users: one pool and one journal, since a name is
// pseudo for everybody as the rules are the same for all (a rule for some users alone
// counts as well: nobody knows yet whose the flow will be), and a memory for each uid.
// What one user's programs asked is not told to another's, nor does it name another's
// flows; the hosts file counts for everybody. Safe for concurrent use.
//
// Beyond MaxUsers the uid that was active least recently is forgotten. A uid has at
// most UserNames names and as many pseudo addresses of its asking; those of the
// journal count for nobody.
type Users struct {
	*responder
	nobody *asker // for queries whose user cannot be told

	mu     sync.Mutex
	byUID  map[uint32]*list.Element
	recent list.List // of *user, most recent first
}

type user struct {
	uid   uint32
	asker *asker
}

// Owners tells whose queries are. Several goroutines call it, once for every datagram
// that can be read and once for every connection.
type Owners interface {
	// Sender has the address that a datagram came from, to which a redirect may have
	// given another port than its socket's.
	Sender(from netip.AddrPort) (uid uint32, ok bool)
	// Marked has a datagram's mark, 0 where the socket told none. ServeMarked calls it in
	// place of Sender.
	Marked(mark uint32) (uid uint32, ok bool)
	// Peer has a connection that was accepted. It keeps nothing of it.
	Peer(c net.Conn) (uid uint32, ok bool)
}

// NewUsers makes the names of a host's users, as New does for one capture. A query that
// owners knows no user of is answered with a failure (SERVFAIL), for the connection that
// follows would not be known by its name, and no rule by name would match it. The caller
// calls Close.
func NewUsers(cfg Config, owners Owners) (*Users, error) {
	if owners == nil {
		return nil, errors.New("names: no owners given")
	}
	r, err := newResponder(cfg)
	if err != nil {
		return nil, err
	}
	u := &Users{responder: r, byUID: make(map[uint32]*list.Element)}
	u.nobody = u.newAsker("unknown")
	u.nobody.unknown = true
	r.senderOf = func(s sender) *asker {
		if s.marks {
			return u.whose(owners.Marked(s.mark))
		}
		return u.whose(owners.Sender(addrPort(s.addr)))
	}
	r.peerOf = func(c net.Conn) *asker { return u.whose(owners.Peer(c)) }
	return u, nil
}

func (u *Users) newAsker(label string) *asker {
	return &asker{
		label:    label,
		memory:   newMemory(u.cfg.UserNames),
		apart:    true,
		share:    &share{max: u.cfg.UserNames},
		waiting:  make(chan struct{}, userInFlight),
		upstream: make(chan struct{}, userUpstream),
		conns:    make(chan struct{}, userConnections),
	}
}

// Close closes the journal. End Serve first.
func (u *Users) Close() error { return u.pool.close() }

// Serve is as that of Names, for sockets to which the users' queries are redirected
// with the address that they came from kept.
func (u *Users) Serve(ctx context.Context, udp []net.PacketConn, tcp []net.Listener) error {
	return u.serve(ctx, udp, tcp, false)
}

// ServeMarked is Serve for UDP sockets that tell the mark of each datagram (SO_RCVMARK,
// which whoever made them has set), and has Owners.Marked say whose that is. That is
// exact where the address is not.
func (u *Users) ServeMarked(ctx context.Context, udp []net.PacketConn, tcp []net.Listener) error {
	return u.serve(ctx, udp, tcp, true)
}

// whose is the asker of what Owners said.
func (u *Users) whose(uid uint32, known bool) *asker {
	if !known {
		return u.nobody
	}
	return u.asker(uid, true)
}

// asker returns uid's, which is nil where it is new and not to be made.
func (u *Users) asker(uid uint32, create bool) *asker {
	u.mu.Lock()
	defer u.mu.Unlock()
	e, ok := u.byUID[uid]
	switch {
	case ok:
		u.recent.MoveToFront(e)
	case !create:
		return nil
	default:
		e = u.recent.PushFront(&user{uid, u.newAsker(strconv.FormatUint(uint64(uid), 10))})
		u.byUID[uid] = e
		if u.recent.Len() > u.cfg.MaxUsers {
			delete(u.byUID, u.recent.Remove(u.recent.Back()).(*user).uid)
		}
	}
	return e.Value.(*user).asker
}

// Stats returns the counts so far, of all users together.
func (u *Users) Stats() Stats {
	s := u.stats()
	u.mu.Lock()
	defer u.mu.Unlock()
	s.Users = u.recent.Len()
	for e := u.recent.Front(); e != nil; e = e.Next() {
		s.Remembered += e.Value.(*user).asker.memory.len()
	}
	return s
}

// View is what one user's flows may know.
type View struct {
	users *Users
	uid   uint32
}

// For returns the view of uid. It costs nothing and keeps nothing.
func (u *Users) For(uid uint32) View { return View{u, uid} }

// Lookup returns the names behind addr, most recent first: of the pool, whoever asked
// for it, else those that this user's programs asked for, then those of the hosts
// file. The caller owns the slice.
func (v View) Lookup(addr netip.Addr) []string {
	return v.users.lookup(v.users.asker(v.uid, false), addr)
}

// Asked reports whether this user's programs asked for name and were told addr. A pool
// address means its name, whoever asked: it may be known from before a restart.
func (v View) Asked(addr netip.Addr, name string) bool {
	return v.users.asked(v.users.asker(v.uid, false), addr, name)
}

// IsPool is as that of Names.
func (v View) IsPool(addr netip.Addr) bool { return v.users.pool.contains(addr.Unmap()) }

// Hold is as that of Names.
func (v View) Hold(addr netip.Addr) (release func()) { return v.users.pool.hold(addr.Unmap()) }
