package trial

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"sshbroker/capture/leak"
)

// Outcome is what one captured connect() said, and what is true.
type Outcome struct {
	What string // for people
	Want string // "connected", or the name of an error
	Got  string
}

// What a connect() may say.
const (
	connected   = "connected"
	refused     = "connection refused"
	unreachable = "no route to host"
)

// Connect has a program connect in a capture of that backend, by rules of the trial's own, to
// addresses of this host: one that answers, one that refuses, one that a rule blocks, and one
// whose tunnel is down. inside is the command that calls ConnectInside; the addresses are
// added. The error says why there is no capture to try.
func Connect(ctx context.Context, programs Programs, backend string, inside []string) ([]Outcome, error) {
	field, err := leak.Survey()
	if err != nil {
		return nil, err
	}
	listen := func() (*net.TCPListener, uint16, error) {
		l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(field.V4, 0)))
		if err != nil {
			return nil, 0, fmt.Errorf("trial: %w", err)
		}
		return l, uint16(l.Addr().(*net.TCPAddr).Port), nil
	}
	open, openPort, err := listen()
	if err != nil {
		return nil, err
	}
	defer open.Close()
	go serveHello(open)
	blocked, blockedPort, err := listen()
	if err != nil {
		return nil, err
	}
	defer blocked.Close()
	reached := make(chan struct{}, 1)
	go func() {
		if c, err := blocked.Accept(); err == nil {
			c.Close()
			reached <- struct{}{}
		}
	}()
	closed, closedPort, err := reserve(field.V4)
	if err != nil {
		return nil, err
	}
	defer closed.Close()
	tunnel, err := openDown()
	if err != nil {
		return nil, err
	}
	defer tunnel.Close()

	other, otherPort, err := reserve(field.V4)
	if err != nil {
		return nil, err
	}
	defer other.Close()

	outcomes := []Outcome{{What: "a port that answers", Want: connected}, {What: "a port that refuses", Want: refused},
		{What: "a port that a rule blocks", Want: refused}, {What: "a port whose tunnel is down", Want: unreachable}}
	t, err := Open(ctx, programs, configuration(tunnel.port, fmt.Sprintf(`
    <rule ip-address=".*" ports="%d,%d" action="DIRECT"/>
    <rule ip-address=".*" ports="%d" action="BLOCK"/>
    <rule action="TUNNEL" profile-id="down"/>`, openPort, closedPort, blockedPort)))
	if err != nil {
		return nil, err
	}
	defer t.Close()
	command := slices.Clone(inside)
	for _, p := range []uint16{openPort, closedPort, blockedPort, otherPort} {
		command = append(command, netip.AddrPortFrom(field.V4, p).String())
	}
	cmd := t.Command(ctx, []string{"-l", "--backend=" + backend}, command...)
	var out bytes.Buffer
	words := new(said)
	cmd.Stdout, cmd.Stderr = &out, words
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, because(err, words)
	}
	var got []string
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || len(got) != len(outcomes) {
		return nil, fmt.Errorf("trial: the program inside said %q", out.String())
	}
	for i := range outcomes {
		outcomes[i].Got = got[i]
	}
	select {
	case <-reached:
		outcomes[2].Got = "it was reached, and the program was told: " + outcomes[2].Got
	default:
	}
	return outcomes, nil
}

// hello is what the port that answers says.
const hello = "ssh-trial\n"

func serveHello(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, hello)
		c.Close()
	}
}

// reserve takes a port on which nobody listens, so that nobody else can.
func reserve(addr netip.Addr) (*os.File, uint16, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "port")
	err = syscall.Bind(fd, &syscall.SockaddrInet4{Addr: addr.As4()})
	var at syscall.Sockaddr
	if err == nil {
		at, err = syscall.Getsockname(fd)
	}
	if err != nil {
		f.Close()
		return nil, 0, os.NewSyscallError("bind", err)
	}
	return f, uint16(at.(*syscall.SockaddrInet4).Port), nil
}

// ConnectInside connects to each of the addresses and writes what connect() said, as JSON.
func ConnectInside(w io.Writer, addresses ...string) error {
	said := make([]string, len(addresses))
	for i, a := range addresses {
		said[i] = connectOnce(a)
	}
	return json.NewEncoder(w).Encode(said)
}

// connectTime is how long one may take. The broker's own limits are shorter here.
const connectTime = 10 * time.Second

func connectOnce(address string) string {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return strconv.Quote(address) + " is no address"
	}
	// Blocking, as in most programs: a refusal by ICMP is told in one step to those alone.
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err.Error()
	}
	defer syscall.Close(fd)
	tv := syscall.NsecToTimeval(connectTime.Nanoseconds())
	_ = syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &tv)
	_ = syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &tv)
	err = syscall.Connect(fd, &syscall.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	switch {
	case errors.Is(err, syscall.EINPROGRESS):
		return "no answer in " + connectTime.String()
	case err != nil:
		return err.Error()
	}
	b := make([]byte, len(hello))
	n, err := syscall.Read(fd, b)
	switch {
	case err != nil:
		return "connected, and then: " + err.Error()
	case string(b[:n]) != hello:
		return "connected, and then: the end"
	}
	return connected
}
