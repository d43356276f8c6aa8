package owner

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"sshbroker/capture/listen"
	"sshbroker/capture/netlink"
	"sshbroker/capture/origin"
)

// ErrSeveral means that sockets of several users could have sent it. Nobody is named.
var ErrSeveral = errors.New("sockets of several users have that port")

// Bits for the states in which a socket has an owner: for TCP all but TIME_WAIT, LISTEN,
// CLOSE and NEW_SYN_RECV; a socket for UDP is connected (1) or not (7).
const (
	statesTCP = 1<<origin.StateEstablished | 1<<origin.StateSynSent | 1<<4 | 1<<5 | 1<<8 | 1<<9 | 1<<11
	statesUDP = 1<<origin.StateEstablished | 1<<7
)

const (
	offsetLocalPort = 4
	offsetLocalAddr = 8
	attrV6Only      = 11 // INET_DIAG_SKV6ONLY, of unconnected sockets
	maxDumpReads    = 16 // of some sixty sockets each
	dumpRead        = 8 << 10
)

// Of returns the uid of the socket that sent from local over network "udp" or
// "tcp". remote is the destination that the program meant; the zero value where that
// is not known, as a redirected datagram does not tell. origin.ErrNoSocket: it was closed.
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
// The walks see the namespace of the calling thread; Of fails where that is not d's.
func Of(d *origin.Diag, network string, local, remote netip.AddrPort) (uid uint32, err error) {
	local = netip.AddrPortFrom(local.Addr().Unmap().WithZone(""), local.Port())
	remote = netip.AddrPortFrom(remote.Addr().Unmap().WithZone(""), remote.Port())
	switch {
	case !local.IsValid() || local.Port() == 0:
		return 0, fmt.Errorf("socket diagnostics: %v is no address of a socket", local)
	case network == "tcp" && remote.IsValid():
		sock, err := d.Lookup(local, remote)
		if err == nil && (sock.Inode == 0 || sock.State == origin.StateListen) {
			return 0, fmt.Errorf("socket diagnostics: %w", origin.ErrNoSocket)
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
		err = origin.ErrNoSocket
	}
	if err != nil {
		return 0, fmt.Errorf("socket diagnostics: %w", err)
	}
	return w.uid, nil
}

// OfPeer returns the uid of the socket at the other end of c, which was accepted on
// this host, redirected or not. origin.ErrNoSocket: it was closed, or the redirect rewrote its
// port, as it does where that port talks to another destination as well. Whoever holds
// the new port is named only if that is connected to the same destination, and was not
// redirected to where c was.
func OfPeer(d *origin.Diag, c *net.TCPConn) (uid uint32, err error) {
	remote, err := listen.OriginalDestination(c)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOPROTOOPT) { // it was not diverted
		remote, err = c.LocalAddr().(*net.TCPAddr).AddrPort(), nil
	}
	if err != nil {
		return 0, fmt.Errorf("socket diagnostics: %w", err)
	}
	return Of(d, "tcp", c.RemoteAddr().(*net.TCPAddr).AddrPort(), remote)
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
func (w *walk) family(d *origin.Diag, family uint8) error {
	s, err := netlink.Open(unix.NETLINK_SOCK_DIAG, 0)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := sameNamespace(d, s); err != nil {
		return err
	}
	protocol, states := uint8(unix.IPPROTO_UDP), uint32(statesUDP)
	if w.tcp {
		protocol, states = unix.IPPROTO_TCP, statesTCP
	}
	question := origin.Request(family, protocol, states, w.local, netip.AddrPort{})
	if err := s.Send(netlink.Append(nil, origin.MsgSockets, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, 0, question)); err != nil {
		return err
	}
	buf := make([]byte, dumpRead)
	for range maxDumpReads {
		b, err := s.Poll(buf)
		if err != nil {
			return err
		}
		if done, err := w.read(b); done || err != nil {
			return err
		}
	}
	return ErrSeveral // more than anybody needs
}

// sameNamespace compares the namespaces of d and s, on kernels that can tell (5.14).
func sameNamespace(d *origin.Diag, s *netlink.Socket) error {
	mine, err := cookie(d.Socket)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return nil
	}
	here, herr := cookie(s)
	if err = errors.Join(err, herr); err == nil && here != mine {
		err = errors.New("made in another network namespace")
	}
	return err
}

// cookie is the number of the namespace in which s was made.
func cookie(s *netlink.Socket) (c uint64, err error) {
	err = s.Control(func(fd int) (err error) {
		c, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	return c, err
}

// read takes one datagram of the list, and reports whether it was the last.
func (w *walk) read(b []byte) (done bool, err error) {
	messages, malformed := netlink.Messages(b)
	for _, m := range messages {
		if m.Type == unix.NLMSG_DONE {
			return true, nil
		}
		sock, err := origin.Parse(m)
		if err == nil {
			err = w.take(sock, m.Body)
		}
		if err != nil {
			return true, err
		}
	}
	return malformed != nil, malformed
}

// take gives one socket its say.
func (w *walk) take(sock origin.Socket, body []byte) error {
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
	case !four && w.local.Addr().Is4() && v6Only(body[origin.AnswerLen:]):
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
	only := netlink.Find(attrs, attrV6Only)
	return len(only) > 0 && only[0] == 1
}
