package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// runConnect connects and reports what the kernel answered.
//
//	testprog connect [options] ADDRESS:PORT...
//
// Each attempt prints "ADDRESS:PORT RESULT MILLISECONDS", RESULT being "ok",
// "cancelled" or the name of the errno. With -n each address is tried N times,
// all at once, or with -series one after the other. The calls are the program's
// own, not Go's net package: blocking connect(2) on a thread each, or with
// -nonblock one epoll instance for all.
func runConnect(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	var o connectOptions
	flags := flag.NewFlagSet("connect", flag.ContinueOnError)
	flags.IntVar(&o.times, "n", 1, "attempts per address")
	flags.BoolVar(&o.nonblock, "nonblock", false, "non-blocking connect and epoll")
	flags.DurationVar(&o.cancel, "cancel", 0, "close each socket at a random moment up to this (implies -nonblock)")
	flags.BoolVar(&o.clock, "clock", false, "also print when the attempt began, in nanoseconds of Unix time")
	flags.BoolVar(&o.series, "series", false, "one attempt at a time, closed before the next unless with -hold")
	flags.BoolVar(&o.stepPort, "step-port", false, "count the port up with every attempt")
	flags.BoolVar(&o.stepAddress, "step-address", false, "count the address up with every attempt")
	flags.BoolVar(&o.firstByte, "first-byte", false, "also wait for a byte and print its time as a fourth column")
	flags.StringVar(&o.echo, "echo", "", "also have a serve send this text back, and print as a last column how that went")
	flags.BoolVar(&o.hold, "hold", false, "print, then keep the connections open until standard input ends")
	flags.DurationVar(&o.timeout, "timeout", 0, "with -nonblock: give up, as ETIMEDOUT, after")
	if err := flags.Parse(args); err != nil || flags.NArg() == 0 {
		return errors.Join(errUsage, err)
	}
	o.nonblock = o.nonblock || o.cancel > 0
	targets, err := o.targets(ctx, flags.Args())
	if err != nil {
		return err
	}
	dial := connectBlocking
	if o.nonblock {
		dial = connectPolled
	}
	var results []attempt
	if o.series {
		results, err = inSeries(dial, targets, o)
	} else {
		results, err = dial(targets, o)
	}
	if err != nil {
		return err
	}
	if o.echo != "" {
		echoAll(results, o.echo)
	}
	w := bufio.NewWriter(stdout)
	for _, r := range results {
		fmt.Fprintf(w, "%s %s %.3f", r.target, r.outcome, r.took.Seconds()*1000)
		if o.clock {
			fmt.Fprintf(w, " %d", r.began.UnixNano())
		}
		if o.firstByte {
			fmt.Fprintf(w, " %.3f", r.firstByte.Seconds()*1000)
		}
		if o.echo != "" {
			fmt.Fprintf(w, " %s", r.echoed)
		}
		fmt.Fprintln(w)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if o.hold {
		io.Copy(io.Discard, stdin)
	}
	for _, r := range results {
		if r.fd >= 0 {
			unix.Close(r.fd)
		}
	}
	return nil
}

type connectOptions struct {
	times                 int
	nonblock              bool
	cancel, timeout       time.Duration
	stepPort, stepAddress bool
	firstByte, hold       bool
	echo                  string
	series, clock         bool
}

type attempt struct {
	target    netip.AddrPort
	outcome   string
	began     time.Time
	took      time.Duration
	firstByte time.Duration
	echoed    string // "ok", the errno, "eof" or "differs"; "-" without a connection
	fd        int    // open where the outcome is ok, else -1
}

// targets resolves the words and repeats them as the options say.
func (o connectOptions) targets(ctx context.Context, words []string) ([]netip.AddrPort, error) {
	var all []netip.AddrPort
	for _, word := range words {
		host, portText, err := net.SplitHostPort(word)
		if err != nil {
			return nil, err
		}
		port, err := strconv.ParseUint(portText, 10, 16)
		if err != nil {
			return nil, err
		}
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			return nil, err
		}
		target := netip.AddrPortFrom(addrs[0].Unmap(), uint16(port))
		for range o.times {
			all = append(all, target)
			if o.stepPort {
				target = netip.AddrPortFrom(target.Addr(), target.Port()+1)
			}
			if o.stepAddress {
				target = netip.AddrPortFrom(target.Addr().Next(), target.Port())
			}
		}
	}
	return all, nil
}

