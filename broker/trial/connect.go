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
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"sshbroker/capture/leak"
	"sshbroker/profiles/trialserver"
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

// ErrNoControl means that this host does not reach its own address without a capture either.
var ErrNoControl = errors.New("this host does not reach its own address, without a capture either")

// Connect has a program connect in a capture of that backend, by rules of the trial's own, to
// addresses of this host: one that answers, one that refuses, one that a rule blocks, one
// behind a tunnel, and one whose tunnel is down. inside is the command that calls
// ConnectInside; the addresses are added. The error says why there is no capture to try.
func Connect(ctx context.Context, programs Programs, backend string, inside []string) (outcomes []Outcome, err error) {
	w, err := openWorld()
	if err != nil {
		return nil, fmt.Errorf("trial: %w", err)
	}
	defer w.Close()
	if said := connectOnce(w.open.String()); said != connected {
		return nil, fmt.Errorf("%w: %v: %s", ErrNoControl, w.open, said)
	}
	t, err := Open(ctx, programs, w.rules())
	if err != nil {
		return nil, err
	}
	defer t.Close()
	command := slices.Clone(inside)
	for _, way := range w.ways() {
		command = append(command, way.to.String())
		outcomes = append(outcomes, Outcome{What: way.what, Want: way.want})
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
		if w.ways()[i].to == w.blocked && w.reached.Load() {
			outcomes[i].Got = "it was reached, and the program was told: " + got[i]
		}
	}
	return outcomes, nil
}

// world is what a trial of connections leads to, all of it on this host.
type world struct {
	open, closed, blocked, tunneled, other netip.AddrPort

	reached atomic.Bool // blocked was
	down    *down
	server  *trialserver.Server
	closers []io.Closer
}

// way is one connection of the trial.
type way struct {
	to         netip.AddrPort
	what, want string
}

func (w *world) ways() []way {
	return []way{
		{w.open, "a port that answers", connected},
		{w.closed, "a port that refuses", refused},
		{w.blocked, "a port that a rule blocks", refused},
		{w.tunneled, "a port behind a tunnel", connected},
		{w.other, "a port whose tunnel is down", unreachable},
	}
}

func openWorld() (w *world, err error) {
	w = new(world)
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	field, err := leak.Survey()
	if err != nil {
		return nil, err
	}
	for _, l := range []struct {
		at      *netip.AddrPort
		reached *atomic.Bool
	}{{&w.open, nil}, {&w.blocked, &w.reached}, {&w.tunneled, nil}} {
		listener, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(field.V4, 0)))
		if err != nil {
			return nil, err
		}
		w.closers = append(w.closers, listener)
		*l.at = listener.Addr().(*net.TCPAddr).AddrPort()
		go serveHello(listener, l.reached)
	}
	for _, at := range []*netip.AddrPort{&w.closed, &w.other} {
		port, err := reserve(field.V4, at)
		if err != nil {
			return nil, err
		}
		w.closers = append(w.closers, port)
	}
	if w.down, err = openDown(); err != nil {
		return nil, err
	}
	w.closers = append(w.closers, w.down)
	if w.server, err = trialserver.Start(w.tunneled); err != nil {
		return nil, err
	}
	w.closers = append(w.closers, w.server)
	return w, nil
}

// Close closes what was opened.
func (w *world) Close() {
	for _, c := range w.closers {
		c.Close()
	}
}

func (w *world) rules() string {
	return configuration(w.down.port, fmt.Sprintf(`
    <profile id="up" name="up" host="127.0.0.1" port="%d" user="nobody">
      <hostkey>%s</hostkey>
      <proxy ruleset=""/>
    </profile>`, w.server.Port, strings.TrimSpace(w.server.Key)), fmt.Sprintf(`
    <rule ip-address=".*" ports="%d,%d" action="DIRECT"/>
    <rule ip-address=".*" ports="%d" action="BLOCK"/>
    <rule ip-address=".*" ports="%d" action="TUNNEL" profile-id="up"/>
    <rule action="TUNNEL" profile-id="down"/>`, w.open.Port(), w.closed.Port(), w.blocked.Port(), w.tunneled.Port()))
}

// hello is what the port that answers says.
const hello = "ssh-trial\n"

func serveHello(l net.Listener, reached *atomic.Bool) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		if reached != nil {
			reached.Store(true)
		}
		_, _ = io.WriteString(c, hello)
		c.Close()
	}
}

// reserve takes a port on which nobody listens, so that nobody else can.
func reserve(addr netip.Addr, got *netip.AddrPort) (io.Closer, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "port")
	err = syscall.Bind(fd, &syscall.SockaddrInet4{Addr: addr.As4()})
	var at syscall.Sockaddr
	if err == nil {
		at, err = syscall.Getsockname(fd)
	}
	if err != nil {
		f.Close()
		return nil, os.NewSyscallError("bind", err)
	}
	*got = netip.AddrPortFrom(addr, uint16(at.(*syscall.SockaddrInet4).Port))
	return f, nil
}

// ConnectInside connects to each of the addresses and writes what connect() said, as JSON.
func ConnectInside(w io.Writer, addresses ...string) error {
	said := make([]string, len(addresses))
	var all sync.WaitGroup
	for i, a := range addresses {
		all.Go(func() { said[i] = connectOnce(a) })
	}
	all.Wait()
	return json.NewEncoder(w).Encode(said)
}

// connectTime is how long one may take. The broker's own limits are shorter here.
const connectTime = 5 * time.Second

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
