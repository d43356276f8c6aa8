package leak

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"sshbroker/capture/leak/ways"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func probeNamed(t *testing.T, name string) Probe {
	t.Helper()
	list, unknown := Named(name)
	if len(list) != 1 || len(unknown) > 0 {
		t.Fatalf("%s: %v, unknown %v", name, list, unknown)
	}
	return list[0]
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	own, rest := map[string]bool{}, map[string]bool{}
	for _, p := range Own() {
		own[p.Name] = true
	}
	for _, p := range Rest() {
		rest[p.Name] = true
	}
	for _, p := range All() {
		if seen[p.Name] || p.What == "" || !ways.Known(p.Name) || p.sink == nil && p.Class != Names {
			t.Errorf("probe %+v", p)
		}
		seen[p.Name] = true
		// Each is made by --strict once, but for what it closes, and what leads to everything.
		if neither := p.Class == Inherited || p.Name == "resolved-dbus"; own[p.Name] == rest[p.Name] != neither {
			t.Errorf("%s: own %t, rest %t", p.Name, own[p.Name], rest[p.Name])
		}
	}
	if list, unknown := Named("udp4", "x", "tcp4", "y"); len(list) != 2 || list[0].Name != "tcp4" || strings.Join(unknown, " ") != "x y" {
		t.Errorf("%v, %v", list, unknown)
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		probe string
		came  string
		res   ways.Result
		want  Verdict
	}{
		{"tcp4", "a connection", ways.Result{}, Leaked},
		{"tcp4", "a connection", ways.Result{Errno: unix.EHOSTUNREACH}, Leaked}, // whatever the program was told
		{"tcp4", "", ways.Result{Errno: unix.EHOSTUNREACH}, Held},
		{"tcp4", "", ways.Result{Errno: unix.ETIMEDOUT}, Held},
		{"tcp4", "", ways.Result{}, Held},
		{"tcp4", "", ways.Result{Errno: unix.EPERM}, RefusedHere},
		{"udp4", "", ways.Result{Errno: unix.EPERM}, RefusedHere},
		{"udp4", "", ways.Result{}, RefusedHere},
		{"udp4", "a datagram", ways.Result{Errno: unix.EPERM}, Leaked},
		{"dns-udp", "", ways.Result{Caught: true, Text: "x"}, Held},
		{"dns-udp", "", ways.Result{Outside: true, Text: "x"}, Leaked},
		{"dns-udp", "", ways.Result{Errno: unix.ECONNREFUSED}, Leaked}, // it was the host's own address
		{"dns-udp", "", ways.Result{Errno: unix.ETIMEDOUT}, RefusedHere},
		{"nscd", "", ways.Result{Outside: true, Text: "x"}, Leaked},
		{"nscd", "", ways.Result{Errno: unix.ENOENT}, RefusedHere},
		{"inherited-tcp", "", ways.Result{Errno: unix.EBADF}, RefusedHere},
		{"inherited-tcp", "data", ways.Result{}, Leaked},
	} {
		if got, detail := probeNamed(t, c.probe).judge(c.came, c.res); got != c.want || detail == "" {
			t.Errorf("%s, %q, %+v: %s (%q), want %s", c.probe, c.came, c.res, got, detail, c.want)
		}
	}
}

func TestSurvey(t *testing.T) {
	addrs := func(texts ...string) (list []net.Addr) {
		for _, text := range texts {
			ip, n, err := net.ParseCIDR(text)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, &net.IPNet{IP: ip, Mask: n.Mask})
		}
		return list
	}
	none := Field{V4: netip.MustParseAddr("127.0.0.1"), V6: netip.IPv6Loopback()}
	f := none
	f.consider(net.Interface{Name: "a", Index: 2}, addrs("fe80::1/64"))
	if f.Device != "a" || !f.DeviceV6 || f.DeviceV4.IsValid() || f.V4 != none.V4 || f.V6 != none.V6 {
		t.Errorf("link-local alone: %+v", f)
	}
	f.consider(net.Interface{Name: "b", Index: 3}, addrs("192.0.2.7/24", "2001:db8::7/64", "fe80::2/64"))
	f.consider(net.Interface{Name: "c", Index: 4}, addrs("198.51.100.7/24"))
	if f.Device != "b" || f.Index != 3 || f.DeviceV4 != netip.MustParseAddr("192.0.2.7") || !f.DeviceV6 || f.V4 != f.DeviceV4 || f.V6 != netip.MustParseAddr("2001:db8::7") {
		t.Errorf("%+v", f)
	}
	// Where a probe goes.
	for _, c := range []struct {
		probe     string
		namespace bool
		field     Field
		want      string
		group     bool
	}{
		{"udp4", true, f, "192.0.2.7", false}, {"udp4", false, f, "224.0.0.1", true}, {"udp6", false, f, "ff01::1%b", true},
		{"udp4", false, none, "invalid IP", false}, {"udp6", false, none, "invalid IP", false}, {"sctp", false, f, "invalid IP", false},
		{"sctp", true, f, "192.0.2.7", false}, {"tcp4", false, f, "192.0.2.7", false}, {"tcp6", true, f, "2001:db8::7", false},
	} {
		c.field.Namespace = c.namespace
		addr, group, why := probeNamed(t, c.probe).target(c.field)
		if addr.String() != c.want || group != c.group || addr.IsValid() != (why == "") {
			t.Errorf("%s, namespace %t: %v, %t, %q", c.probe, c.namespace, addr, group, why)
		}
	}
}

