package daemon

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"sshbroker/broker"
	"sshbroker/broker/control"
	"sshbroker/capture"
	"sshbroker/profiles"
)

// joined is a connection that a client of ours has both ends of: one it keeps, the other
// it has given us to be joined to a flow. It waits for its answer.
type joined struct {
	call    *control.Call
	conn    *net.TCPConn
	flow    capture.Flow
	request broker.Request
	refused bool
	refusal capture.Refusal
}

var _ broker.Requester = (*joined)(nil)

func (j *joined) Flow() capture.Flow      { return j.flow }
func (j *joined) Request() broker.Request { return j.request }
func (j *joined) Pass() error             { return capture.ErrNoWayOut }

func (j *joined) Admit(context.Context) (*capture.Conn, error) {
	if err := j.call.Send(control.ConnectRow{Connected: true}); err != nil {
		j.conn.Close()
		return nil, capture.ErrAbandoned
	}
	return &capture.Conn{TCPConn: j.conn}, nil
}

func (j *joined) Refuse(r capture.Refusal) {
	j.refused, j.refusal = true, r
	j.conn.Close()
}

// handleConnect carries one flow of a client that gives us its end of a connection, and
// answers when the flow has ended.
func (d *Daemon) handleConnect(_ context.Context, call *control.Call) error {
	var args control.ConnectArgs
	files := call.Files()
	defer closeFiles(files)
	if err := call.Decode(&args); err != nil {
		return err
	}
	if err := profiles.CheckHost(args.Host); err != nil || args.Port == 0 || len(files) != 1 {
		return &control.Error{Code: control.CodeBadRequest, Message: fmt.Sprintf("connect to %q, port %d, with %d descriptors", args.Host, args.Port, len(files))}
	}
	conn, err := tcpOf(files[0])
	if err != nil {
		return &control.Error{Code: control.CodeBadRequest, Message: "connect: " + err.Error()}
	}
	_ = conn.SetLinger(0) // should we die, see capture.Conn
	uid, pid := uint32(call.PeerUID()), call.PeerPID()
	j := &joined{call: call, conn: conn, request: broker.Request{Host: args.Host, Port: args.Port, Judged: true}}
	j.flow = capture.Flow{Src: plain(conn.RemoteAddr()), Dst: j.request.Address(), UID: uid, Arrived: time.Now(),
		Origin: func() capture.Origin { return originOf(pid) }}
	said := ""
	d.broker.Serve(&broker.Capture{ID: "connect", Backend: backendListener, Account: d.ports.account, Event: func(text string) { said = text }}, j)
	if j.refused {
		return &control.Error{Code: control.CodeRefused, Message: said}
	}
	return nil
}

// tcpOf takes a socket over; f stays the caller's.
func tcpOf(f *os.File) (*net.TCPConn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("the descriptor is a %s, not TCP", c.LocalAddr().Network())
	}
	return tcp, nil
}

func originOf(pid int) capture.Origin {
	exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	if err != nil {
		return capture.Origin{}
	}
	return capture.Origin{Known: true, PID: pid, Exe: exe}
}
