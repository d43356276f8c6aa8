package listen

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sshbroker/capture/descriptor"
	"sshbroker/capture/privilege"
)

// envKeep makes the test binary a program with these capabilities alone, by number.
const envKeep = "LISTEN_TEST_KEEP"

func TestMain(m *testing.M) {
	if list, ok := os.LookupEnv(envKeep); ok {
		receiveWith(list)
		return
	}
	os.Exit(m.Run())
}

func receiveWith(list string) {
	var keep []privilege.Capability
	for _, text := range strings.Fields(list) {
		var c privilege.Capability
		fmt.Sscan(text, &c)
		keep = append(keep, c)
	}
	if err := privilege.Reduce(keep...); err != nil {
		fmt.Println(err)
		return
	}
	files, _, err := Pair(OpenUDP, true)
	if err != nil {
		fmt.Println(err)
		return
	}
	err = ReceiveMarks(files...)
	for _, f := range files {
		on, _ := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_RCVMARK)
		fmt.Print(on, " ")
	}
	fmt.Println(err)
}

// TestReceiveMarks has no more than ssh-captured, and CAP_NET_ADMIN alone, which is what
// kernels ask for. This one may ask for nothing.
func TestReceiveMarks(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, and CI=true allows no skip")
		}
		t.Skip("needs root")
	}
	all := []privilege.Capability{privilege.NetAdmin, privilege.SysPtrace, privilege.DACOverride, privilege.BPF}
	for _, keep := range [][]privilege.Capability{all, all[:1]} {
		var list []string
		for _, k := range keep {
			list = append(list, fmt.Sprint(uint8(k)))
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), envKeep+"="+strings.Join(list, " "))
		out, err := cmd.CombinedOutput()
		got := strings.TrimSpace(string(out))
		if strings.Contains(got, unix.ENOPROTOOPT.Error()) {
			t.Skip("the kernel tells no marks (5.19)")
		}
		if err != nil || got != "1 1 <nil>" {
			t.Errorf("with %v: %s, %v", keep, got, err)
		}
	}
}

// TestClaim has sockets that were claimed hear of their own port, and of no other when
// they are bound anew, nor those that are accepted from them.
func TestClaim(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, and CI=true allows no skip")
		}
		t.Skip("needs root")
	}
	udp, udpPort, err := Pair(OpenUDP, false)
	if err != nil {
		t.Fatal(err)
	}
	defer udp[0].Close()
	tcp, tcpPort, err := Pair(Open, false)
	if err != nil {
		t.Fatal(err)
	}
	defer tcp[0].Close()
	if err := errors.Join(Claim(udpPort, udp...), Claim(tcpPort, tcp...)); err != nil {
		t.Fatal(err)
	}
	c, err := net.FilePacketConn(udp[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	say := func(port uint16) {
		t.Helper()
		from, err := net.Dial("udp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		if _, err := fmt.Fprint(from, port); err != nil {
			t.Fatal(err)
		}
	}
	say(udpPort)
	b := make([]byte, 10)
	if n, _, err := c.ReadFrom(b); err != nil || string(b[:n]) != fmt.Sprint(udpPort) {
		t.Errorf("at its own port: %q, %v", b[:n], err)
	}

	program, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", tcpPort))
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	l, err := net.FileListener(tcp[0])
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if _, err := io.WriteString(program, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := accepted.Read(b); err != nil {
		t.Errorf("what is accepted: %v", err)
	}

	// As one who has been given them would.
	err = descriptor.Control(accepted.(*net.TCPConn), func(fd int) error {
		return errors.Join(disconnect(fd), unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 1))
	})
	if err != nil {
		t.Fatal(err)
	}
	port := localPort(t, accepted.(*net.TCPConn))
	if other, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", port), 100*time.Millisecond); err == nil {
		t.Error("an accepted socket that was bound anew listens")
		other.Close()
	}
	err = descriptor.Control(c.(*net.UDPConn), func(fd int) error {
		return errors.Join(disconnect(fd), unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	})
	if err != nil {
		t.Fatal(err)
	}
	say(localPort(t, c.(*net.UDPConn)))
	if err := c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, _, err := c.ReadFrom(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("at another port: %q, %v", b[:n], err)
	}
	// The filter stays, and the mark cannot be had otherwise.
	err = descriptor.Control(c.(*net.UDPConn), func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0) })
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("taking off the filter: %v", err)
	}
}

// disconnect is connect(2) to AF_UNSPEC, which lets go of the port.
func disconnect(fd int) error {
	var unspec [16]byte
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec[0])), uintptr(len(unspec))); errno != 0 {
		return errno
	}
	return nil
}

// localPort asks the kernel, where package net remembers another.
func localPort(t *testing.T, c syscall.Conn) (port uint16) {
	t.Helper()
	err := descriptor.Control(c, func(fd int) error {
		sa, err := unix.Getsockname(fd)
		if sa, ok := sa.(*unix.SockaddrInet4); ok {
			port = uint16(sa.Port)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return port
}
