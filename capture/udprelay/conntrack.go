package udprelay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"sshbroker/capture/netlink"
)

// ErrNoEntry means that connection tracking knows no such conversation: it went
// quiet for too long.
var ErrNoEntry = errors.New("no such conversation")

var errMalformed = errors.New("malformed answer")

// From linux/netfilter/nfnetlink_conntrack.h.
const (
	msgNew = unix.NFNL_SUBSYS_CTNETLINK << 8 // IPCTNL_MSG_CT_NEW is 0
	msgGet = msgNew | 1

	attrTupleOrig  = 1
	attrTupleReply = 2
	attrTupleIP    = 1
	attrTupleProto = 2
	attrIP4Src     = 1
	attrIP4Dst     = 2
	attrIP6Src     = 3
	attrIP6Dst     = 4
	attrProtoNum   = 1
	attrSrcPort    = 2
	attrDstPort    = 3
)

// Conntrack is a socket to connection tracking. It answers for the network namespace
// in which it was made, from whichever process holds it, as long as that process may
// administer the namespace: its owner's uid, in the user namespace above it. Safe for
// concurrent use.
type Conntrack struct{ netlink.Asker }

// OpenConntrack makes a socket in the current network namespace, and makes sure that
// this kernel answers on it.
func OpenConntrack() (*Conntrack, error) {
	s, err := netlink.Open(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, fmt.Errorf("connection tracking: %w", err)
	}
	c := &Conntrack{netlink.Asker{Socket: s}}
	nobody := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	if _, err := c.Original(nobody, nobody); !errors.Is(err, ErrNoEntry) {
		c.Close()
		return nil, err
	}
	return c, nil
}

// AdoptConntrack takes over a socket made elsewhere, and owns it.
func AdoptConntrack(f *os.File) (*Conntrack, error) {
	s, err := netlink.Adopt(f)
	if err != nil {
		return nil, fmt.Errorf("connection tracking: %w", err)
	}
	return &Conntrack{netlink.Asker{Socket: s}}, nil
}

// Original tells where peer, whose UDP arrives at relay, sent it. It returns
// ErrNoEntry where peer's conversation is not known (any more).
func (c *Conntrack) Original(relay, peer netip.AddrPort) (dst netip.AddrPort, err error) {
	m, err := c.Ask(msgGet, request(relay, peer)...)
	if err == nil {
		dst, err = answer(m)
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("connection tracking: %v to %v: %w", peer, relay, err)
	}
	return dst, nil
}

// request is the body of a message that asks for the conversation whose answers go from
// relay to peer.
func request(relay, peer netip.AddrPort) [][]byte {
	family, src, dst := byte(unix.AF_INET6), uint16(attrIP6Src), uint16(attrIP6Dst)
	if relay.Addr().Is4() {
		family, src, dst = unix.AF_INET, attrIP4Src, attrIP4Dst
	}
	return [][]byte{netlink.Netfilter(family, 0), netlink.Nest(attrTupleReply,
		netlink.Nest(attrTupleIP,
			netlink.Attr(src, relay.Addr().AsSlice()),
			netlink.Attr(dst, peer.Addr().AsSlice())),
		netlink.Nest(attrTupleProto,
			netlink.Attr(attrProtoNum, []byte{unix.IPPROTO_UDP}),
			netlink.Attr(attrSrcPort, binary.BigEndian.AppendUint16(nil, relay.Port())),
			netlink.Attr(attrDstPort, binary.BigEndian.AppendUint16(nil, peer.Port()))))}
}

// answer reads the original destination.
func answer(m netlink.Message) (netip.AddrPort, error) {
	var none netip.AddrPort
	switch err := m.Err(); {
	case err == unix.ENOENT:
		return none, ErrNoEntry
	case err != nil:
		return none, err
	case m.Type != msgNew || len(m.Body) < netlink.NetfilterLen: // an acknowledgement was not asked for
		return none, errMalformed
	}
	tuple := netlink.Find(m.Body[netlink.NetfilterLen:], attrTupleOrig)
	ip, proto := netlink.Find(tuple, attrTupleIP), netlink.Find(tuple, attrTupleProto)
	number, port := netlink.Find(proto, attrProtoNum), netlink.Find(proto, attrDstPort)
	if len(port) != 2 || len(number) != 1 || number[0] != unix.IPPROTO_UDP {
		return none, errMalformed
	}
	value, size := netlink.Find(ip, attrIP6Dst), 16
	if value == nil {
		value, size = netlink.Find(ip, attrIP4Dst), 4
	}
	addr, valid := netip.AddrFromSlice(value)
	if !valid || len(value) != size {
		return none, errMalformed
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(port)), nil
}
