package udprelay

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"sshbroker/capture/netlink"
)

func errorMessage(errno unix.Errno) netlink.Message {
	return netlink.Message{Type: unix.NLMSG_ERROR, Body: binary.NativeEndian.AppendUint32(nil, uint32(-int32(errno)))}
}

// entry is what the kernel answers for a conversation from src to dst, the tuple of
// the answers' direction first to see that the right one is taken.
func entry(proto byte, src, dst netip.AddrPort) netlink.Message {
	tuple := func(typ uint16, src, dst netip.AddrPort) []byte {
		s, d := uint16(attrIP6Src), uint16(attrIP6Dst)
		if src.Addr().Is4() {
			s, d = attrIP4Src, attrIP4Dst
		}
		return netlink.Nest(typ,
			netlink.Nest(attrTupleIP, netlink.Attr(s, src.Addr().AsSlice()), netlink.Attr(d, dst.Addr().AsSlice())),
			netlink.Nest(attrTupleProto, netlink.Attr(attrProtoNum, []byte{proto}),
				netlink.Attr(attrSrcPort, binary.BigEndian.AppendUint16(nil, src.Port())),
				netlink.Attr(attrDstPort, binary.BigEndian.AppendUint16(nil, dst.Port()))))
	}
	return netlink.Message{Type: msgNew, Body: slices.Concat(netlink.Netfilter(unix.AF_INET, 0),
		tuple(attrTupleReply, dst, src), tuple(attrTupleOrig, src, dst))}
}

func TestAnswer(t *testing.T) {
	src4, dst4 := netip.MustParseAddrPort("192.0.0.8:40000"), netip.MustParseAddrPort("203.0.113.7:443")
	src6, dst6 := netip.MustParseAddrPort("[fd53::8]:40000"), netip.MustParseAddrPort("[2001:db8::7]:443")
	whole := entry(unix.IPPROTO_UDP, src4, dst4)
	for _, c := range []struct {
		name string
		m    netlink.Message
		want netip.AddrPort
		err  error
	}{
		{"IPv4", whole, dst4, nil},
		{"IPv6", entry(unix.IPPROTO_UDP, src6, dst6), dst6, nil},
		{"not there", errorMessage(unix.ENOENT), netip.AddrPort{}, ErrNoEntry},
		{"not permitted", errorMessage(unix.EPERM), netip.AddrPort{}, unix.EPERM},
		{"acknowledgement", errorMessage(0), netip.AddrPort{}, errMalformed},
		{"TCP", entry(unix.IPPROTO_TCP, src4, dst4), netip.AddrPort{}, errMalformed},
		{"another message", netlink.Message{Type: unix.NLMSG_DONE, Body: whole.Body}, netip.AddrPort{}, errMalformed},
		{"no tuple", netlink.Message{Type: msgNew, Body: []byte{2, 0, 0, 0}}, netip.AddrPort{}, errMalformed},
		{"refusal cut short", netlink.Message{Type: unix.NLMSG_ERROR, Body: []byte{1}}, netip.AddrPort{}, unix.EBADMSG},
		{"no body", netlink.Message{Type: msgNew}, netip.AddrPort{}, errMalformed},
		{"cut short", netlink.Message{Type: msgNew, Body: whole.Body[:len(whole.Body)-9]}, netip.AddrPort{}, errMalformed},
		{"empty", netlink.Message{}, netip.AddrPort{}, errMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := answer(c.m)
			if got != c.want || !errors.Is(err, c.err) {
				t.Errorf("answer is %v, %v; want %v, %v", got, err, c.want, c.err)
			}
		})
	}
}

// FuzzAnswer: whatever comes, an answer is an address or an error, never both, and
// no prefix of a message is read beyond its end.
func FuzzAnswer(f *testing.F) {
	for _, m := range []netlink.Message{
		entry(unix.IPPROTO_UDP, netip.MustParseAddrPort("192.0.0.8:40000"), netip.MustParseAddrPort("203.0.113.7:443")),
		entry(unix.IPPROTO_UDP, netip.MustParseAddrPort("[fd53::8]:40000"), netip.MustParseAddrPort("[2001:db8::7]:443")),
		errorMessage(unix.ENOENT),
		{Type: msgNew, Body: []byte{2, 0, 0, 0, 0xff, 0xff, 1, 0x80}},
		{Type: msgNew, Body: []byte{2, 0, 0, 0, 3, 0, 1, 0x80}},
	} {
		f.Add(m.Type, m.Body)
	}
	f.Fuzz(func(t *testing.T, typ uint16, b []byte) {
		dst, err := answer(netlink.Message{Type: typ, Body: b})
		if (err == nil) != dst.IsValid() {
			t.Errorf("answer is %v, %v", dst, err)
		}
		for i := range b {
			_, _ = answer(netlink.Message{Type: typ, Body: b[:i:i]})
		}
	})
}

func TestRequestAsksForTheAnswersDirection(t *testing.T) {
	relay, peer := netip.MustParseAddrPort("127.0.0.1:4004"), netip.MustParseAddrPort("192.0.0.8:40000")
	tuple := netlink.Find(slices.Concat(request(relay, peer)...)[netlink.NetfilterLen:], attrTupleReply)
	if tuple == nil {
		t.Fatal("no reply tuple")
	}
	// An answer that names this tuple as the original one reads back as the peer.
	back := append(netlink.Netfilter(unix.AF_INET, 0), netlink.Nest(attrTupleOrig, tuple)...)
	if got, err := answer(netlink.Message{Type: msgNew, Body: back}); err != nil || got != peer {
		t.Errorf("the tuple leads to %v, %v; want %v", got, err, peer)
	}
}
