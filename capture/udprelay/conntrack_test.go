package udprelay

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// message puts a netlink header before a body.
func message(typ uint16, body []byte) []byte {
	b := make([]byte, unix.SizeofNlMsghdr)
	binary.NativeEndian.PutUint32(b, uint32(len(b)+len(body)))
	binary.NativeEndian.PutUint16(b[4:], typ)
	return append(b, body...)
}

func errorMessage(errno unix.Errno) []byte {
	return message(unix.NLMSG_ERROR, binary.NativeEndian.AppendUint32(nil, uint32(-int32(errno))))
}

// entry is what the kernel answers for a conversation from src to dst, the tuple of
// the answers' direction first to see that the right one is taken.
func entry(proto byte, src, dst netip.AddrPort) []byte {
	tuple := func(src, dst netip.AddrPort) []byte {
		s, d := uint16(attrIP6Src), uint16(attrIP6Dst)
		if src.Addr().Is4() {
			s, d = attrIP4Src, attrIP4Dst
		}
		ip := appendAttr(appendAttr(nil, s, src.Addr().AsSlice()), d, dst.Addr().AsSlice())
		l4 := appendAttr(nil, attrProtoNum, []byte{proto})
		l4 = appendAttr(l4, attrSrcPort, binary.BigEndian.AppendUint16(nil, src.Port()))
		l4 = appendAttr(l4, attrDstPort, binary.BigEndian.AppendUint16(nil, dst.Port()))
		b := appendAttr(nil, attrTupleIP|unix.NLA_F_NESTED, ip)
		return appendAttr(b, attrTupleProto|unix.NLA_F_NESTED, l4)
	}
	body := []byte{unix.AF_INET, 0, 0, 0}
	body = appendAttr(body, attrTupleReply|unix.NLA_F_NESTED, tuple(dst, src))
	body = appendAttr(body, attrTupleOrig|unix.NLA_F_NESTED, tuple(src, dst))
	return message(msgNew, body)
}

func TestAnswer(t *testing.T) {
	src4, dst4 := netip.MustParseAddrPort("192.0.0.8:40000"), netip.MustParseAddrPort("203.0.113.7:443")
	src6, dst6 := netip.MustParseAddrPort("[fd53::8]:40000"), netip.MustParseAddrPort("[2001:db8::7]:443")
	whole := entry(unix.IPPROTO_UDP, src4, dst4)
	for _, c := range []struct {
		name string
		b    []byte
		want netip.AddrPort
		err  error
	}{
		{"IPv4", whole, dst4, nil},
		{"IPv6", entry(unix.IPPROTO_UDP, src6, dst6), dst6, nil},
		{"not there", errorMessage(unix.ENOENT), netip.AddrPort{}, ErrNoEntry},
		{"not permitted", errorMessage(unix.EPERM), netip.AddrPort{}, unix.EPERM},
		{"acknowledgement", errorMessage(0), netip.AddrPort{}, errMalformed},
		{"TCP", entry(unix.IPPROTO_TCP, src4, dst4), netip.AddrPort{}, errMalformed},
		{"another message", message(unix.NLMSG_DONE, whole[unix.SizeofNlMsghdr:]), netip.AddrPort{}, errMalformed},
		{"no tuple", message(msgNew, []byte{2, 0, 0, 0}), netip.AddrPort{}, errMalformed},
		{"no body", message(msgNew, nil), netip.AddrPort{}, errMalformed},
		{"cut short", whole[:len(whole)-9], netip.AddrPort{}, errMalformed},
		{"empty", nil, netip.AddrPort{}, errMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := answer(c.b)
			if got != c.want || !errors.Is(err, c.err) {
				t.Errorf("answer is %v, %v; want %v, %v", got, err, c.want, c.err)
			}
		})
	}
}

// FuzzAnswer: whatever comes, an answer is an address or an error, never both, and
// no prefix of a message is read beyond its end.
func FuzzAnswer(f *testing.F) {
	f.Add(entry(unix.IPPROTO_UDP, netip.MustParseAddrPort("192.0.0.8:40000"), netip.MustParseAddrPort("203.0.113.7:443")))
	f.Add(entry(unix.IPPROTO_UDP, netip.MustParseAddrPort("[fd53::8]:40000"), netip.MustParseAddrPort("[2001:db8::7]:443")))
	f.Add(errorMessage(unix.ENOENT))
	f.Add(message(msgNew, []byte{2, 0, 0, 0, 0xff, 0xff, 1, 0x80}))
	f.Add(message(msgNew, []byte{2, 0, 0, 0, 3, 0, 1, 0x80}))
	f.Fuzz(func(t *testing.T, b []byte) {
		dst, err := answer(b)
		if (err == nil) != dst.IsValid() {
			t.Errorf("answer is %v, %v", dst, err)
		}
		for i := range b {
			_, _ = answer(b[:i:i])
		}
	})
}

func TestRequestAsksForTheAnswersDirection(t *testing.T) {
	relay, peer := netip.MustParseAddrPort("127.0.0.1:4004"), netip.MustParseAddrPort("192.0.0.8:40000")
	b := request(relay, peer)
	if typ := binary.NativeEndian.Uint16(b[4:]); typ != msgGet {
		t.Errorf("type %#x", typ)
	}
	tuple, ok := attr(b[unix.SizeofNlMsghdr+nfHeaderLen:], attrTupleReply)
	if !ok {
		t.Fatal("no reply tuple")
	}
	// An answer that names this tuple as the original one reads back as the peer.
	back := appendAttr([]byte{unix.AF_INET, 0, 0, 0}, attrTupleOrig|unix.NLA_F_NESTED, tuple)
	if got, err := answer(message(msgNew, back)); err != nil || got != peer {
		t.Errorf("the tuple leads to %v, %v; want %v", got, err, peer)
	}
}
