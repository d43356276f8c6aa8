package origin

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
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

// attribute is one netlink attribute, padded.
func attribute(kind uint16, value ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(attrHeaderLen+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, -len(b)&3)...)
}

func TestCgroupID(t *testing.T) {
	id := binary.NativeEndian.AppendUint64(nil, 0x1122334455667788)
	for _, c := range []struct {
		name string
		in   []byte
		want uint64
	}{
		{"alone", attribute(attrCgroupID, id...), 0x1122334455667788},
		{"behind an odd one", append(attribute(8, 1), attribute(attrCgroupID, id...)...), 0x1122334455667788},
		{"too short", attribute(attrCgroupID, 1, 2, 3, 4), 0},
		{"cut", attribute(attrCgroupID, id...)[:8], 0},
		{"length of none", make([]byte, 8), 0},
		{"none", nil, 0},
	} {
		if got := cgroupID(c.in); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	header := make([]byte, unix.SizeofNlMsghdr)
	f.Add(bytes.Clone(header))
	f.Add(append(append(bytes.Clone(header), make([]byte, answerLen)...), attribute(attrCgroupID, make([]byte, 8)...)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < unix.SizeofNlMsghdr {
			return // Ask hands over no less
		}
		if s, err := answer(b); err == nil && len(b) < unix.SizeofNlMsghdr+answerLen {
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