// inSeries does one attempt at a time.
func inSeries(dial func([]netip.AddrPort, connectOptions) ([]attempt, error), targets []netip.AddrPort, o connectOptions) ([]attempt, error) {
	var all []attempt
	for i := range targets {
		results, err := dial(targets[i:i+1], o)
		if err != nil {
			return nil, err
		}
		if r := &results[0]; !o.hold && r.fd >= 0 {
			unix.Close(r.fd)
			r.fd = -1
		}
		all = append(all, results...)
	}
	return all, nil
}

func newSocket(target netip.AddrPort, flags int) (int, error) {
	family := unix.AF_INET
	if target.Addr().Is6() {
		family = unix.AF_INET6
	}
	return unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|flags, 0)
}

func sockaddr(target netip.AddrPort) unix.Sockaddr {
	if target.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(target.Port()), Addr: target.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(target.Port()), Addr: target.Addr().As16()}
}

// outcomeOf names an errno as its manual page does.
func outcomeOf(err error) string {
	var errno unix.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &errno) && unix.ErrnoName(errno) != "":
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// connectBlocking uses a thread an attempt, all started at the same moment.
func connectBlocking(targets []netip.AddrPort, o connectOptions) ([]attempt, error) {
	// A thread whose connect(2) returns must not wait for others before it looks at
	// the clock.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), min(len(targets), 256))))
	results := make([]attempt, len(targets))
	var ready, done sync.WaitGroup
	begin := make(chan struct{})
	for i, target := range targets {
		ready.Add(1)
		done.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			fd, err := newSocket(target, 0)
			ready.Done()
			<-begin
			results[i] = attempt{target: target, fd: -1}
			if err != nil {
				results[i].outcome = outcomeOf(err)
				return
			}
			started := time.Now()
			results[i].began = started
			err = unix.Connect(fd, sockaddr(target))
			if err == unix.EINTR {
				err = waitWritable(fd) // an interrupted connect(2) goes on by itself
			}
			results[i].took = time.Since(started)
			results[i].outcome = outcomeOf(err)
			if err == nil && o.firstByte {
				err = readByte(fd)
				results[i].firstByte = time.Since(started)
				results[i].outcome = outcomeOf(err)
			}
			if err != nil {
				unix.Close(fd)
				return
			}
			results[i].fd = fd
		})
	}
	ready.Wait()
	close(begin)
	done.Wait()
	return results, nil
}

// echoAll has the peer of every connection send text back, all at once. The
// connections are used up.
func echoAll(results []attempt, text string) {
	var done sync.WaitGroup
	for i := range results {
		r := &results[i]
		r.echoed = "-"
		if r.fd < 0 {
			continue
		}
		done.Go(func() {
			r.echoed = echo(r.fd, text)
			unix.Close(r.fd)
			r.fd = -1
		})
	}
	done.Wait()
}

// echo ends our direction after the text and reads to the end of the other one.
func echo(fd int, text string) string {
	if err := unix.SetNonblock(fd, false); err != nil {
		return outcomeOf(err)
	}
	for b := []byte("echo\n" + text); len(b) > 0; {
		n, err := unix.SendmsgN(fd, b, nil, nil, unix.MSG_NOSIGNAL)
		if err != nil {
			return outcomeOf(err)
		}
		b = b[n:]
	}
	_ = unix.Shutdown(fd, unix.SHUT_WR) // fails after a reset, which the read reports
	var got []byte
	for b := make([]byte, 4<<10); ; {
		n, err := unix.Read(fd, b)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return outcomeOf(err)
		case n > 0:
			got = append(got, b[:n]...)
		case len(got) == 0:
			return "eof"
		case string(got) != text:
			return "differs"
		default:
			return "ok"
		}
	}
}

func readByte(fd int) error {
	var b [1]byte
	for {
		n, err := unix.Read(fd, b[:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		default:
			return nil
		}
	}
}

func waitWritable(fd int) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	for {
		if _, err := unix.Poll(fds, -1); err == nil {
			break
		} else if err != unix.EINTR {
			return err
		}
	}
	return socketError(fd)
}

