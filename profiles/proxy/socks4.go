package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
)

// SOCKS4 and its extension 4A, as OpenSSH's copies of the two memos have them
// (socks4.protocol, socks4a.protocol).
const (
	socks4Version = 4
	socks4Connect = 1
	socks4Granted = 90
)

var socks4Refusals = map[byte]string{
	91: "it rejected the request or could not reach the server",
	92: "it could not ask this host who its user is (identd)",
	93: "this host says that its user is another one (identd)",
}

// socks4 asks for a server by its address, or with SOCKS4a by its name.
func (d Dialer) socks4(ctx context.Context, r *Rule, conn net.Conn, host string, port uint16) error {
	if strings.IndexByte(host+r.User, 0) >= 0 {
		return errors.New("the name has a NUL")
	}
	addr, err := netip.ParseAddr(host)
	name := ""
	switch {
	case err == nil && !addr.Unmap().Is4():
		return errors.New("SOCKS4 reaches no IPv6 address; socks5 does")
	case err == nil:
		addr = addr.Unmap()
	case r.Kind == SOCKS4a:
		addr, name = netip.AddrFrom4([4]byte{0, 0, 0, 1}), host
	default:
		list, lerr := d.lookup(ctx, "ip4", host)
		if lerr == nil && len(list) == 0 {
			lerr = errors.New("it has no IPv4 address")
		}
		if lerr != nil {
			return fmt.Errorf("SOCKS4 wants the name resolved here (socks4a and socks5 have the proxy do it): %w", lerr)
		}
		addr = list[0].Unmap()
	}
	ip := addr.As4()
	request := binary.BigEndian.AppendUint16([]byte{socks4Version, socks4Connect}, port)
	request = append(append(append(request, ip[:]...), r.User...), 0)
	if name != "" {
		request = append(append(request, name...), 0)
	}
	if _, err := conn.Write(request); err != nil {
		return err
	}
	var reply [8]byte
	if _, err := io.ReadFull(conn, reply[:]); err != nil {
		return unanswered(err)
	}
	switch {
	case reply[0] != 0:
		return errors.New("its answer is not SOCKS4")
	case reply[1] == socks4Granted:
		return nil
	case socks4Refusals[reply[1]] != "":
		return errors.New(socks4Refusals[reply[1]])
	}
	return fmt.Errorf("it refused with code %d", reply[1])
}

// unanswered says what the end of a connection means in the middle of an answer.
func unanswered(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the connection was closed without an answer")
	}
	return err
}
