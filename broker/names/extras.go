package names

import (
	"encoding/binary"

	"golang.org/x/net/dns/dnsmessage"
)

// withoutExtras takes everything but EDNS out of the additional section: addresses of
// names in the answer, as of a mail exchanger. They may be pseudo, and nobody asked for
// them, so that no rule by name would match. An answer without such, or one cut short
// that cannot be read, stays as it is, byte for byte.
func withoutExtras(answer []byte) ([]byte, error) {
	kept, err := cutExtras(answer)
	if err != nil && truncated(answer) {
		return answer, nil
	}
	return kept, err
}

// cutExtras may write to answer, which has a whole header.
func cutExtras(answer []byte) ([]byte, error) {
	count := func(section int) int { return int(binary.BigEndian.Uint16(answer[4+2*section:])) }
	at, err := headerSize, error(nil)
	for range count(0) {
		if at, err = skipName(answer, at); err != nil {
			return nil, err
		}
		at += 4 // type, class
	}
	for range count(1) + count(2) {
		if _, at, err = skipRecord(answer, at); err != nil {
			return nil, err
		}
	}
	if at > len(answer) {
		return nil, errBadAnswer
	}
	kept, n := answer[:at:at], 0 // appending copies
	for range count(3) {
		typ, end, err := skipRecord(answer, at)
		if err != nil {
			return nil, err
		}
		if typ == dnsmessage.TypeOPT { // its name is the root: no pointer goes wrong
			kept, n = append(kept, answer[at:end]...), n+1
		}
		at = end
	}
	if n == count(3) {
		return answer, nil
	}
	binary.BigEndian.PutUint16(kept[10:], uint16(n))
	return kept, nil
}

// skipRecord returns the type of the record that begins at that place, and its end,
// RFC 1035 section 4.1.3.
func skipRecord(msg []byte, at int) (typ dnsmessage.Type, end int, err error) {
	at, err = skipName(msg, at)
	if err != nil || at+10 > len(msg) {
		return 0, 0, errBadAnswer
	}
	end = at + 10 + int(binary.BigEndian.Uint16(msg[at+8:]))
	if end > len(msg) {
		return 0, 0, errBadAnswer
	}
	return dnsmessage.Type(binary.BigEndian.Uint16(msg[at:])), end, nil
}

// skipName returns the end of a name, which a pointer ends as well.
func skipName(msg []byte, at int) (end int, err error) {
	for at < len(msg) {
		switch size := int(msg[at]); {
		case size == 0:
			return at + 1, nil
		case size >= 0xc0 && at+2 <= len(msg):
			return at + 2, nil
		case size > maxLabel:
			return 0, errBadAnswer
		default:
			at += 1 + size
		}
	}
	return 0, errBadAnswer
}
