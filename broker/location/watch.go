package location

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	quiet    = 50 * time.Millisecond  // after an event, as they come in flocks
	longest  = 500 * time.Millisecond // that they may go on before somebody looks
	again    = time.Second            // where something is not known, or has no events
	anyway   = 30 * time.Second       // where all has, as a mount over a file has none
	hostname = "/proc/sys/kernel/hostname"
)

// Watch calls told with the place, and again when it has changed, until ctx ends. It
// calls from one goroutine, its caller's.
func Watch(ctx context.Context, f Files, log *slog.Logger, told func(*Place)) {
	var last *Place
	tell := func(p *Place) {
		if last == nil || !p.same(last) {
			last = p
			told(p)
		}
	}
	said := ""
	for ctx.Err() == nil {
		err := watch(ctx, f, tell)
		if err == nil {
			return
		}
		if err.Error() != said {
			said = err.Error()
			log.Warn("where the host is cannot be watched, it is looked up every second", "error", err)
		}
		tell(Look(f))
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
}

// watch tells until ctx ends, or what it needs cannot be had.
func watch(ctx context.Context, f Files, tell func(*Place)) error {
	handle, err := openHandle()
	if err != nil {
		return err
	}
	defer handle.Close()
	events, err := openEvents(ctx, f)
	if err != nil {
		return err
	}
	defer events.close()
	for {
		complete := events.renew() // before the look, so that nothing is missed in between
		p := look(handle, f)
		tell(p)
		wait := anyway
		if !complete || p.Err() != nil {
			wait = again
		}
		events.await(wait)
		for began := time.Now(); ctx.Err() == nil && time.Since(began) < longest && events.await(quiet); {
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// events are the ways to hear of changes. Files that stand elsewhere than they did need
// other watches, so these are made anew for each look.
type events struct {
	files Files
	links *nl.NetlinkSocket
	name  int // of the host; below 0 where it cannot be watched
	paths int // inotify(7); below 0 where there is none

	stopped, stop *os.File // a pipe; its end says that ctx has ended
	forget        func() bool
}

func openEvents(ctx context.Context, f Files) (*events, error) {
	e := &events{files: f, name: -1, paths: -1}
	var err error
	if e.links, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR); err != nil {
		return nil, fmt.Errorf("watch addresses: %w", err)
	}
	if e.stopped, e.stop, err = os.Pipe(); err != nil {
		e.links.Close()
		return nil, fmt.Errorf("watch addresses: %w", err)
	}
	e.forget = context.AfterFunc(ctx, func() { e.stop.Close() })
	// Not by os.Open: the runtime's own poller would take the one event.
	if fd, err := unix.Open(hostname, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
		e.name = fd
	}
	return e, nil
}

func (e *events) close() {
	e.forget()
	e.stop.Close()
	e.stopped.Close()
	e.links.Close()
	for _, fd := range []int{e.name, e.paths} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// renew watches the files where they are now, and tells whether everything has events.
func (e *events) renew() (complete bool) {
	if e.paths >= 0 {
		unix.Close(e.paths)
	}
	var err error
	if e.paths, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		e.paths = -1
		return false
	}
	complete = e.name >= 0
	for _, file := range []string{e.files.Hosts, e.files.Resolv} {
		if file == "" {
			continue
		}
		// The file itself as well: it may be a mount, of which its directory hears nothing.
		const itself = unix.IN_MODIFY | unix.IN_CLOSE_WRITE | unix.IN_ATTRIB | unix.IN_MOVE_SELF | unix.IN_DELETE_SELF
		if _, err := unix.InotifyAddWatch(e.paths, file, itself); err != nil && !errors.Is(err, unix.ENOENT) {
			complete = false
		}
		for _, dir := range directories(file) {
			const entries = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_ONLYDIR
			if _, err := unix.InotifyAddWatch(e.paths, dir, entries); err != nil {
				complete = false
			}
		}
	}
	return complete
}

// maxLinks is how many symbolic links one after the other are followed, as by the kernel.
const maxLinks = 40

// directories are those whose entries lead to file.
func directories(file string) (list []string) {
	for range maxLinks {
		dir := filepath.Dir(file)
		list = append(list, dir)
		target, err := os.Readlink(file)
		if err != nil {
			break
		}
		if file = target; !filepath.IsAbs(target) {
			file = filepath.Join(dir, target)
		}
	}
	return list
}

// await waits until something happens, and tells whether it has.
func (e *events) await(limit time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(e.stopped.Fd()), Events: unix.POLLIN}, {Fd: int32(e.links.GetFd()), Events: unix.POLLIN},
		{Fd: int32(e.paths), Events: unix.POLLIN}, {Fd: int32(e.name), Events: unix.POLLPRI}} // poll(2) passes over those below 0
	for end := time.Now().Add(limit); ; {
		n, err := unix.Poll(fds, int(max(time.Until(end), 0)/time.Millisecond))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n > 0 {
			drain(e.links.GetFd())
			drain(e.paths)
		}
		return n > 0
	}
}

// drain reads what is there, which is never more than a hint. A netlink socket that lost
// messages says so once.
func drain(fd int) {
	if fd < 0 {
		return
	}
	var buf [16 << 10]byte
	for range 1000 {
		n, err := unix.Read(fd, buf[:])
		if n <= 0 && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}
