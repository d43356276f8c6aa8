package listeners

import (
	"context"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/broker"
	"sshbroker/capture"
)

// replyTime is how long an answer may take to be sent, which is as good as never more
// than no time: it is small and the first that is sent.
const replyTime = 5 * time.Second

// attempt is a connection that waits for its answer.
type attempt struct {
	conn    *net.TCPConn
	flow    capture.Flow
	request broker.Request
	reply   reply
}

var (
	_ capture.Attempt  = (*attempt)(nil)
	_ capture.Waiter   = (*attempt)(nil)
	_ broker.Requester = (*attempt)(nil)
)

// attempt reads the request of a connection.
func (l *Listener) attempt(c *net.TCPConn, p Peer) (*attempt, error) {
	a := &attempt{conn: c, reply: reply{}}
	host, port, err := l.Host, l.Port, error(nil)
	switch l.Kind {
	case SOCKS:
		host, port, a.reply, err = readSOCKS(c)
	case HTTPConnect:
		host, port, a.reply, err = readConnect(c)
	}
	if err != nil {
		return nil, err
	}
	a.request = broker.Request{Host: host, Port: port, Service: l.Service, Judged: l.Judged, Profile: l.Profile, Way: l.Way, Stranger: l.stranger(p)}
	a.flow = capture.Flow{Src: addrPort(c.RemoteAddr()), Dst: a.request.Address(), UID: p.UID, Arrived: time.Now(), Origin: p.Origin}
	if a.flow.Origin == nil {
		a.flow.Origin = func() capture.Origin { return capture.Origin{} }
	}
	return a, nil
}

func addrPort(a net.Addr) netip.AddrPort {
	at := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port())
}

func (a *attempt) Flow() capture.Flow      { return a.flow }
func (a *attempt) Request() broker.Request { return a.request }
func (a *attempt) Pass() error             { return capture.ErrNoWayOut }

// Admit tells the program that it is connected.
func (a *attempt) Admit(context.Context) (*capture.Conn, error) {
	if err := a.say(a.reply.granted); err != nil {
		a.conn.Close()
		return nil, capture.ErrAbandoned
	}
	return &capture.Conn{TCPConn: a.conn}, nil
}

// Refuse tells the program that it is not, in the words that it understands; one that
// has none is reset.
func (a *attempt) Refuse(r capture.Refusal) {
	text := a.reply.unreachable
	if r == capture.Refused {
		text = a.reply.refused
	}
	if len(text) > 0 && a.say(text) == nil {
		_ = a.conn.SetLinger(-1)
	}
	a.conn.Close()
}

func (a *attempt) say(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	if err := a.conn.SetWriteDeadline(time.Now().Add(replyTime)); err != nil {
		return err
	}
	if _, err := a.conn.Write(text); err != nil {
		return err
	}
	return a.conn.SetWriteDeadline(time.Time{})
}

// tcpClose is TCP_CLOSE of include/net/tcp_states.h.
const tcpClose = 7

// Waits implements capture.Waiter: a program that has sent all it has still waits, one
// that has reset its connection does not.
func (a *attempt) Waits() bool {
	raw, err := a.conn.SyscallConn()
	if err != nil {
		return false
	}
	waits := true
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		waits = err != nil || info.State != tcpClose
	})
	return err == nil && waits
}
