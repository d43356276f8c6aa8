package listeners

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"sshbroker/profiles"
)

// reply is what a program is told in each case; nothing where there is nothing to say.
type reply struct{ granted, refused, unreachable []byte }

// RFC 1928 for SOCKS5; socks4.protocol and socks4a.protocol for the others.
const (
	socksConnect = 1

	socks4Granted, socks4Rejected = 90, 91

	socks5NoAuthentication, socks5NoMethod          = 0, 0xff
	socks5Unreachable, socks5Refused, socks5Command = 4, 5, 7
	socks5IPv4, socks5Name, socks5IPv6, socks5Type  = 1, 3, 4, 8
	socksMaxText                                    = 255
)

// readSOCKS reads a request up to its last byte and not beyond: what follows is for the
// destination. What it cannot serve it answers.
func readSOCKS(c io.ReadWriter) (host string, port uint16, r reply, err error) {
	version, err := readByte(c)
	if err == nil {
		switch version {
		case 4:
			host, port, r, err = readSOCKS4(c)
		case 5:
			host, port, r, err = readSOCKS5(c)
		default:
			err = fmt.Errorf("byte %#x is no version of SOCKS", version)
		}
	}
	if err != nil {
		return "", 0, reply{}, fmt.Errorf("SOCKS request: %w", err)
	}
	return host, port, r, nil
}

func socks4Reply(code byte) []byte { return []byte{0, code, 0, 0, 0, 0, 0, 0} }
func socks5Reply(code byte) []byte { return []byte{5, code, 0, socks5IPv4, 0, 0, 0, 0, 0, 0} }

func readSOCKS4(c io.ReadWriter) (host string, port uint16, r reply, err error) {
	var head [7]byte
	if _, err = io.ReadFull(c, head[:]); err != nil {
		return
	}
	if _, err = readText(c); err != nil { // the user, who is known better otherwise
		return
	}
	port = binary.BigEndian.Uint16(head[1:])
	addr := netip.AddrFrom4([4]byte(head[3:]))
	host = addr.String()
	if b := addr.As4(); b[0] == 0 && b[1] == 0 && b[2] == 0 && b[3] != 0 { // SOCKS4A
		if host, err = readText(c); err != nil {
			return
		}
	}
	if head[0] != socksConnect {
		_, _ = c.Write(socks4Reply(socks4Rejected))
		return "", 0, r, fmt.Errorf("command %d is not served", head[0])
	}
	if err = checkTarget(host, port); err != nil {
		_, _ = c.Write(socks4Reply(socks4Rejected))
		return
	}
	rejected := socks4Reply(socks4Rejected)
	return host, port, reply{socks4Reply(socks4Granted), rejected, rejected}, nil
}

func readSOCKS5(c io.ReadWriter) (host string, port uint16, r reply, err error) {
	methods, err := readCounted(c)
	if err != nil {
		return
	}
	method := byte(socks5NoMethod)
	for _, m := range methods {
		if m == socks5NoAuthentication {
			method = m
		}
	}
	if _, err = c.Write([]byte{5, method}); err != nil {
		return
	}
	if method == socks5NoMethod {
		return "", 0, r, errors.New("the client insists on authentication")
	}
	var head [4]byte
	if _, err = io.ReadFull(c, head[:]); err != nil {
		return
	}
	if head[0] != 5 {
		return "", 0, r, fmt.Errorf("version %d within SOCKS5", head[0])
	}
	refuse := func(code byte, why error) (string, uint16, reply, error) {
		_, _ = c.Write(socks5Reply(code))
		return "", 0, reply{}, why
	}
	switch head[3] {
	case socks5IPv4:
		var b [4]byte
		_, err = io.ReadFull(c, b[:])
		host = netip.AddrFrom4(b).String()
	case socks5IPv6:
		var b [16]byte
		_, err = io.ReadFull(c, b[:])
		host = netip.AddrFrom16(b).Unmap().String()
	case socks5Name:
		var b []byte
		b, err = readCounted(c)
		host = string(b)
	default:
		return refuse(socks5Type, fmt.Errorf("address type %d", head[3]))
	}
	if err != nil {
		return
	}
	var b [2]byte
	if _, err = io.ReadFull(c, b[:]); err != nil {
		return
	}
	port = binary.BigEndian.Uint16(b[:])
	if head[1] != socksConnect {
		return refuse(socks5Command, fmt.Errorf("command %d is not served", head[1]))
	}
	if err = checkTarget(host, port); err != nil {
		return refuse(socks5Unreachable, err)
	}
	return host, port, reply{socks5Reply(0), socks5Reply(socks5Refused), socks5Reply(socks5Unreachable)}, nil
}

// checkTarget refuses what cannot be a destination.
func checkTarget(host string, port uint16) error {
	if port == 0 {
		return errors.New("port 0")
	}
	return profiles.CheckHost(host)
}

func readByte(r io.Reader) (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(r, b[:])
	return b[0], err
}

// readCounted reads a byte that says how many follow, and these.
func readCounted(r io.Reader) ([]byte, error) {
	n, err := readByte(r)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	_, err = io.ReadFull(r, b)
	return b, err
}

// readText reads up to a NUL.
func readText(r io.Reader) (string, error) {
	var text []byte
	for len(text) <= socksMaxText {
		b, err := readByte(r)
		if err != nil {
			return "", err
		}
		if b == 0 {
			return string(text), nil
		}
		text = append(text, b)
	}
	return "", fmt.Errorf("a text of more than %d bytes", socksMaxText)
}
