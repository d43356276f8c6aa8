package main

import (
	"context"
	"fmt"
	"io"
	"net"

	"sshbroker/test/programs/desktop"
)

// runDesktop is a remote desktop's client, to its end.
//
//	testprog desktop ADDRESS
func runDesktop(ctx context.Context, args []string, _ io.Reader, stdout io.Writer) error {
	if len(args) != 1 {
		return errUsage
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := desktop.Client(c); err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, "ok desktop")
	return err
}
