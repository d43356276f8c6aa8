package guards

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/test/netns"
)

// marks of other programs' that a connection may have, and the DSCP that each is shown
// by on the wire. What is not listed, and not 0, is shown as stray.
var marks = []struct {
	mark uint32
	dscp byte
}{
	{0, 0},
	{0xca6c, 10},      // WireGuard's
	{0x4000, 12},      // Kubernetes'
	{0x8000_0001, 14}, // of one bit at either end
	{theirs, 18},
}

const (
	theirs    = 0xffff_ffff &^ capture.MarkMask // what others may have in their marks
	strayDSCP = 63
)

// showMarks loads what does it.
func showMarks() string {
	var b strings.Builder
	for _, m := range marks {
		if m.mark != 0 {
			fmt.Fprintf(&b, "\t\tmeta mark & %#x == %#x ip dscp set %d accept\n", theirs, m.mark, m.dscp)
		}
	}
	return fmt.Sprintf("nft -f - <<'!'\ntable inet observer {\n\tcounter ours { }\n\tchain last {\n\t\ttype filter hook postrouting priority 500;\n"+
		"\t\ttcp flags & (syn | ack) == syn tcp dport 7005 meta mark & %#x != 0 counter name ours\n%s\t\tmeta mark & %#x != 0 ip dscp set %d\n\t}\n}\n!",
		capture.MarkMask, b.String(), theirs, strayDSCP)
}

// TestDirect has connections that a compiled rule lets through leave with the marks that
// their programs, or foreign rules, gave them, under each foreign firewall, and the way
// that these marks stand for in foreign policy rules.
func TestDirect(t *testing.T) {
	w := newWorld(t)
	for _, f := range foreigners() {
		if !f.allowed {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			w.off(t)
			w.load(t, f)
			w.sh(t, w.Client, showMarks())
			defer w.sh(t, w.Client, f.unload+"\n"+tables("inet observer"))
			without := w.wayOut(t, f)
			w.on(t)
			passed := w.passed(t)
			w.sh(t, w.Client, "nft reset counter inet observer ours >/dev/null")
			with := w.wayOut(t, f)
			if got := w.sh(t, w.Client, "nft list counter inet observer ours"); !strings.Contains(got, "packets 0 ") {
				t.Errorf("our bits are on what leaves: %s", got)
			}
			if !slices.Equal(with, without) {
				t.Errorf("with us %v, without %v", with, without)
			}
			if n := int(w.passed(t)) - int(passed); n < len(marks) {
				t.Errorf("the kernel let %d pass by a compiled rule, of %d", n, len(marks))
			}
		})
	}
}

// wayOut connects to compiled with each mark and says how the SYNs looked on the wire,
// and how it went.
func (w *world) wayOut(t *testing.T, f foreign) (list []string) {
	t.Helper()
	devices := map[string]*netns.Wire{"to-server": w.Client.Capture(t, "to-server")}
	if f.device != "" {
		devices[f.device] = w.Client.Capture(t, f.device)
	}
	for _, m := range marks {
		result := w.dialMarked(t, compiled, m.mark)
		for name, wire := range devices {
			for _, p := range wire.Packets(t, netns.NewConnections) {
				if p.Dst.String() == compiled && p.Src.Port() == result.port {
					result.text += fmt.Sprintf(" by %s with DSCP %d", name, p.Frame[15]>>2)
					break // copies of it may follow
				}
			}
		}
		list = append(list, fmt.Sprintf("%#x: %s", m.mark, result.text))
	}
	return list
}

type dialed struct {
	port uint16 // of its own
	text string
}

// dialMarked connects as Alice from a socket with a mark, which she could not set.
func (w *world) dialMarked(t *testing.T, to string, mark uint32) (d dialed) {
	t.Helper()
	err := w.Client.Do(func() error {
		if err := unix.Setfsuid(int(w.Alice.UID)); err != nil {
			return err
		}
		dialer := net.Dialer{Timeout: patience / 40, Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			cerr := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
				if err == nil { // its port is known also when nobody answers
					err = unix.Bind(int(fd), &unix.SockaddrInet4{Addr: w.Client.Addr4.As4()})
				}
				if sa, serr := unix.Getsockname(int(fd)); serr == nil {
					d.port = uint16(sa.(*unix.SockaddrInet4).Port)
				}
			})
			if cerr != nil {
				return cerr
			}
			return err
		}}
		c, err := dialer.Dial("tcp4", to)
		if err != nil {
			d.text = "no answer"
			return nil
		}
		defer c.Close()
		if _, err := io.WriteString(c, "x\n"); err != nil {
			return err
		}
		b := make([]byte, 100)
		n, err := c.Read(b)
		d.text = strings.TrimSpace(string(b[:n]))
		return err
	})
	if err != nil {
		t.Fatalf("mark %#x: %v", mark, err)
	}
	return d
}

// passed is how many SYNs the rule about compiled has let through.
func (w *world) passed(t *testing.T) (n uint64) {
	t.Helper()
	for _, c := range w.Status(t).Captures {
		for _, h := range c.Hits {
			if h.Rule == 3 && h.Outcome == capture.Pass.String() {
				n += h.Count
			}
		}
	}
	return n
}
