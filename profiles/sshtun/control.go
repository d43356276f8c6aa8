package sshtun

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"sshbroker/profiles"
	"sshbroker/profiles/socket"
)

// controlTime is how long a ControlMaster may take to answer.
const controlTime = 5 * time.Second

// reuse opens a transport inside of the connection that the user's own ssh has, by its
// control socket in proxy mode (PROTOCOL.mux of OpenSSH). Where there is no such ssh, or
// it does not want to, it returns nil, and we connect ourselves.
func (c *Connector) reuse(ctx context.Context, p *profiles.Profile) profiles.Transport {
	ctx, cancel := context.WithTimeout(ctx, controlTime)
	defer cancel()
	t, err := control(ctx, p)
	switch {
	case err == nil:
		c.Log.Info("connection of ssh reused", "profile", p.Label(), "socket", p.ControlPath)
		return t
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ECONNREFUSED): // nobody is there
	default:
		c.Log.Warn("connection of ssh cannot be reused", "profile", p.Label(), "socket", p.ControlPath, "error", err)
	}
	return nil
}

func control(ctx context.Context, p *profiles.Profile) (*Transport, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", p.ControlPath)
	if err != nil {
		return nil, err
	}
	if err := ours(conn.(*net.UnixConn)); err != nil {
		conn.Close()
		return nil, err
	}
	w := socket.New(conn, unfinished)
	stop := context.AfterFunc(ctx, func() { w.Abort(context.Cause(ctx)) })
	inner, chans, reqs, err := ssh.NewControlClientConn(w)
	if !stop() && err == nil {
		inner.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		w.Close()
		<-w.Ended()
		return nil, err
	}
	own := *p
	own.KeepaliveInterval = 0 // ssh sees to it, and hangs up on who sends such requests
	t := newTransport(inner, chans, reqs, w, "as ssh has checked it", &own)
	t.unasked = true
	return t, nil
}

// ours fails for a socket that another user listens at: it would hear everything.
func ours(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(cerr, err); err != nil {
		return err
	}
	if uid := int(peer.Uid); uid != os.Geteuid() && uid != 0 {
		return fmt.Errorf("it is of uid %d", uid)
	}
	return nil
}
