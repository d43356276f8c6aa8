package listen

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"sshbroker/capture/descriptor"
)

// TestOpen: nobody may have the port while a connection of ours lingers there, each
// accepted connection can be recognised, and none outlives us.
func TestOpen(t *testing.T) {
	files, port, err := Pair(Open, true)
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
		files, port, err = Pair(Open, false)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		defer f.Close()
		if got, err := Port(f); got != port || err != nil {
			t.Errorf("port %d, %v; want %d", got, err, port)
		}
		err := descriptor.Control(f, func(fd int) error {
			for _, o := range []struct{ level, name, want int }{
				{unix.SOL_SOCKET, unix.SO_REUSEADDR, 0}, {unix.SOL_SOCKET, unix.SO_ACCEPTCONN, 1},
				{unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP}, {unix.IPPROTO_TCP, unix.TCP_SAVE_SYN, 1},
			} {
				if got, err := unix.GetsockoptInt(fd, o.level, o.name); got != o.want || err != nil {
					t.Errorf("option %d of %d: %d, %v; want %d", o.name, o.level, got, err, o.want)
				}
			}
			linger, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LINGER) // its first half, which says that it is on
			if linger != 1 {
				t.Errorf("linger %d", linger)
			}
			flags, ferr := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			cloexec, cerr := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			if flags&unix.O_NONBLOCK == 0 || cloexec&unix.FD_CLOEXEC == 0 {
				t.Errorf("flags %#x, %#x", flags, cloexec)
			}
			return errors.Join(err, ferr, cerr)
		})
		if err != nil {
			t.Error(err)
		}
	}
	if _, err := Open(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("the same port again: %v", err)
	}
	if _, err := OpenUDP(netip.MustParseAddrPort("192.0.2.1:0")); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("an address that is not ours: %v", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := Port(null); !errors.Is(err, unix.ENOTSOCK) {
		t.Errorf("a port of what is no socket: %v", err)
	}
}
