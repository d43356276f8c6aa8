package netns

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// DNS is a name server that keeps what it was asked.
type DNS struct {
	zone map[string][]string

	mu      sync.Mutex
	queries []string // "name type", in lower case, without the last dot
}

// StartDNS serves the names of zone on port 53 of an address of the machine, over UDP
// and TCP. Their values are IPv4 and IPv6 addresses, or "hint ADDRESS" for a hint in an
// HTTPS record (RFC 9460). Any other name does not exist. The test's end stops it.
func (m *Machine) StartDNS(t testing.TB, addr netip.Addr, zone map[string][]string) *DNS {
	t.Helper()
	s := &DNS{zone: zone}
	at := netip.AddrPortFrom(addr, 53).String()
	var udp net.PacketConn
	if err := m.Do(func() (err error) { udp, err = net.ListenPacket("udp", at); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close() })
	tcp := m.Listen(t, "tcp", at)
	go s.serveDatagrams(udp)
	go s.serveConnections(tcp)
	return s
}

// Asked returns the queries so far, as "name TYPE" in lower case without the last dot.
func (s *DNS) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.queries)
}

func (s *DNS) serveDatagrams(udp net.PacketConn) {
	b := make([]byte, 4096)
	for {
		n, from, err := udp.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			udp.WriteTo(s.answer(b[:n], false), from)
		}
	}
}

func (s *DNS) serveConnections(tcp net.Listener) {
	for {
		c, err := tcp.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			for {
				var size [2]byte
				if _, err := io.ReadFull(c, size[:]); err != nil {
					return
				}
				msg := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(c, msg); err != nil {
					return
				}
				answer := s.answer(msg, true)
				c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
			}
		}()
	}
}

func (s *DNS) answer(msg []byte, tcp bool) []byte {
	var q dnsmessage.Message
	if q.Unpack(msg) != nil || len(q.Questions) != 1 {
		return nil
	}
	question := q.Questions[0]
	name := strings.ToLower(strings.TrimSuffix(question.Name.String(), "."))
	s.mu.Lock()
	s.queries = append(s.queries, name+" "+strings.TrimPrefix(question.Type.String(), "Type"))
	s.mu.Unlock()

	r := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: q.ID, Response: true, RecursionDesired: true, RecursionAvailable: true},
		Questions: q.Questions,
	}
	values, known := s.zone[name]
	if !known {
		r.RCode = dnsmessage.RCodeNameError
	}
	for _, body := range records(values, question.Type) {
		h := dnsmessage.ResourceHeader{Name: question.Name, Type: question.Type, Class: question.Class, TTL: 60}
		r.Answers = append(r.Answers, dnsmessage.Resource{Header: h, Body: body})
	}
	b, err := r.Pack()
	if err == nil && !tcp && len(b) > 512 {
		r.Answers, r.Truncated = nil, true
		b, err = r.Pack()
	}
	if err != nil {
		return nil
	}
	return b
}

// records are those of values that are of a type.
func records(values []string, typ dnsmessage.Type) (list []dnsmessage.ResourceBody) {
	var hints4, hints6 []byte
	for _, value := range values {
		text, hint := strings.CutPrefix(value, "hint ")
		a := netip.MustParseAddr(text)
		switch {
		case hint && a.Is4():
			hints4 = append(hints4, a.AsSlice()...)
		case hint:
			hints6 = append(hints6, a.AsSlice()...)
		case typ == dnsmessage.TypeA && a.Is4():
			list = append(list, &dnsmessage.AResource{A: a.As4()})
		case typ == dnsmessage.TypeAAAA && a.Is6():
			list = append(list, &dnsmessage.AAAAResource{AAAA: a.As16()})
		}
	}
	if typ == dnsmessage.TypeHTTPS && len(hints4)+len(hints6) > 0 {
		list = append(list, &dnsmessage.UnknownResource{Type: typ, Data: https(hints4, hints6)})
	}
	return list
}

// https is the data of an HTTPS record in service mode for the name itself, RFC 9460
// section 2.2: priority 1, the target ".", and the hints.
func https(hints4, hints6 []byte) []byte {
	const ipv4hint, ipv6hint = 4, 6
	data := []byte{0, 1, 0}
	for _, p := range []struct {
		key   uint16
		value []byte
	}{{ipv4hint, hints4}, {ipv6hint, hints6}} {
		if len(p.value) > 0 {
			data = binary.BigEndian.AppendUint16(data, p.key)
			data = binary.BigEndian.AppendUint16(data, uint16(len(p.value)))
			data = append(data, p.value...)
		}
	}
	return data
}
