package netns

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// Packet is one frame that passed an interface. Frames without IP in them have
// zero addresses and all their bytes in Frame.
type Packet struct {
	Time     time.Time
	Outgoing bool           // sent by the machine, not received
	Proto    uint8          // IPPROTO_TCP and so on; 0 for what is not IP
	Src, Dst netip.AddrPort // port 0 for what has none
	Payload  []byte         // of TCP or UDP; else what follows the IP header
	Frame    []byte         // everything, Ethernet header first

	// TCP only.
	Flags uint8
	Seq   uint32
}

// The TCP flags that tests ask for, RFC 9293 section 3.1.
const (
	FIN uint8 = 1 << iota
	SYN
	RST
	PSH
	ACK
)

const (
	protoTCP = 6
	protoUDP = 17
)

// parse takes an Ethernet frame apart. Extension headers of IPv6 and fragments
// are left as payload; they do not occur on a veth of these topologies.
func parse(frame []byte) Packet {
	p := Packet{Frame: frame}
	if len(frame) < 14 {
		return p
	}
	var src, dst netip.Addr
	var rest []byte
	ip := frame[14:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0800:
		if len(ip) < 20 || len(ip) < int(ip[0]&15)*4 || ip[0]&15 < 5 {
			return p
		}
		p.Proto = ip[9]
		src, _ = netip.AddrFromSlice(ip[12:16])
		dst, _ = netip.AddrFromSlice(ip[16:20])
		end := int(binary.BigEndian.Uint16(ip[2:]))
		if end == 0 || end > len(ip) { // zero: larger than the field can say
			end = len(ip)
		}
		rest = ip[min(int(ip[0]&15)*4, end):end]
	case 0x86dd:
		if len(ip) < 40 {
			return p
		}
		p.Proto = ip[6]
		src, _ = netip.AddrFromSlice(ip[8:24])
		dst, _ = netip.AddrFromSlice(ip[24:40])
		end := 40 + int(binary.BigEndian.Uint16(ip[4:]))
		if end == 40 || end > len(ip) {
			end = len(ip)
		}
		rest = ip[40:end]
	default:
		return p
	}
	var srcPort, dstPort uint16
	p.Payload = rest
	header := 8
	if p.Proto == protoTCP && len(rest) >= 20 {
		header = int(rest[12]>>4) * 4
		p.Seq, p.Flags = binary.BigEndian.Uint32(rest[4:]), rest[13]
	}
	if (p.Proto == protoTCP && len(rest) >= 20 || p.Proto == protoUDP && len(rest) >= 8) && header <= len(rest) {
		srcPort, dstPort = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
		p.Payload = rest[header:]
	}
	p.Src, p.Dst = netip.AddrPortFrom(src, srcPort), netip.AddrPortFrom(dst, dstPort)
	return p
}

// Stream is one direction of one TCP connection, its bytes in order.
type Stream struct {
	Src, Dst netip.AddrPort
	Bytes    []byte
}

// reassemble puts the payloads of TCP in order. Typed text goes a byte a packet,
// so that looking at packets alone would find nothing. Where bytes are missing
// (a capture that began late), what follows is joined to what came before.
func reassemble(packets []Packet) []Stream {
	type key struct {
		src, dst netip.AddrPort
		isn      uint32 // of the SYN, so that a port used again is another stream
	}
	type segment struct {
		offset int64 // from the first sequence number seen
		data   []byte
	}
	var order []key
	segments := map[key][]segment{}
	current := map[[2]netip.AddrPort]key{}
	first := map[key]uint32{}
	for _, p := range packets {
		if p.Proto != protoTCP || p.Src.Port() == 0 {
			continue
		}
		way := [2]netip.AddrPort{p.Src, p.Dst}
		k, known := current[way]
		begins := p.Flags&SYN != 0 && (!known || p.Seq != k.isn)
		if !known || begins {
			k = key{p.Src, p.Dst, p.Seq}
			current[way] = k
			first[k] = p.Seq
			order = append(order, k)
		}
		if len(p.Payload) == 0 {
			continue
		}
		// Signed, as a segment may come before the first one seen, and the
		// numbers wrap; relative to the last offset they would also pass 2 GiB.
		base := int64(0)
		if got := segments[k]; len(got) > 0 {
			base = got[len(got)-1].offset
		}
		offset := base + int64(int32(p.Seq-first[k]-uint32(base)))
		segments[k] = append(segments[k], segment{offset, p.Payload})
	}
	var streams []Stream
	for _, k := range order {
		got := segments[k]
		slices.SortStableFunc(got, func(a, b segment) int { return int(min(max(a.offset-b.offset, -1), 1)) })
		s := Stream{Src: k.src, Dst: k.dst}
		var next int64
		for i, seg := range got {
			if i == 0 {
				next = seg.offset
			}
			skip := min(max(next-seg.offset, 0), int64(len(seg.data))) // seen before
			s.Bytes = append(s.Bytes, seg.data[skip:]...)
			next = max(next, seg.offset+int64(len(seg.data)))
		}
		if len(s.Bytes) > 0 {
			streams = append(streams, s)
		}
	}
	return streams
}
