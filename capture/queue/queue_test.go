package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"sshbroker/capture/netlink"
)

// syn4 is a SYN from 192.0.0.8:40000 to 203.0.113.5:23 with sequence number 0x01020304.
var syn4 = []byte{
	0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 0, 8, 203, 0, 113, 5,
	0x9c, 0x40, 0, 23, 1, 2, 3, 4, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0,
}

func syn6() []byte {
	b := make([]byte, 40, 60)
	b[0], b[6] = 0x60, 6
	copy(b[8:], netip.MustParseAddr("fd00::1").AsSlice())
	copy(b[24:], netip.MustParseAddr("2001:db8::2").AsSlice())
	return append(b, syn4[20:]...)
}

func TestParseSYN(t *testing.T) {
	edit := func(b []byte, at int, v byte) []byte {
		b = bytes.Clone(b)
		b[at] = v
		return b
	}
	options := append(append(bytes.Clone(syn4[:20]), 1, 1, 1, 1), syn4[20:]...)
	options[0] = 0x46
	for _, c := range []struct {
		name string
		in   []byte
		src  string
		dst  string
	}{
		{"IPv4", syn4, "192.0.0.8:40000", "203.0.113.5:23"},
		{"IPv4 with options", options, "192.0.0.8:40000", "203.0.113.5:23"},
		{"IPv6", syn6(), "[fd00::1]:40000", "[2001:db8::2]:23"},
		{"ECN SYN", edit(syn4, 33, 0xc2), "192.0.0.8:40000", "203.0.113.5:23"},
		{"SYN ACK", edit(syn4, 33, 0x12), "", ""},
		{"RST", edit(syn4, 33, 0x04), "", ""},
		{"UDP", edit(syn4, 9, 17), "", ""},
		{"IPv6 with a hop-by-hop header", edit(syn6(), 6, 0), "", ""},
		{"header length of 4", edit(syn4, 0, 0x41), "", ""},
		{"truncated", syn4[:30], "", ""},
		{"empty", nil, "", ""},
		{"version 7", edit(syn4, 0, 0x75), "", ""},
	} {
		s, ok := ParseSYN(c.in)
		if ok != (c.src != "") {
			t.Errorf("%s: ok = %v", c.name, ok)
			continue
		}
		if ok && (s.Src.String() != c.src || s.Dst.String() != c.dst || s.Seq != 0x01020304) {
			t.Errorf("%s: %+v", c.name, s)
		}
	}
}

func FuzzParseSYN(f *testing.F) {
	f.Add(syn4)
	f.Add(syn6())
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, ok := ParseSYN(b); ok && (!s.Src.Addr().IsValid() || !s.Dst.Addr().IsValid()) {
			t.Errorf("accepted without addresses: %+v", s)
		}
	})
}

// message is one netlink message of the queue's subsystem.
func message(typ uint16, attrs ...[]byte) []byte {
	return netlink.Append(nil, typ, 0, 0, append([][]byte{netlink.Netfilter(unix.AF_UNSPEC, 7)}, attrs...)...)
}

// identified is the attribute that has a packet's id.
func identified(id uint32) []byte {
	return netlink.Attr(attrHeader, binary.BigEndian.AppendUint32(nil, id), []byte{8, 0, 3})
}

func TestParseMessages(t *testing.T) {
	two := append(
		message(msgPacket, identified(11), netlink.Attr(attrPayload, syn4), netlink.Uint32(attrUID, 1000)),
		message(msgPacket, identified(12), netlink.Uint32(attrMark, 0xabc))...)
	var got []Packet
	q := &Queue{}
	if err := q.parse(two, func(p Packet) { got = append(got, p) }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].ID != 11 || got[0].Queue != 7 || got[0].UID != 1000 || !bytes.Equal(got[0].Payload, syn4) ||
		got[1].ID != 12 || got[1].Mark != 0xabc || got[1].UID != 0 {
		t.Errorf("parsed %+v", got)
	}
}

// failing is an errno as answers have it.
func failing(e unix.Errno) uint32 { return uint32(-int32(e)) }

func TestComplaints(t *testing.T) {
	q := &Queue{}
	failure := func(e unix.Errno) []byte {
		return netlink.Append(nil, unix.NLMSG_ERROR, 0, 0, binary.NativeEndian.AppendUint32(nil, failing(e)))
	}
	if err := q.parse(failure(unix.ENOENT), nil); err != nil || q.Gone() != 1 {
		t.Errorf("ENOENT: %v, %d gone", err, q.Gone())
	}
	if err := q.parse(failure(unix.EPERM), nil); !errors.Is(err, ErrNotPermitted) {
		t.Errorf("EPERM: %v", err)
	}
	if err := q.parse(failure(0), nil); err != nil {
		t.Errorf("acknowledgement: %v", err)
	}
}

// TestLateAnswer: one to a configuration that was given up makes room for the next one.
func TestLateAnswer(t *testing.T) {
	q := &Queue{answers: make(chan answer, 1)}
	late := netlink.Append(nil, unix.NLMSG_ERROR, 0, 1, make([]byte, 4))
	next := netlink.Append(nil, unix.NLMSG_ERROR, 0, 2, binary.NativeEndian.AppendUint32(nil, failing(unix.EBUSY)))
	if err := q.parse(append(late, next...), nil); err != nil {
		t.Fatal(err)
	}
	if got := <-q.answers; got.seq != 2 || got.err != unix.EBUSY {
		t.Errorf("%+v", got)
	}
}

func FuzzMessages(f *testing.F) {
	f.Add(message(msgPacket, identified(1), netlink.Attr(attrPayload, syn4)))
	f.Add([]byte{16, 0, 0, 0, 2, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		q := &Queue{answers: make(chan answer, 1)}
		_ = q.parse(b, func(p Packet) { ParseSYN(p.Payload) })
	})
}
