package udprelay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"sshbroker/capture/inquiry"
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

	nfHeaderLen   = 4
	attrHeaderLen = 4
	attrTypeMask  = 0x3fff // without the nested and byte-order flags
)

// Conntrack is a socket to connection tracking. It answers for the network namespace
// in which it was made, from whichever process holds it, as long as that process may
// administer the namespace: its owner's uid, in the user namespace above it. Safe for
// concurrent use.
type Conntrack struct{ *inquiry.Socket }

// OpenConntrack makes a socket in the current network namespace, and makes sure that
// this kernel answers on it.
func OpenConntrack() (*Conntrack, error) {
	s, err := inquiry.Open(unix.NETLINK_NETFILTER, "connection tracking")
	if err != nil {
		return nil, fmt.Errorf("connection tracking: %w", err)
	}
	c := &Conntrack{s}
	nobody := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	if _, err := c.Original(nobody, nobody); !errors.Is(err, ErrNoEntry) {
		c.Close()
		return nil, err
	}
	return c, nil
}

// AdoptConntrack takes over a socket made elsewhere, and owns it.
func AdoptConntrack(f *os.File) (*Conntrack, error) {
	s, err := inquiry.Adopt(f)
	if err != nil {
		return nil, fmt.Errorf("connection tracking: %w", err)
	}
	return &Conntrack{s}, nil
}

// Original tells where peer, whose UDP arrives at relay, sent it. It returns
// ErrNoEntry where peer's conversation is not known (any more).
func (c *Conntrack) Original(relay, peer netip.AddrPort) (dst netip.AddrPort, err error) {
	err = c.Ask(request(relay, peer), func(b []byte) (err error) {
		dst, err = answer(b)
		return err
	})
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("connection tracking: %v to %v: %w", peer, relay, err)
	}
	return dst, nil
}

// request asks for the conversation whose answers go from relay to peer.
func request(relay, peer netip.AddrPort) []byte {
	family, src, dst := byte(unix.AF_INET6), uint16(attrIP6Src), uint16(attrIP6Dst)
	if relay.Addr().Is4() {
		family, src, dst = unix.AF_INET, attrIP4Src, attrIP4Dst
	}
	var ip, proto, tuple []byte
	ip = appendAttr(ip, src, relay.Addr().AsSlice())
	ip = appendAttr(ip, dst, peer.Addr().AsSlice())
	proto = appendAttr(proto, attrProtoNum, []byte{unix.IPPROTO_UDP})
	proto = appendAttr(proto, attrSrcPort, binary.BigEndian.AppendUint16(nil, relay.Port()))
	proto = appendAttr(proto, attrDstPort, binary.BigEndian.AppendUint16(nil, peer.Port()))
	tuple = appendAttr(tuple, attrTupleIP|unix.NLA_F_NESTED, ip)
	tuple = appendAttr(tuple, attrTupleProto|unix.NLA_F_NESTED, proto)

	b := make([]byte, unix.SizeofNlMsghdr, 128)
	binary.NativeEndian.PutUint16(b[4:], msgGet)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	b = append(b, family, 0, 0, 0) // nfgenmsg: family, version, resource
	return appendAttr(b, attrTupleReply|unix.NLA_F_NESTED, tuple)
}

func appendAttr(b []byte, typ uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeaderLen+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	for len(b)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// answer reads the original destination out of a whole netlink message.
func answer(b []byte) (netip.AddrPort, error) {
	var none netip.AddrPort
	if len(b) < unix.SizeofNlMsghdr {
		return none, errMalformed
	}
	body := b[unix.SizeofNlMsghdr:]
	switch typ := binary.NativeEndian.Uint16(b[4:]); {
	case typ == unix.NLMSG_ERROR && len(body) >= 4:
		switch errno := unix.Errno(-int32(binary.NativeEndian.Uint32(body))); errno {
		case unix.ENOENT:
			return none, ErrNoEntry
		case 0:
			return none, errMalformed // an acknowledgement was not asked for
		default:
			return none, errno
		}
	case typ != msgNew || len(body) < nfHeaderLen:
		return none, errMalformed
	}
	tuple, ok := attr(body[nfHeaderLen:], attrTupleOrig)
	if !ok {
		return none, errMalformed
	}
	ip, okIP := attr(tuple, attrTupleIP)
	proto, okProto := attr(tuple, attrTupleProto)
	number, okNumber := attr(proto, attrProtoNum)
	port, okPort := attr(proto, attrDstPort)
	if !okIP || !okProto || !okNumber || !okPort || len(port) != 2 ||
		len(number) != 1 || number[0] != unix.IPPROTO_UDP {
		return none, errMalformed
	}
	value, size := []byte(nil), 16
	if value, ok = attr(ip, attrIP6Dst); !ok {
		value, ok = attr(ip, attrIP4Dst)
		size = 4
	}
	addr, valid := netip.AddrFromSlice(value)
	if !ok || !valid || len(value) != size {
		return none, errMalformed
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(port)), nil
}

// attr finds the first attribute of that type.
func attr(b []byte, typ uint16) (value []byte, ok bool) {
	for len(b) >= attrHeaderLen {
		n := int(binary.NativeEndian.Uint16(b))
		if n < attrHeaderLen || n > len(b) {
			return nil, false
		}
		if binary.NativeEndian.Uint16(b[2:])&attrTypeMask == typ {
			return b[attrHeaderLen:n], true
		}
		next := (n + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1)
		b = b[min(next, len(b)):]
	}
	return nil, false
}
