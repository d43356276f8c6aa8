package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"sshbroker/broker/control"
	"sshbroker/capture/service"
	"sshbroker/capture/service/client"
)

// The values of --backend.
const (
	backendAuto      = "auto"
	backendCgroup    = control.BackendCgroup
	backendNamespace = "namespace"
)

// errOtherNetwork means that ssh-captured runs in another network namespace than we.
var errOtherNetwork = errors.New("ssh-captured runs in another network namespace, where nothing of this one's could be captured")

// chooseBackend returns a connection to ssh-captured where the capture is to be a
// cgroup, nil where it is to be a namespace. The caller closes it.
func (o *options) chooseBackend(ctx context.Context, path string, stderr io.Writer) (*client.Client, error) {
	if o.backend == backendNamespace {
		return nil, refuseSetID(path)
	}
	c, err := dialCaptured(ctx)
	switch {
	case err == nil:
		return c, nil
	case o.backend == backendCgroup || ctx.Err() != nil:
		return nil, err
	}
	o.trace(stderr, 3, "captured in a namespace: %v", err)
	return nil, refuseSetID(path)
}

// dialCaptured connects to the ssh-captured of this network namespace.
func dialCaptured(ctx context.Context) (*client.Client, error) {
	path := os.Getenv(service.EnvSocket)
	if path == "" {
		path = service.DefaultSocket
	}
	here, lookErr := listensHere(ctx, path)
	if lookErr == nil && !here {
		return nil, errOtherNetwork
	}
	c, err := client.Dial(ctx, path, "ssh-capture "+control.Version())
	if err != nil {
		return nil, err
	}
	if lookErr != nil {
		c.Close()
		return nil, fmt.Errorf("network namespace of ssh-captured: %w", lookErr)
	}
	return c, nil
}

// listensHere says whether the socket at path was made in this network namespace. Its
// file can be reached from every one that shares the directory, a capture's included.
func listensHere(ctx context.Context, path string) (bool, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return false, err
	}
	name := c.RemoteAddr().String() // as it was bound, whatever links lead there
	c.Close()
	f, err := os.Open("/proc/self/net/unix") // only those of this namespace, see proc_net(5)
	if err != nil {
		return false, err
	}
	defer f.Close()
	const listening = "00010000" // __SO_ACCEPTCON, linux/net.h
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.SplitN(strings.Join(strings.Fields(lines.Text()), " "), " ", 8)
		if len(fields) == 8 && fields[3] == listening && fields[7] == name {
			return true, nil
		}
	}
	return false, lines.Err()
}

// canDoWithout says whether ssh-captured has failed in a way that --backend=auto was
// made for: it is not there, or this machine's kernel does not let it.
func canDoWithout(err error) bool {
	var answer *service.Error
	if errors.As(err, &answer) {
		return answer.Code == service.CodeKernel || answer.Code == service.CodeStopping
	}
	return errors.Is(err, client.ErrNotRunning) || errors.Is(err, client.ErrLost)
}

// cureOf is what helps against an error of ssh-captured, "" where nothing is known to.
func cureOf(err error) string {
	const namespace = "--backend=namespace needs no ssh-captured"
	var answer *service.Error
	switch {
	case errors.As(err, &answer) && answer.Hint != "":
		return answer.Hint
	case errors.As(err, &answer) && answer.Code == service.CodeVersion:
		return "install ssh-captured and ssh-capture of the same version, and restart ssh-captured; " + namespace
	case errors.Is(err, client.ErrNotRunning):
		return "as root: systemctl start ssh-captured, or run ssh-captured; " + namespace
	case errors.Is(err, errOtherNetwork), errors.As(err, &answer):
		return namespace
	}
	return ""
}

// warnSetID says what a capture by cgroup does not take: it has the sockets of its
// owner alone.
func warnSetID(path string, w io.Writer) {
	var id *setIDError
	if errors.As(refuseSetID(path), &id) && id.kind == "user" {
		fmt.Fprintf(w, "ssh-capture: warning: %s is set-uid: what it connects to as another user is not captured\n", path)
	}
}
