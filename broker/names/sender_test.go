package names

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// marking serves Users on sockets that tell marks, if tell is set.
type marking struct {
	*Users
	t    *testing.T
	tell bool
}

func (m marking) Serve(ctx context.Context, udp []net.PacketConn, tcp []net.Listener) error {
	for _, c := range udp {
		if m.tell {
			m.set(c.(*net.UDPConn), unix.SO_RCVMARK, 1)
		}
	}
	return m.ServeMarked(ctx, udp, tcp)
}

func (m marking) set(c *net.UDPConn, option, value int) {
	raw, err := c.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, value) })
		err = errors.Join(cerr, err)
	}
	if err != nil {
		m.t.Error(err)
	}
}

// requireMarks skips where marks cannot be set and told.
func requireMarks(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, option := range []int{unix.SO_MARK, unix.SO_RCVMARK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1); err != nil {
			skip(t, fmt.Sprintf("socket option %d: %v", option, err))
		}
	}
}

// lines is a log.
type lines chan string

func (l lines) Write(b []byte) (int, error) { l <- string(b); return len(b), nil }

// Where sockets tell marks the mark says whose a datagram is, and the address nothing.
// A connection has no mark.
func TestUsersServeMarked(t *testing.T) {
	requireMarks(t)
	warned := make(lines, 100)
	u := newUsers(t, Config{ResolvFile: corp(t), Logger: slog.New(slog.NewTextHandler(warned, nil))})
	m := marking{u, t, true}
	for _, host := range []string{"127.0.0.1", "::1"} {
		server := serve(t, m, host)
		for mark, want := range map[int]string{alice: "Success 192.0.2.1", bob: "Success 192.0.2.1", 0: "ServerFailure"} {
			name := fmt.Sprintf("n%d.corp.", mark)
			c, err := net.Dial("udp", server)
			if err != nil {
				t.Fatal(err)
			}
			m.set(c.(*net.UDPConn), unix.SO_MARK, mark)
			if got := exchange(t, c, "udp", name); got != want {
				t.Errorf("mark %d at %s: %q, want %s", mark, host, got, want)
			}
			c.Close()
		}
	}
	c, err := dialFrom("tcp", "127.0.0.2", serve(t, m, "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := exchange(t, c, "tcp", "n2.corp."); got != "Success 192.0.2.1" {
		t.Errorf("over TCP: %q", got)
	}
	for uid, want := range map[uint32]string{alice: "[n1001.corp]", bob: "[n1002.corp]", 2: "[n2.corp]", 0: "[]", 1: "[]"} {
		if got := fmt.Sprint(u.For(uid).Lookup(addr("192.0.2.1"))); got != want {
			t.Errorf("%d knows %s, want %s", uid, got, want)
		}
	}
	if s := u.Stats(); s.Users != 3 || s.Unowned != 2 || s.Forwarded != 5 {
		t.Errorf("%+v", s)
	}
	if n := len(warned); n != 1 {
		t.Errorf("%d lines were logged", n)
	} else if text := <-warned; !strings.Contains(text, "nobody could tell whose it was") {
		t.Errorf("logged: %s", text)
	}
}

// Sockets that tell no marks do not fall back to addresses.
func TestUsersServeMarkedWithoutMarks(t *testing.T) {
	u := newUsers(t, Config{ResolvFile: corp(t)})
	c, err := dialFrom("udp", "127.0.0.2", serve(t, marking{u, t, false}, "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := exchange(t, c, "udp", "n.corp."); got != "ServerFailure" || u.For(2).Lookup(addr("192.0.2.1")) != nil {
		t.Errorf("answered with %q", got)
	}
}

func TestMarkOf(t *testing.T) {
	message := func(level, typ int32, data ...byte) []byte {
		b := make([]byte, unix.CmsgSpace(len(data)))
		binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(len(data))))
		binary.NativeEndian.PutUint32(b[8:], uint32(level))
		binary.NativeEndian.PutUint32(b[12:], uint32(typ))
		copy(b[16:], data)
		return b
	}
	mark := binary.NativeEndian.AppendUint32(nil, 0xfffffc17)
	for _, c := range []struct {
		name string
		in   []byte
		want uint32
	}{
		{"alone", message(unix.SOL_SOCKET, unix.SO_MARK, mark...), 0xfffffc17},
		{"second", append(message(unix.SOL_IP, unix.IP_TTL, 1, 2, 3, 4), message(unix.SOL_SOCKET, unix.SO_MARK, mark...)...), 0xfffffc17},
		{"another level", message(unix.SOL_IP, unix.SO_MARK, mark...), 0},
		{"short", message(unix.SOL_SOCKET, unix.SO_MARK, 1, 2), 0},
		{"cut", message(unix.SOL_SOCKET, unix.SO_MARK, mark...)[:10], 0},
		{"none", nil, 0},
	} {
		if got := markOf(c.in); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
}

func FuzzMarkOf(f *testing.F) {
	f.Add(make([]byte, 24))
	f.Fuzz(func(t *testing.T, b []byte) {
		if markOf(b) != 0 && len(b) < unix.CmsgLen(4) {
			t.Errorf("a mark in %x", b)
		}
	})
}
