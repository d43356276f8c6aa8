package connects

import (
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"sshbroker/capture/origin"
	"sshbroker/capture/privilege"
)

// The test binary is its own programs, by role.
const (
	envRole    = "CONNECTS_TEST_ROLE"
	envRemote4 = "CONNECTS_TEST_REMOTE4"
	envRemote6 = "CONNECTS_TEST_REMOTE6"
	envCgroup  = "CONNECTS_TEST_CGROUP"
)

const connectsOfMany = 12

const otherUID = 64124 // of nobody

func TestMain(m *testing.M) {
	role := os.Getenv(envRole)
	if role == "" {
		os.Exit(m.Run())
	}
	if err := play(role); err != nil {
		say(connected{Err: err.Error()})
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test is done with us
}

func play(role string) error {
	remote4, remote6 := netip.MustParseAddrPort(os.Getenv(envRemote4)), netip.MustParseAddrPort(os.Getenv(envRemote6))
	switch role {
	case "many":
		for i := range connectsOfMany {
			remote := remote4
			if i%2 == 1 {
				remote = remote6
			}
			fd, err := newSocket(remote, unix.IPPROTO_TCP)
			if err != nil {
				return err
			}
			if err := connect(fd, remote, i%4 < 2); err != nil {
				return err
			}
		}
	case "thread":
		done := make(chan error)
		for { // until it is not the first thread
			go func() {
				runtime.LockOSThread()
				if unix.Gettid() == os.Getpid() {
					done <- errors.New("the first thread")
					select {} // keeps it
				}
				fd, err := newSocket(remote4, unix.IPPROTO_TCP)
				if err == nil {
					err = connect(fd, remote4, true)
				}
				done <- err
			}()
			if err := <-done; err == nil || err.Error() != "the first thread" {
				return err
			}
		}
	case "mptcp":
		fd, err := newSocket(remote4, unix.IPPROTO_MPTCP)
		if err != nil {
			return err
		}
		return connect(fd, remote4, true)
	case "connect-3":
		return connect(3, remote4, true)
	case "make-socket":
		fd, err := newSocket(remote4, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		return unix.Sendmsg(3, []byte{0}, unix.UnixRights(fd), nil, 0)
	case "pass":
		fd, err := newSocket(remote4, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		return child("connect-3", fd)
	case "hold-passed":
		fd, err := newSocket(remote4, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		if err := connect(fd, remote4, true); err != nil {
			return err
		}
		return child("hold", fd)
	case "exec":
		fd, err := newSocket(remote4, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return err
		}
		if err := connect(fd, remote4, false); err != nil {
			return err
		}
		path, err := exec.LookPath("cat")
		if err != nil {
			return err
		}
		return syscall.Exec(path, []string{"cat"}, os.Environ())
	case "attach":
		if _, err := Attach(os.Getenv(envCgroup)); err != nil {
			return err
		}
		say(connected{})
	case "attach-reduced":
		return attachReduced()
	case "user":
		fd, err := newSocket(remote4, unix.IPPROTO_TCP)
		if err := errors.Join(err, syscall.Setgid(otherUID), syscall.Setuid(otherUID)); err != nil {
			return err
		}
		return connect(fd, remote4, true)
	}
	return nil
}

// child starts this program once more, with a socket as descriptor 3.
func child(role string, fd int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), envRole+"="+role)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(fd), "socket")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // whose end is the signal
	return cmd.Start()
}

func newSocket(remote netip.AddrPort, protocol int) (int, error) {
	family := unix.AF_INET6
	if remote.Addr().Is4() {
		family = unix.AF_INET
	}
	return unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, protocol)
}

func connect(fd int, remote netip.AddrPort, block bool) error {
	if err := unix.SetNonblock(fd, !block); err != nil {
		return err
	}
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: remote.Addr().As16(), Port: int(remote.Port())}
	if remote.Addr().Is4() {
		to = &unix.SockaddrInet4{Addr: remote.Addr().As4(), Port: int(remote.Port())}
	}
	for {
		err := unix.Connect(fd, to)
		if err == unix.EINTR {
			continue
		}
		if err != nil && err != unix.EINPROGRESS {
			return os.NewSyscallError("connect", err)
		}
		break
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	c := connected{PID: os.Getpid(), Remote: remote}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		c.Local = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		c.Local = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	say(c)
	return nil
}

func say(v any) { _ = json.NewEncoder(os.Stdout).Encode(v) }

// found is what a reduced process says of a connection that it is asked about.
type found struct {
	Known bool
	PID   int
	Exe   string
	Err   string
}

// attachReduced does with ssh-captured's capabilities what that does.
func attachReduced() error {
	if err := privilege.Reduce(privilege.NetAdmin, privilege.SysPtrace, privilege.DACOverride, privilege.BPF); err != nil {
		return err
	}
	t, err := Attach(os.Getenv(envCgroup))
	if err != nil {
		return err
	}
	d, err := origin.OpenDiag()
	if err != nil {
		return err
	}
	say(connected{PID: os.Getpid()})
	var c connected
	if err := json.NewDecoder(os.Stdin).Decode(&c); err != nil {
		return err
	}
	sock, err := d.Lookup(c.Local, c.Remote)
	if err != nil {
		return err
	}
	o := t.Origin(sock)
	say(found{Known: o.Known, PID: o.PID, Exe: o.Exe})
	return nil
}

// attached counts the connect programs of a cgroup.
func attached(t testing.TB, dir string) (n int) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []ebpf.AttachType{ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect} {
		r, err := link.QueryPrograms(link.QueryOptions{Target: int(f.Fd()), Attach: at})
		if err != nil {
			t.Fatal(err)
		}
		n += len(r.Programs)
	}
	return n
}

func reportMedian(b *testing.B, times []time.Duration) {
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Nanoseconds())/1000, "median-µs")
}
