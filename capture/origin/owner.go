package origin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"sshbroker/capture/listen"
)

// ErrSeveral means that sockets of several users could have sent it. Nobody is named.
var ErrSeveral = errors.New("sockets of several users have that port")

// Bits for the states in which a socket has an owner: for TCP all but TIME_WAIT, LISTEN,
// CLOSE and NEW_SYN_RECV; a socket for UDP is connected (1) or not (7).
const (
	statesTCP = 1<<StateEstablished | 1<<StateSynSent | 1<<4 | 1<<5 | 1<<8 | 1<<9 | 1<<11
	statesUDP = 1<<StateEstablished | 1<<7
)

const (
	offsetLocalPort = 4
	offsetLocalAddr = 8
	attrV6Only      = 11 // INET_DIAG_SKV6ONLY, of unconnected sockets
	maxDumpReads    = 16 // of some sixty sockets each
	dumpRead        = 8 << 10
)

// Owner returns the uid of the socket that sent from local over network "udp" or
// "tcp". remote is the destination that the program meant; the zero value where that
// is not known, as a redirected datagram does not tell. ErrNoSocket: it was closed.
//
// For UDP remote does not count, nor does an exact look-up: that finds one socket
// where several share a port, and not a connected one without its remote. Instead
// every socket with the port is listed, and each one that could send over this family
// has a say, whatever it is bound to: IP_PKTINFO lets a program choose any source
// address of the host. One of them must fit local.
//
// local must be the socket's own port: a redirect rewrites it where a socket asks two
// servers, and then nobody is found, or, seldom, whoever holds the new port.
//
// Costs two walks through the kernel's table of sockets, except for TCP with remote.
// The walks see the namespace of the calling thread; Owner fails where that is not d's.
func (d *Diag) Owner(network string, local, remote netip.AddrPort) (uid uint32, err error) {
	local = netip.AddrPortFrom(local.Addr().Unmap().WithZone(""), local.Port())
	remote = netip.AddrPortFrom(remote.Addr().Unmap().WithZone(""), remote.Port())
	switch {
	case !local.IsValid() || local.Port() == 0:
		return 0, fmt.Errorf("socket diagnostics: %v is no address of a socket", local)
	case network == "tcp" && remote.IsValid():
		sock, err := d.Lookup(local, remote)
		if err == nil && (sock.Inode == 0 || sock.State == StateListen) {
			return 0, fmt.Errorf("socket diagnostics: %w", ErrNoSocket)
		}
		return sock.UID, err
	case network != "tcp" && network != "udp":
		return 0, fmt.Errorf("socket diagnostics: no such network: %q", network)
	}
	w := walk{local: local, tcp: network == "tcp"}
	err = w.family(d, unix.AF_INET6)
	if err == nil && local.Addr().Is4() {
		err = w.family(d, unix.AF_INET)
	}
	if err == nil && !w.fits {
		err = ErrNoSocket
	}
	if err != nil {
		return 0, fmt.Errorf("socket diagnostics: %w", err)
	}
	return w.uid, nil
}

// OwnerOfPeer returns the uid of the socket at the other end of c, which was accepted on
// this host, redirected or not. ErrNoSocket: it was closed, or the redirect rewrote its
// port, as it does where that port talks to another destination as well. Whoever holds
// the new port is named only if that is connected to the same destination, and was not
// redirected to where c was.
func (d *Diag) OwnerOfPeer(c *net.TCPConn) (uid uint32, err error) {
	remote, err := listen.Destination(c)
	if err != nil {
		return 0, fmt.Errorf("socket diagnostics: %w", err)
	}
	return d.Owner("tcp", c.RemoteAddr().(*net.TCPAddr).AddrPort(), remote)
}

// walk looks for everybody who could have sent from local.
type walk struct {
	local netip.AddrPort
	tcp   bool

	uid         uint32
	found, fits bool
}

// family lists the sockets of one address family on a netlink socket of its own, which
// ends the list when it is closed: nobody can make others wait by having many sockets.
func (w *walk) family(d *Diag, family uint8) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := d.sameNamespace(fd); err != nil {
		return err
	}
	question := request(w.local, netip.AddrPort{})
	binary.NativeEndian.PutUint32(question, uint32(len(question)))
	binary.NativeEndian.PutUint16(question[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	r := question[unix.SizeofNlMsghdr:]
	r[0] = family
	states := uint32(statesTCP)
	if !w.tcp {
		r[1], states = unix.IPPROTO_UDP, statesUDP
	}
	binary.NativeEndian.PutUint32(r[4:], states)
	if err := unix.Sendto(fd, question, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, dumpRead)
	for range maxDumpReads {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return err
		}
		if done, err := w.read(buf[:n]); done || err != nil {
			return err
		}
	}
	return ErrSeveral // more than anybody needs
}

// sameNamespace compares the namespaces of d and fd, on kernels that can tell (5.14).
func (d *Diag) sameNamespace(fd int) error {
	raw, err := d.File().SyscallConn()
	if err != nil {
		return err
	}
	var mine uint64
	var failed error
	err = raw.Control(func(fd uintptr) {
		mine, failed = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	})
	if errors.Is(failed, unix.ENOPROTOOPT) {
		return nil
	}
	here, herr := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err = errors.Join(err, failed, herr); err == nil && here != mine {
		err = errors.New("made in another network namespace")
	}
	return err
}

// read takes one datagram of the list, and reports whether it was the last.
func (w *walk) read(b []byte) (done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return true, fmt.Errorf("message of %d bytes in %d", size, len(b))
		}
		typ := binary.NativeEndian.Uint16(b[4:])
		if typ == unix.NLMSG_DONE {
			return true, nil
		}
		sock, err := answer(b[:size])
		if err != nil {
			return true, err
		}
		if err := w.take(sock, b[unix.SizeofNlMsghdr:size]); err != nil {
			return true, err
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return false, nil
}

// take gives one socket its say.
func (w *walk) take(sock Socket, body []byte) error {
	addr := netip.AddrFrom16([16]byte(body[offsetLocalAddr:])).Unmap()
	four := body[0] == unix.AF_INET
	if four {
		addr = netip.AddrFrom4([4]byte(body[offsetLocalAddr:]))
	}
	here := addr == w.local.Addr()
	switch {
	case sock.Inode == 0, binary.BigEndian.Uint16(body[offsetLocalPort:]) != w.local.Port():
		return nil // of what was closed, some kernels say that it is root's
	case w.tcp && !here:
		return nil // a connection's source is what it is
	case !four && w.local.Addr().Is4() && v6Only(body[answerLen:]):
		return nil
	}
	if w.found && w.uid != sock.UID {
		return ErrSeveral
	}
	w.found, w.uid = true, sock.UID
	w.fits = w.fits || here || addr.IsUnspecified()
	return nil
}

func v6Only(attrs []byte) bool {
	for len(attrs) >= attrHeaderLen {
		size := int(binary.NativeEndian.Uint16(attrs))
		if size < attrHeaderLen || size > len(attrs) {
			return false
		}
		if binary.NativeEndian.Uint16(attrs[2:]) == attrV6Only && size > attrHeaderLen {
			return attrs[attrHeaderLen] == 1
		}
		attrs = attrs[min((size+3)&^3, len(attrs)):]
	}
	return false
}
