package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"sshbroker/broker/control"
)

func (a *app) connectCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "connect HOST PORT",
		GroupID: groupFlows,
		Short:   "Join standard input and output to a connection",
		Long: `Connect to HOST PORT as the filter rules say, through an SSH server or in clear, and
join standard input and output to the connection. It ends when both directions have:
the end of standard input is told to the far side, whose answer is still waited for.

The exit code is 0 when both directions ended in order, and 1 when the connection was
refused or cut.`,
		Example: `  ssh -o ProxyCommand='ssh-broker-ctl connect %h %p' host.internal
  printf 'GET / HTTP/1.0\r\n\r\n' | ssh-broker-ctl connect www.internal 80`,
		Args: exactly("HOST", "PORT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			port, err := readPort(args[1])
			if err != nil {
				return usageError{err}
			}
			return a.connect(cmd.Context(), control.ConnectArgs{Host: args[0], Port: port}, cmd.InOrStdin(), a.out.w)
		},
	}
}

// connect carries one connection between the broker, which has the far end of a socket,
// and in and out.
func (a *app) connect(ctx context.Context, to control.ConnectArgs, in io.Reader, out io.Writer) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	ours, theirs, err := socketPair()
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer ours.Close()
	connected, over := make(chan struct{}), make(chan error, 1)
	go func() {
		defer theirs.Close()
		over <- c.Call(ctx, control.OpConnect, to, []*os.File{theirs}, func(b json.RawMessage) error {
			var row control.ConnectRow
			if err := json.Unmarshal(b, &row); err != nil || !row.Connected {
				return errors.New("the broker's answer is not understood")
			}
			theirs.Close() // the broker's alone from now on, so that it can end
			close(connected)
			return nil
		}, nil)
	}()
	select {
	case <-connected:
	case err := <-over:
		select {
		case <-connected: // and over already; what it said is in the socket
			over <- err
		default:
			if err == nil {
				err = errors.New("connect: the broker did not say what became of it")
			}
			return err
		}
	}
	go func() {
		if _, err := io.Copy(ours, in); err == nil {
			ours.CloseWrite()
		}
	}()
	_, err = io.Copy(out, ours)
	if err == nil {
		if c, ok := out.(io.Closer); ok { // its reader may wait for the end
			err = c.Close()
		}
	}
	if err != nil {
		_ = ours.SetLinger(0)
		ours.Close()
		<-over
		if errors.Is(err, syscall.ECONNRESET) {
			err = errors.New("the connection was reset")
		}
		return fmt.Errorf("connect: %w", err)
	}
	// The broker ends the call when the other direction has ended as well.
	return <-over
}

// socketPair makes a TCP connection of this process to itself: half-close and reset are
// TCP's, and the broker takes no other.
func socketPair() (ours *net.TCPConn, theirs *os.File, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		if l, err = net.Listen("tcp", "[::1]:0"); err != nil {
			return nil, nil, err
		}
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	ours = c.(*net.TCPConn)
	for {
		other, err := l.Accept()
		if err != nil {
			ours.Close()
			return nil, nil, err
		}
		if other.RemoteAddr().String() != ours.LocalAddr().String() {
			other.Close() // somebody was faster
			continue
		}
		theirs, err = other.(*net.TCPConn).File()
		other.Close()
		if err != nil {
			ours.Close()
			return nil, nil, err
		}
		return ours, theirs, nil
	}
}
