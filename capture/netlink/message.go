package netlink

import (
	"encoding/binary"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"
)

const (
	headerLen     = unix.SizeofNlMsghdr
	attrHeaderLen = unix.SizeofNlAttr
	attrTypeMask  = 0x3fff // without the nested and byte-order flags
)

// Message is one that the kernel sent. Body is a part of what was received.
type Message struct {
	Type, Flags uint16
	Seq         uint32
	Body        []byte
}

// Messages reads a datagram. With an error it returns what came before the message that
// is malformed.
func Messages(b []byte) (list []Message, err error) {
	for len(b) >= headerLen {
		n := int(binary.NativeEndian.Uint32(b))
		if n < headerLen || n > len(b) {
			return list, fmt.Errorf("%w: %d bytes in %d", unix.EBADMSG, n, len(b))
		}
		list = append(list, Message{
			Type:  binary.NativeEndian.Uint16(b[4:]),
			Flags: binary.NativeEndian.Uint16(b[6:]),
			Seq:   binary.NativeEndian.Uint32(b[8:]),
			Body:  b[headerLen:n:n],
		})
		b = b[min(align(n), len(b)):]
	}
	return list, nil
}

// Err is why the kernel refused, a unix.Errno; nil for an acknowledgement and for every
// other message.
func (m Message) Err() error {
	switch {
	case m.Type != unix.NLMSG_ERROR:
		return nil
	case len(m.Body) < 4:
		return unix.EBADMSG
	}
	if errno := unix.Errno(-int32(binary.NativeEndian.Uint32(m.Body))); errno != 0 {
		return errno
	}
	return nil
}

// Append appends a message to a datagram.
func Append(b []byte, typ, flags uint16, seq uint32, parts ...[]byte) []byte {
	n := headerLen
	for _, p := range parts {
		n += len(p)
	}
	b = binary.NativeEndian.AppendUint32(b, uint32(n))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0) // from whom, which the kernel knows
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// NetfilterLen is the length of the header that netfilter's messages have after
// netlink's (struct nfgenmsg of linux/netfilter/nfnetlink.h); Netfilter makes one.
const NetfilterLen = 4

func Netfilter(family byte, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
}

// Attributes are those in b by type, up to the first that is malformed.
func Attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for b := b; len(b) >= attrHeaderLen; {
			n := int(binary.NativeEndian.Uint16(b))
			if n < attrHeaderLen || n > len(b) || !yield(binary.NativeEndian.Uint16(b[2:])&attrTypeMask, b[attrHeaderLen:n:n]) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

// Find returns the first attribute of that type, nil where there is none.
func Find(b []byte, typ uint16) []byte {
	for t, data := range Attributes(b) {
		if t == typ {
			return data
		}
	}
	return nil
}

// Attr makes an attribute of those parts.
func Attr(typ uint16, parts ...[]byte) []byte {
	n := attrHeaderLen
	for _, p := range parts {
		n += len(p)
	}
	b := make([]byte, attrHeaderLen, align(n))
	binary.NativeEndian.PutUint16(b, uint16(n))
	binary.NativeEndian.PutUint16(b[2:], typ)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b[:cap(b)]
}

// Nest makes an attribute of attributes.
func Nest(typ uint16, attrs ...[]byte) []byte { return Attr(typ|unix.NLA_F_NESTED, attrs...) }

// Uint32 makes an attribute of numbers in network order, as netfilter has them.
func Uint32(typ uint16, numbers ...uint32) []byte {
	var b []byte
	for _, v := range numbers {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return Attr(typ, b)
}

func align(n int) int { return (n + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1) }
