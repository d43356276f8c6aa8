package ways

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestDaemon: one that is there is reached, one that is not is not.
func TestDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	if r := daemon(path, avahiHelp)(Request{}); r.Outside || r.Errno != unix.ENOENT {
		t.Errorf("%+v", r)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	heard := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		b := make([]byte, 100)
		n, _ := c.Read(b)
		heard <- string(b[:n])
		c.Close()
	}()
	if r := daemon(path, nscdVersion)(Request{}); !r.Outside {
		t.Errorf("%+v", r)
	}
	if got := <-heard; got != string(nscdVersion) || len(got) != 12+len("localhost\x00") {
		t.Errorf("asked %q", got)
	}
}

// bus is a system bus on which somebody has the name of systemd-resolved, or nobody.
func bus(t *testing.T, owned bool) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+path)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		line := func() string {
			var b []byte
			for one := make([]byte, 1); len(b) == 0 || b[len(b)-1] != '\n'; b = append(b, one...) {
				if _, err := c.Read(one); err != nil {
					return ""
				}
			}
			return string(b)
		}
		for said := line(); !strings.HasPrefix(said, "BEGIN"); said = line() {
			switch {
			case said == "":
				return
			case strings.Contains(said, "NEGOTIATE"):
				io.WriteString(c, "ERROR\r\n")
			case strings.TrimLeft(said, "\x00") == "AUTH\r\n":
				io.WriteString(c, "REJECTED EXTERNAL\r\n")
			default:
				io.WriteString(c, "OK 0123456789abcdef0123456789abcdef\r\n")
			}
		}
		for {
			m, err := dbus.DecodeMessage(c)
			if err != nil {
				return
			}
			var answer any = ":1.1"
			if m.Headers[dbus.FieldMember].Value() == "NameHasOwner" {
				answer = owned && m.Body[0] == "org.freedesktop.resolve1"
			}
			reply := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{
				dbus.FieldReplySerial: dbus.MakeVariant(m.Serial()), dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(answer)),
			}, Body: []any{answer}}
			if reply.EncodeTo(c, binary.LittleEndian) != nil {
				return
			}
		}
	}()
}

func TestResolvedByDBus(t *testing.T) {
	bus(t, true)
	if r := resolvedByDBus(Request{}); !r.Outside {
		t.Errorf("%+v", r)
	}
	bus(t, false)
	if r := resolvedByDBus(Request{}); r.Outside || r.Errno != unix.ENOENT {
		t.Errorf("%+v", r)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/no/such/bus")
	if r := resolvedByDBus(Request{}); r.Outside || r.Errno != unix.ENOENT {
		t.Errorf("%+v", r)
	}
}

func TestInheritedGone(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, fd := range []int{-1, 1 << 20, int(null.Fd())} {
		if r := inherited(Request{FD: fd}); r.Errno == 0 {
			t.Errorf("descriptor %d: %+v", fd, r)
		}
	}
}

// FuzzAnswer: what answers a query is whoever does.
func FuzzAnswer(f *testing.F) {
	name := dnsmessage.MustNewName("a.example.")
	for _, a := range [][4]byte{{198, 18, 0, 1}, {10, 0, 0, 1}} {
		m := dnsmessage.Message{Answers: []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET}, Body: &dnsmessage.AResource{A: a}}}}
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		if fromPool(b) != (a[0] == 198) {
			f.Errorf("%v is from the pool: %t", a, fromPool(b))
		}
		f.Add(b)
	}
	f.Fuzz(func(_ *testing.T, b []byte) { fromPool(b) })
}