// socketError reads how a connect that was polled for has ended. Linux wakes pollers
// of IPv4 for an ICMP error a moment before SO_ERROR has it: no error and no peer mean
// that it is still to come.
func socketError(fd int) error {
	for begun := time.Now(); ; {
		code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil {
			return err
		}
		if code != 0 {
			return unix.Errno(code)
		}
		_, err = unix.Getpeername(fd)
		if err != unix.ENOTCONN || time.Since(begun) > 10*time.Millisecond {
			return err
		}
	}
}

// connectPolled starts every attempt without blocking and waits for all of them
// on one epoll instance, as event-driven programs do.
func connectPolled(targets []netip.AddrPort, o connectOptions) ([]attempt, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(epfd)
	results := make([]attempt, len(targets))
	deadline := make([]time.Time, len(targets)) // of the attempt; zero for none
	pending := map[int32]int{}                  // socket -> index
	finish := func(i int, fd int32, outcome string) {
		results[i].outcome, results[i].took = outcome, time.Since(results[i].began)
		delete(pending, fd)
		if outcome == "ok" && o.firstByte {
			// The rest of the attempt blocks; its connect time is already known.
			err := unix.SetNonblock(int(fd), false)
			if err == nil {
				err = readByte(int(fd))
			}
			results[i].firstByte = time.Since(results[i].began)
			results[i].outcome = outcomeOf(err)
		}
		if results[i].outcome == "ok" {
			unix.EpollCtl(epfd, unix.EPOLL_CTL_DEL, int(fd), nil)
			results[i].fd = int(fd)
		} else {
			unix.Close(int(fd))
		}
	}
	events := make([]unix.EpollEvent, 256)
	collect := func(wait int) error {
		n, err := unix.EpollWait(epfd, events, wait)
		if err != nil && err != unix.EINTR {
			return err
		}
		for _, event := range events[:max(n, 0)] {
			if i, ok := pending[event.Fd]; ok {
				finish(i, event.Fd, outcomeOf(socketError(int(event.Fd))))
			}
		}
		return nil
	}
	for i, target := range targets {
		results[i] = attempt{target: target, fd: -1}
		fd, err := newSocket(target, unix.SOCK_NONBLOCK)
		if err != nil {
			results[i].outcome = outcomeOf(err)
			continue
		}
		began := time.Now()
		results[i].began = began
		switch {
		case o.cancel > 0:
			deadline[i] = began.Add(rand.N(o.cancel))
		case o.timeout > 0:
			deadline[i] = began.Add(o.timeout)
		}
		pending[int32(fd)] = i
		switch err := unix.Connect(fd, sockaddr(target)); err {
		case unix.EINPROGRESS:
			event := unix.EpollEvent{Events: unix.EPOLLOUT, Fd: int32(fd)}
			if err := unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
				return nil, err
			}
		default:
			finish(i, int32(fd), outcomeOf(err))
		}
		if o.cancel > 0 {
			continue
		}
		if err := collect(0); err != nil { // early answers do not wait for late attempts
			return nil, err
		}
	}
	for len(pending) > 0 {
		wait := -1
		now := time.Now()
		for fd, i := range pending {
			if deadline[i].IsZero() {
				break // no attempt has one, or all have
			}
			if left := deadline[i].Sub(now); left > 0 {
				ms := int(left.Milliseconds()) + 1
				if wait < 0 || ms < wait {
					wait = ms
				}
			} else if o.cancel > 0 {
				finish(i, fd, "cancelled")
			} else {
				finish(i, fd, "ETIMEDOUT")
			}
		}
		if len(pending) == 0 {
			break
		}
		if err := collect(wait); err != nil {
			return nil, err
		}
	}
	return results, nil
}

// waitForPeerToGo returns once the peer has reset or closed the connection, and
// reads none of its data.
func waitForPeerToGo(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		for {
			if _, err := unix.Poll(fds, -1); err != unix.EINTR {
				failure = err
				return
			}
		}
	})
	return errors.Join(err, failure)
}
