package origin

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
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
	want.State, want.UID = StateEstablished, uint32(os.Geteuid())

	d, err := OpenDiag()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	got, err := d.Lookup(addrPort(program.LocalAddr()), addrPort(program.RemoteAddr()))
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func addrPort(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

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
	f.Add(uint16(MsgSockets), append(make([]byte, AnswerLen), netlink.Attr(21, make([]byte, 8))...))
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
