package queue

import (
	"encoding/binary"
	"net/netip"
)

// SYN is what a queued or saved SYN says of its connection.
type SYN struct {
	Src, Dst netip.AddrPort
	Seq      uint32 // initial sequence number: it survives every translation
}

const (
	protoTCP   = 6
	ipv6Header = 40
	synFlag    = 0x02
	synMask    = 0x17 // FIN, SYN, RST, ACK
)

// ParseSYN reads the IP and TCP headers of a SYN. It reports false for anything
// else, a truncated header included.
func ParseSYN(b []byte) (s SYN, ok bool) {
	if len(b) < 20 {
		return s, false
	}
	var src, dst netip.Addr
	var tcp []byte
	switch b[0] >> 4 {
	case 4:
		ihl := int(b[0]&15) * 4
		if ihl < 20 || len(b) < ihl || b[9] != protoTCP {
			return s, false
		}
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		tcp = b[ihl:]
	case 6:
		// A SYN of the host's own stack carries no extension header unless the
		// program sets one, which is refused like any other oddity.
		if len(b) < ipv6Header || b[6] != protoTCP {
			return s, false
		}
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		tcp = b[ipv6Header:]
	default:
		return s, false
	}
	if len(tcp) < 14 || tcp[13]&synMask != synFlag {
		return s, false
	}
	s.Src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(tcp))
	s.Dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(tcp[2:]))
	s.Seq = binary.BigEndian.Uint32(tcp[4:])
	return s, true
}
