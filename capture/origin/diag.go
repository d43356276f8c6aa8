package origin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"sshbroker/capture/inquiry"
)

// ErrNoSocket means that no socket has the tuple: the program closed it.
var ErrNoSocket = errors.New("no such socket")

// TCP states of include/net/tcp_states.h.
const (
	StateEstablished = 1
	StateSynSent     = 2
	StateListen      = 10
)

// From linux/inet_diag.h and linux/sock_diag.h.
const (
	sockDiagByFamily = 20
	requestLen       = 56
	answerLen        = 72
	offsetState      = 1
	offsetCookie     = 44 // two words, the lower one first
	offsetUID        = 64
	offsetInode      = 68
	attrHeaderLen    = 4
	attrCgroupID     = 21
)

// Socket is what the kernel says of one TCP socket.
type Socket struct {
	State  uint8
	UID    uint32
	Inode  uint32
	Cookie uint64 // never used again while the kernel runs
	Cgroup uint64 // id of the cgroup2 directory it was made in; 0 where the kernel does not say
}

// Diag is a socket-diagnostics socket. It answers for the network namespace in
// which it was made, from whichever process holds it. Safe for concurrent use.
type Diag struct{ *inquiry.Socket }

// OpenDiag makes a diagnostics socket in the current network namespace.
func OpenDiag() (*Diag, error) {
	s, err := inquiry.Open(unix.NETLINK_SOCK_DIAG, "socket diagnostics")
	if err != nil {
		return nil, fmt.Errorf("socket diagnostics: %w", err)
	}
	return &Diag{s}, nil
}

// AdoptDiag takes over a diagnostics socket made elsewhere, and owns it.
func AdoptDiag(f *os.File) (*Diag, error) {
	s, err := inquiry.Adopt(f)
	if err != nil {
		return nil, fmt.Errorf("socket diagnostics: %w", err)
	}
	return &Diag{s}, nil
}

// Lookup asks for the socket whose own address is local and whose peer is remote.
// Where no connection has that tuple, a listener that would take it is found.
func (d *Diag) Lookup(local, remote netip.AddrPort) (sock Socket, err error) {
	err = d.Ask(request(local, remote), func(b []byte) (err error) {
		sock, err = answer(b)
		return err
	})
	if err != nil {
		return Socket{}, fmt.Errorf("socket diagnostics: %w", err)
	}
	return sock, nil
}

func request(local, remote netip.AddrPort) []byte {
	b := make([]byte, unix.SizeofNlMsghdr+requestLen)
	binary.NativeEndian.PutUint16(b[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	r := b[unix.SizeofNlMsghdr:]
	r[0] = unix.AF_INET6
	if local.Addr().Is4() {
		r[0] = unix.AF_INET
	}
	r[1] = unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(r[4:], 0xffffffff) // every state
	id := r[8:]
	binary.BigEndian.PutUint16(id, local.Port())
	binary.BigEndian.PutUint16(id[2:], remote.Port())
	copy(id[4:20], local.Addr().AsSlice())
	copy(id[20:36], remote.Addr().AsSlice())
	for i := 40; i < 48; i++ {
		id[i] = 0xff // any cookie
	}
	return b
}

func answer(b []byte) (Socket, error) {
	body := b[unix.SizeofNlMsghdr:]
	if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR && len(body) >= 4 {
		switch errno := unix.Errno(-int32(binary.NativeEndian.Uint32(body))); errno {
		case unix.ENOENT, 0:
			return Socket{}, ErrNoSocket
		default:
			return Socket{}, errno
		}
	}
	if len(body) < answerLen {
		return Socket{}, fmt.Errorf("answer of %d bytes", len(body))
	}
	cookie := body[offsetCookie:]
	return Socket{
		State:  body[offsetState],
		UID:    binary.NativeEndian.Uint32(body[offsetUID:]),
		Inode:  binary.NativeEndian.Uint32(body[offsetInode:]),
		Cookie: uint64(binary.NativeEndian.Uint32(cookie)) | uint64(binary.NativeEndian.Uint32(cookie[4:]))<<32,
		Cgroup: cgroupID(body[answerLen:]),
	}, nil
}

// cgroupID reads it from the attributes of an answer.
func cgroupID(attrs []byte) uint64 {
	for len(attrs) >= attrHeaderLen {
		n := int(binary.NativeEndian.Uint16(attrs))
		if n < attrHeaderLen || n > len(attrs) {
			return 0
		}
		if binary.NativeEndian.Uint16(attrs[2:]) == attrCgroupID && n >= attrHeaderLen+8 {
			return binary.NativeEndian.Uint64(attrs[attrHeaderLen:])
		}
		attrs = attrs[min((n+3)&^3, len(attrs)):] // each begins at a multiple of four
	}
	return 0
}
