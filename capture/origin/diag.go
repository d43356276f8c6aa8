package origin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
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
	offsetUID        = 64
	offsetInode      = 68
)

// Socket is what the kernel says of one TCP socket.
type Socket struct {
	State uint8
	UID   uint32
	Inode uint32
}

// Diag is a socket-diagnostics socket. It answers for the network namespace in
// which it was made, from whichever process holds it. Safe for concurrent use.
type Diag struct {
	mu   sync.Mutex // one question at a time
	file *os.File
	raw  syscall.RawConn
	seq  uint32
	buf  [4096]byte
}

// OpenDiag makes a diagnostics socket in the current network namespace.
func OpenDiag() (*Diag, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("socket diagnostics: %w", err)
	}
	return AdoptDiag(os.NewFile(uintptr(fd), "socket diagnostics"))
}

// AdoptDiag takes over a diagnostics socket made elsewhere, and owns it.
func AdoptDiag(f *os.File) (*Diag, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("socket diagnostics: %w", err)
	}
	return &Diag{file: f, raw: raw}, nil
}

// File is the socket, to be duplicated into another process.
func (d *Diag) File() *os.File { return d.file }

// Close closes the socket.
func (d *Diag) Close() error { return d.file.Close() }

// Lookup asks for the socket whose own address is local and whose peer is remote.
// Where no connection has that tuple, a listener that would take it is found.
func (d *Diag) Lookup(local, remote netip.AddrPort) (Socket, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seq++
	req := request(d.seq, local, remote)
	var n int
	var serr error
	err := d.raw.Write(func(fd uintptr) bool {
		serr = unix.Sendto(int(fd), req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return serr != unix.EAGAIN && serr != unix.EINTR
	})
	for err == nil && serr == nil {
		err = d.raw.Read(func(fd uintptr) bool {
			n, _, serr = unix.Recvfrom(int(fd), d.buf[:], 0)
			return serr != unix.EAGAIN && serr != unix.EINTR
		})
		if err != nil || serr != nil {
			break
		}
		if b := d.buf[:n]; n >= unix.SizeofNlMsghdr && binary.NativeEndian.Uint32(b[8:]) == d.seq {
			return answer(b)
		}
	}
	return Socket{}, fmt.Errorf("socket diagnostics: %w", errors.Join(err, serr))
}

func request(seq uint32, local, remote netip.AddrPort) []byte {
	b := make([]byte, unix.SizeofNlMsghdr+requestLen)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(b[8:], seq)
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
			return Socket{}, fmt.Errorf("socket diagnostics: %w", errno)
		}
	}
	if len(body) < answerLen {
		return Socket{}, fmt.Errorf("socket diagnostics: answer of %d bytes", len(body))
	}
	return Socket{
		State: body[offsetState],
		UID:   binary.NativeEndian.Uint32(body[offsetUID:]),
		Inode: binary.NativeEndian.Uint32(body[offsetInode:]),
	}, nil
}
