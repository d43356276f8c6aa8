package netns

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

// segment makes an Ethernet frame with IPv4 and TCP around payload.
func segment(seq uint32, flags uint8, payload string) []byte {
	frame := make([]byte, 14+20+20, 14+20+20+len(payload))
	binary.BigEndian.PutUint16(frame[12:], 0x0800)
	ip := frame[14:]
	ip[0], ip[9] = 0x45, protoTCP
	binary.BigEndian.PutUint16(ip[2:], uint16(40+len(payload)))
	copy(ip[12:], []byte{10, 99, 1, 1})
	copy(ip[16:], []byte{10, 99, 1, 2})
	tcp := ip[20:]
	binary.BigEndian.PutUint16(tcp, 40000)
	binary.BigEndian.PutUint16(tcp[2:], 23)
	binary.BigEndian.PutUint32(tcp[4:], seq)
	tcp[12], tcp[13] = 5<<4, flags
	return append(frame, payload...)
}

func TestReassemble(t *testing.T) {
	const wrap = 1<<32 - 3 // sequence numbers pass zero
	for _, test := range []struct {
		name   string
		frames [][]byte
		want   []string
	}{
		{"in order", [][]byte{segment(9, SYN, ""), segment(10, ACK, "ab"), segment(12, ACK, "c")}, []string{"abc"}},
		{"byte by byte", [][]byte{segment(10, ACK, "a"), segment(11, ACK, "b"), segment(12, ACK, "c")}, []string{"abc"}},
		{"out of order", [][]byte{segment(9, SYN, ""), segment(12, ACK, "c"), segment(10, ACK, "ab")}, []string{"abc"}},
		{"before the first seen", [][]byte{segment(12, ACK, "c"), segment(10, ACK, "ab")}, []string{"abc"}},
		{"again", [][]byte{segment(10, ACK, "ab"), segment(10, ACK, "ab"), segment(12, ACK, "c")}, []string{"abc"}},
		{"overlapping", [][]byte{segment(10, ACK, "ab"), segment(10, ACK, "abc"), segment(11, ACK, "bcd")}, []string{"abcd"}},
		{"a gap", [][]byte{segment(10, ACK, "ab"), segment(20, ACK, "cd")}, []string{"abcd"}},
		{"wrapping", [][]byte{segment(wrap, SYN, ""), segment(wrap+1, ACK, "ab"), segment(0, ACK, "cd")}, []string{"abcd"}},
		{"a port used again", [][]byte{
			segment(9, SYN, ""), segment(10, ACK, "ab"), segment(5000, SYN, ""), segment(5001, ACK, "cd"),
		}, []string{"ab", "cd"}},
		{"a repeated SYN", [][]byte{segment(9, SYN, ""), segment(9, SYN, ""), segment(10, ACK, "ab")}, []string{"ab"}},
		{"nothing said", [][]byte{segment(9, SYN, ""), segment(10, ACK|FIN, "")}, nil},
	} {
		var packets []Packet
		for _, frame := range test.frames {
			packets = append(packets, parse(frame))
		}
		var got []string
		for _, s := range reassemble(packets) {
			got = append(got, string(s.Bytes))
			if want := netip.MustParseAddrPort("10.99.1.2:23"); s.Dst != want {
				t.Errorf("%s: to %s", test.name, s.Dst)
			}
		}
		if len(got) != len(test.want) {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
			continue
		}
		for i := range got {
			if got[i] != test.want[i] {
				t.Errorf("%s: got %q, want %q", test.name, got, test.want)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(segment(1, SYN|ACK, "payload"))
	f.Add([]byte("short"))
	f.Add(append(make([]byte, 12), 0x86, 0xdd, 0x60))
	f.Fuzz(func(t *testing.T, frame []byte) {
		p := parse(frame)
		if len(p.Payload) > len(frame) || string(p.Frame) != string(frame) {
			t.Error("bytes out of nowhere")
		}
		reassemble([]Packet{p, p})
	})
}