// pair is what one half keeps, and hands to the other.
func pair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	return os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs"), err
}

// TestRemote: the two halves, and what each hears of the other's end.
func TestRemote(t *testing.T) {
	start := func() (*Remote, chan error) {
		t.Helper()
		ours, theirs, err := pair()
		if err != nil {
			t.Fatal(err)
		}
		raw, err := theirs.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		dup := -1
		if cerr := raw.Control(func(fd uintptr) { dup, err = unix.Dup(int(fd)) }); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		theirs.Close()
		ended := make(chan error, 1)
		go func() { ended <- Serve(strconv.Itoa(dup)) }()
		r, elsewhere, err := NewRemote(t.Context(), ours)
		if err != nil || elsewhere {
			t.Fatal(err, elsewhere)
		}
		return r, ended
	}
	r, ended := start()
	if res, err := r.Do(t.Context(), ways.Request{Probe: "no such probe"}); err != nil || res.Errno != unix.EINVAL {
		t.Errorf("%+v, %v", res, err)
	}
	if err := r.Done(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := r.Do(t.Context(), ways.Request{Probe: "udp4"}); err == nil {
		t.Error("it still answers")
	}
	r.Close()

	r, ended = start()
	r.Close()
	if err := <-ended; !errors.Is(err, ErrGone) {
		t.Errorf("nobody is there: %v", err)
	}
	for _, bad := range []string{"", "x", "-1", "100000"} {
		if err := Serve(bad); err == nil {
			t.Errorf("served %q", bad)
		}
	}
	// Nobody answers, and one does not wait for ever.
	ours, theirs, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := NewRemote(ctx, ours); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestSockets(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	u, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s")})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	list, err := Sockets()
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, s := range list {
		kinds = append(kinds, s.Kind)
	}
	if len(list) != 2 || kinds[0] != "a TCP socket" || kinds[1] != "a TCP socket connected to "+l.Addr().String() {
		t.Errorf("%q", kinds)
	}
}

// TestRun makes probes on loopback: where nothing holds them each leaks, where nobody makes
// them none does, and where the other half dies nothing is left.
func TestRun(t *testing.T) {
	field := Field{V4: netip.MustParseAddr("127.0.0.1"), V6: netip.IPv6Loopback(), Namespace: true}
	names := []string{"tcp4", "tcp6", "tcp-mapped", "tcp-device", "tcp-fastopen", "tcp-iouring", "mptcp", "udp4", "udp6", "inherited-tcp", "inherited-udp"}
	probes, _ := Named(names...)
	if len(probes) != len(names) {
		t.Fatalf("%d probes", len(probes))
	}
	here := func(_ context.Context, r ways.Request) (ways.Result, error) { return ways.Do(r), nil }
	nobody := func(context.Context, ways.Request) (ways.Result, error) {
		return ways.Result{Errno: unix.EHOSTUNREACH, Text: "x"}, nil
	}
	for _, c := range []struct {
		name string
		do   Doer
		want map[Class]Verdict
	}{
		{"nothing holds", here, map[Class]Verdict{TCP: Leaked, Datagrams: Leaked, Inherited: Leaked}},
		{"nothing is made", nobody, map[Class]Verdict{TCP: Held, Datagrams: RefusedHere, Inherited: RefusedHere}},
	} {
		bequests, err := Bequeath(field, probes)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range bequests {
			b.FD = int(b.File.Fd())
		}
		var got []string
		err = Run(t.Context(), field, probes, c.do, bequests, func(f Finding) {
			got = append(got, f.Probe)
			if f.Verdict == NotPossible { // a kernel without it
				t.Logf("%s: %s", f.Probe, f.Detail)
			} else if want := c.want[f.Class]; f.Verdict != want || f.Detail == "" || (f.Cure != "") != (want == Leaked) {
				t.Errorf("%s: %+v, want %s", c.name, f, want)
			}
		})
		for _, b := range bequests {
			b.Close()
		}
		if err != nil || strings.Join(got, " ") != strings.Join(names, " ") {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
	dead := func(context.Context, ways.Request) (ways.Result, error) { return ways.Result{}, io.ErrUnexpectedEOF }
	if err := Run(t.Context(), field, probes, dead, nil, func(Finding) { t.Error("something was found") }); !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "tcp4") {
		t.Error(err)
	}
	// Without sockets to hand on, and to nobody's device.
	for _, name := range []string{"inherited-tcp", "udp-device"} {
		p, _ := Named(name)
		if err := Run(t.Context(), field, p, here, nil, func(f Finding) {
			if f.Verdict != NotPossible {
				t.Errorf("%+v", f)
			}
		}); err != nil {
			t.Error(err)
		}
	}
}

// FuzzPacket: what a raw socket reads comes from anybody.
func FuzzPacket(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0}, uint16(80))
	f.Add([]byte{0x4f}, uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, port uint16) {
		if isSYN(b, port) && (len(b) < 40 || b[0]&0xf < 5) {
			t.Errorf("% x is a SYN", b)
		}
	})
}
