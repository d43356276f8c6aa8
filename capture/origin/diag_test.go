package origin

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sshbroker/capture/netlink"
)

// connection returns both ends of a connection over loopback.
func connection(t testing.TB) (program, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(); s.Close() })
	return p.(*net.TCPConn), s.(*net.TCPConn)
}

// ownCgroup is the id of the cgroup2 directory that this process is in, or 0 where
// there is no such hierarchy.
func ownCgroup(t *testing.T) uint64 {
	t.Helper()
	lines, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(lines)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		for mount := range strings.Lines(string(mounts)) {
			if f := strings.Fields(mount); strings.Contains(mount, " - cgroup2 ") && f[3] == "/" {
				info, err := os.Stat(filepath.Join(f[4], path))
				if err != nil {
					t.Fatal(err)
				}
				return info.Sys().(*syscall.Stat_t).Ino
			}
		}
	}
	return 0
}

func TestLookupNamesTheSocket(t *testing.T) {
	program, _ := connection(t)
	raw, err := program.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var want Socket
	cerr := raw.Control(func(fd uintptr) {
		if want.Cookie, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE); err != nil {
			return
		}
		var stat unix.Stat_t
		err = unix.Fstat(int(fd), &stat)
		want.Inode = uint32(stat.Ino)
	})
	if cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	want.State, want.UID, want.Cgroup = StateEstablished, uint32(os.Geteuid()), ownCgroup(t)

	d, err := OpenDiag()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	got, err := d.Lookup(addrPort(program.LocalAddr()), addrPort(program.RemoteAddr()))
	if err != nil {
		t.Fatal(err)
	}
	if want.Cgroup == 0 {
		want.Cgroup = got.Cgroup // of the root, which no process has to be in
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func addrPort(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

func TestParseFindsTheCgroup(t *testing.T) {
	id := binary.NativeEndian.AppendUint64(nil, 0x1122334455667788)
	whole := netlink.Attr(attrCgroupID, id)
	for _, c := range []struct {
		name  string
		attrs []byte
		want  uint64
	}{
		{"alone", whole, 0x1122334455667788},
		{"behind an odd one", append(netlink.Attr(8, []byte{1}), whole...), 0x1122334455667788},
		{"too short", netlink.Attr(attrCgroupID, id[:4]), 0},
		{"cut", whole[:8], 0},
		{"length of none", make([]byte, 8), 0},
		{"none", nil, 0},
	} {
		got, err := Parse(netlink.Message{Type: MsgSockets, Body: append(make([]byte, AnswerLen), c.attrs...)})
		if err != nil || got.Cgroup != c.want {
			t.Errorf("%s: %#x, %v; want %#x", c.name, got.Cgroup, err, c.want)
		}
	}
}

func TestParseRefusals(t *testing.T) {
	refusal := func(errno unix.Errno) netlink.Message {
		return netlink.Message{Type: unix.NLMSG_ERROR, Body: binary.NativeEndian.AppendUint32(nil, uint32(-int32(errno)))}
	}
	for _, c := range []struct {
		m    netlink.Message
		want error
	}{
		{refusal(unix.ENOENT), ErrNoSocket},
		{refusal(0), ErrNoSocket}, // an acknowledgement names none
		{refusal(unix.EPERM), unix.EPERM},
		{netlink.Message{Type: unix.NLMSG_ERROR}, unix.EBADMSG},
	} {
		if s, err := Parse(c.m); err != c.want || s != (Socket{}) {
			t.Errorf("%+v: %+v, %v; want %v", c.m, s, err, c.want)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(uint16(MsgSockets), make([]byte, AnswerLen))
	f.Add(uint16(MsgSockets), append(make([]byte, AnswerLen), netlink.Attr(attrCgroupID, make([]byte, 8))...))
	f.Add(uint16(unix.NLMSG_ERROR), []byte{1, 0})
	f.Fuzz(func(t *testing.T, typ uint16, b []byte) {
		if s, err := Parse(netlink.Message{Type: typ, Body: b}); err == nil && len(b) < AnswerLen {
			t.Errorf("%+v out of %d bytes", s, len(b))
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	program, _ := connection(b)
	d, err := OpenDiag()
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	local, remote := addrPort(program.LocalAddr()), addrPort(program.RemoteAddr())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Lookup(local, remote); err != nil {
			b.Fatal(err)
		}
	}
}
