package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
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
	refused bool // read when the flow has ended

	mu   sync.Mutex
	left bool // the call has ended, and nothing can be said any more
}

var (
	_ broker.Requester = (*joined)(nil)
	_ capture.Waiter   = (*joined)(nil)
)

func (j *joined) Flow() capture.Flow      { return j.flow }
func (j *joined) Request() broker.Request { return j.request }
func (j *joined) Pass() error             { return capture.ErrNoWayOut }

func (j *joined) Admit(context.Context) (*capture.Conn, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.left {
		j.conn.Close()
		return nil, capture.ErrAbandoned
	}
	if err := j.call.Send(control.ConnectRow{Connected: true}); err != nil {
		j.conn.Close()
		return nil, capture.ErrAbandoned
	}
	return &capture.Conn{TCPConn: j.conn}, nil
}

func (j *joined) Refuse(capture.Refusal) {
	j.refused = true
	j.conn.Close()
}

// Waits implements capture.Waiter.
func (j *joined) Waits() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.left
}

func (j *joined) leave() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.left = true
}

// handleConnect carries one flow of a client that gives us its end of a connection, and
// answers when the flow has ended. What is joined outlives the call: a broker that is to
// stop has it drained as all others, and a client that goes has closed its own end.
func (d *Daemon) handleConnect(ctx context.Context, call *control.Call) error {
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
	ended := d.broker.Serve(&broker.Capture{ID: "connect", Backend: backendListener, Account: d.ports.account, Event: func(text string) { said = text }}, j)
	select {
	case <-ended:
	case <-ctx.Done():
		j.leave()
		return ctx.Err()
	}
	if j.refused {
		return &control.Error{Code: control.CodeRefused, Message: said}
	}
	return nil
}

// tcpOf takes over one end of a connection; f stays the caller's.
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
	if tcp.RemoteAddr() == nil { // it listens, or was reset meanwhile
		tcp.Close()
		return nil, errors.New("the socket is not connected")
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
