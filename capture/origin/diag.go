package origin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"sshbroker/capture/netlink"
)

// ErrNoSocket means that no socket has the tuple: the program closed it.
var ErrNoSocket = errors.New("no such socket")

// TCP states of include/net/tcp_states.h.
const (
	StateEstablished = 1
	StateSynSent     = 2
	StateListen      = 10
)

// From linux/inet_diag.h and linux/sock_diag.h: where things are in an answer.
const (
	MsgSockets   = 20 // SOCK_DIAG_BY_FAMILY
	EveryState   = 0xffffffff
	requestLen   = 56
	AnswerLen    = 72 // attributes follow
	offsetState  = 1
	offsetCookie = 44 // two words, the lower one first
	offsetUID    = 64
	offsetInode  = 68
)

// Socket is what the kernel says of one TCP socket.
type Socket struct {
	State  uint8
	UID    uint32
	Inode  uint32
	Cookie uint64 // never used again while the kernel runs
}

// Diag is a socket-diagnostics socket. It answers for the network namespace in
// which it was made, from whichever process holds it. Safe for concurrent use.
type Diag struct{ netlink.Asker }

// OpenDiag makes a diagnostics socket in the current network namespace.
func OpenDiag() (*Diag, error) { return newDiag(netlink.Open(unix.NETLINK_SOCK_DIAG, 0)) }

// AdoptDiag takes over a diagnostics socket made elsewhere, and owns it.
func AdoptDiag(f *os.File) (*Diag, error) { return newDiag(netlink.Adopt(f)) }

func newDiag(s *netlink.Socket, err error) (*Diag, error) {
	if err != nil {
		return nil, fmt.Errorf("socket diagnostics: %w", err)
	}
	return &Diag{netlink.Asker{Socket: s}}, nil
}

// Lookup asks for the socket whose own address is local and whose peer is remote.
// Where no connection has that tuple, a listener that would take it is found.
func (d *Diag) Lookup(local, remote netip.AddrPort) (sock Socket, err error) {
	family := uint8(unix.AF_INET6)
	if local.Addr().Is4() {
		family = unix.AF_INET
	}
	m, err := d.Ask(MsgSockets, Request(family, unix.IPPROTO_TCP, EveryState, local, remote))
	if err == nil {
		sock, err = Parse(m)
	}
	if err != nil {
		return Socket{}, fmt.Errorf("socket diagnostics: %w", err)
	}
	return sock, nil
}

// Request is the body of a message that asks for sockets of a family, protocol and set
// of states, a bit each, with these addresses.
func Request(family, protocol uint8, states uint32, local, remote netip.AddrPort) []byte {
	r := make([]byte, requestLen)
	r[0], r[1] = family, protocol
	binary.NativeEndian.PutUint32(r[4:], states)
	id := r[8:]
	binary.BigEndian.PutUint16(id, local.Port())
	binary.BigEndian.PutUint16(id[2:], remote.Port())
	copy(id[4:20], local.Addr().AsSlice())
	copy(id[20:36], remote.Addr().AsSlice())
	for i := 40; i < 48; i++ {
		id[i] = 0xff // any cookie
	}
	return r
}

// Parse reads the kernel's answer about one socket, or its refusal.
func Parse(m netlink.Message) (Socket, error) {
	switch err := m.Err(); {
	case err == unix.ENOENT, err == nil && m.Type == unix.NLMSG_ERROR:
		return Socket{}, ErrNoSocket
	case err != nil:
		return Socket{}, err
	case len(m.Body) < AnswerLen:
		return Socket{}, fmt.Errorf("answer of %d bytes", len(m.Body))
	}
	cookie := m.Body[offsetCookie:]
	return Socket{
		State:  m.Body[offsetState],
		UID:    binary.NativeEndian.Uint32(m.Body[offsetUID:]),
		Inode:  binary.NativeEndian.Uint32(m.Body[offsetInode:]),
		Cookie: uint64(binary.NativeEndian.Uint32(cookie)) | uint64(binary.NativeEndian.Uint32(cookie[4:]))<<32,
	}, nil
}
