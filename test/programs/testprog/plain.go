package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// The jobs and servers of this file make plain blocking system calls on a thread of
// their own: where a connection costs a few microseconds, Go's poller is most of them.

// plainServer serves one connection after the other.
type plainServer func(fd int)

// endAtOnce is for clients that want nothing but to be connected.
func endAtOnce(int) {}

// takeTurns sends back every byte.
func takeTurns(fd int) {
	if unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) != nil {
		return
	}
	var b [1]byte
	for {
		if n, err := unix.Read(fd, b[:]); n != 1 || err != nil {
			return
		}
		if _, err := unix.Write(fd, b[:]); err != nil {
			return
		}
	}
}

// listenPlain returns a listening socket and its address.
func listenPlain(address string) (fd int, at netip.AddrPort, err error) {
	want, err := netip.ParseAddrPort(address)
	if err != nil {
		return -1, at, err
	}
	if fd, err = newSocket(want, 0); err != nil {
		return -1, at, err
	}
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, sockaddr(want)), unix.Listen(fd, 4096))
	if err != nil {
		unix.Close(fd)
		return -1, at, err
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		unix.Close(fd)
		return -1, at, err
	}
	at = netip.AddrPortFrom(want.Addr(), want.Port())
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		at = netip.AddrPortFrom(want.Addr(), uint16(sa.Port))
	case *unix.SockaddrInet6:
		at = netip.AddrPortFrom(want.Addr(), uint16(sa.Port))
	}
	return fd, at, nil
}

// servePlain serves until the listener is shut down, by shutdown(2).
func servePlain(listener int, serve plainServer) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		switch {
		case err == unix.EINTR, err == unix.ECONNABORTED:
			continue
		case err != nil: // EINVAL: shut down
			return
		}
		serve(fd)
		unix.Close(fd)
	}
}

// connectPlain connects and says how long connect(2) took.
func connectPlain(to netip.AddrPort) (fd int, took time.Duration, err error) {
	if fd, err = newSocket(to, 0); err != nil {
		return -1, 0, err
	}
	began := time.Now()
	if err = unix.Connect(fd, sockaddr(to)); err == unix.EINTR {
		err = waitWritable(fd)
	}
	took = time.Since(began)
	if err != nil {
		unix.Close(fd)
		return -1, took, err
	}
	return fd, took, nil
}

// turns has one byte go there and back, again and again. Percentiles are those of batches,
// each divided by what it has.
func turns(limit time.Duration, to netip.AddrPort) (loadResult, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fd, _, err := connectPlain(to)
	if err != nil {
		return loadResult{}, err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return loadResult{}, err
	}
	const batch = 64 // between two looks at the clock
	b := [1]byte{'.'}
	var all []time.Duration
	begin := time.Now()
	for start, end := begin, begin.Add(limit); start.Before(end); {
		for range batch {
			if _, err := unix.Write(fd, b[:]); err != nil {
				return loadResult{}, err
			}
			if n, err := unix.Read(fd, b[:]); n != 1 || err != nil {
				return loadResult{}, fmt.Errorf("%d bytes, %w", n, errors.Join(err, io.ErrUnexpectedEOF))
			}
		}
		now := time.Now()
		all = append(all, now.Sub(start)/batch)
		start = now
	}
	r := summary(all)
	r.Count *= batch
	r.Seconds = time.Since(begin).Seconds()
	return r, nil
}

// opens connects and waits for the target to end the connection, again and again. The
// target's end keeps the port, so that we never run out of ours.
func opens(limit time.Duration, to netip.AddrPort) (loadResult, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all []time.Duration
	var b [1]byte
	begin := time.Now()
	for end := begin.Add(limit); time.Now().Before(end); {
		fd, took, err := connectPlain(to)
		if err != nil {
			return loadResult{}, err
		}
		n, err := unix.Read(fd, b[:])
		unix.Close(fd)
		if n != 0 || err != nil {
			return loadResult{}, fmt.Errorf("%d bytes: %w", n, errors.Join(err, errDiffers))
		}
		all = append(all, took)
	}
	r := summary(all)
	r.Seconds = time.Since(begin).Seconds()
	return r, nil
}

// paced connects at a fixed pace, and tells how long connect(2) took.
func paced(every, limit time.Duration, to netip.AddrPort) (loadResult, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all []time.Duration
	begin := time.Now()
	for next := begin; next.Sub(begin) < limit; next = next.Add(every) {
		time.Sleep(time.Until(next))
		fd, took, err := connectPlain(to)
		if err != nil {
			return loadResult{}, fmt.Errorf("after %v: %w", took, err)
		}
		unix.Close(fd)
		all = append(all, took)
	}
	r := summary(all)
	r.Seconds = time.Since(begin).Seconds()
	return r, nil
}
