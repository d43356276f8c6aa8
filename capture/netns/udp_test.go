package netns

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sshbroker/capture/descriptor"
	"sshbroker/capture/message"
	"sshbroker/capture/udprelay"
)

const (
	udpProgram = "NETNS_TEST_UDP"
	insideUDP  = "NETNS_TEST_UDP_WORLD"
)

// Far sides, in a network namespace that the test makes. The third is refused.
var (
	far4     = netip.MustParseAddrPort("203.0.113.7:7007")
	other4   = netip.MustParseAddrPort("203.0.113.8:7008")
	refused4 = netip.MustParseAddrPort("203.0.113.9:7009")
	slow4    = netip.MustParseAddrPort("198.51.100.2:7007") // behind a device, where nobody answers ARP
	silent4  = netip.MustParseAddrPort("203.0.113.7:7010")  // nobody is there
	far6     = netip.MustParseAddrPort("[2001:db8::7]:7007")
	other6   = netip.MustParseAddrPort("[2001:db8::8]:7007")
)

// udpPrograms are what runs inside. Each prints what it sees.
var udpPrograms = map[string]func() error{
	"unconnected": func() error {
		for _, dst := range []netip.AddrPort{far4, far6} {
			s, err := openProgram()
			if err != nil {
				return err
			}
			s.ask(dst, "hello")
		}
		return nil
	},
	"connected": func() error {
		for _, dst := range []netip.AddrPort{far4, far6} {
			c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(dst))
			if err != nil {
				return err
			}
			b := make([]byte, 64)
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			_, _ = c.Write([]byte("hello"))
			n, err := c.Read(b)
			fmt.Printf("%v %q %v\n", dst, text(b[:n]), err)
		}
		return nil
	},
	// One socket, several destinations, in turns.
	"several": func() error {
		s, err := openProgram()
		if err != nil {
			return err
		}
		for range 2 {
			for _, dst := range []netip.AddrPort{far4, other4, far6, other6} {
				s.ask(dst, "to "+dst.Addr().String())
			}
		}
		return nil
	},
	"sizes": func() error {
		for _, dst := range []netip.AddrPort{far4, far6} {
			s, err := openProgram()
			if err != nil {
				return err
			}
			for _, size := range []int{0, 1472, 1473, 60000, 65507 - portLen} {
				want := bytes.Repeat([]byte("x"), size)
				_, _ = s.WriteToUDPAddrPort(want, dst)
				b := make([]byte, 65535)
				n, from, err := s.ReadFromUDPAddrPort(b)
				fmt.Printf("%v %d bytes equal=%t %v\n", unmap(from), size, n >= portLen && bytes.Equal(b[portLen:n], want), err)
			}
		}
		return nil
	},
	// A far side to which nothing can be sent must not hold up another one.
	"slow": func() error {
		s, err := openProgram()
		if err != nil {
			return err
		}
		for range 50 {
			if _, err := s.WriteToUDPAddrPort(make([]byte, 1000), slow4); err != nil {
				return err
			}
		}
		// The kernel gives up ARP, and with it what waits for it, after three seconds.
		_ = s.SetReadDeadline(time.Now().Add(1500 * time.Millisecond))
		s.ask(far4, "hello")
		return nil
	},
	"refused": func() error {
		s, err := openProgram()
		if err != nil {
			return err
		}
		for _, dst := range []netip.AddrPort{refused4, silent4} {
			_ = s.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			s.ask(dst, "nobody answers")
		}
		// Nothing of it hurts the next one.
		_ = s.SetReadDeadline(time.Now().Add(5 * time.Second))
		s.ask(far4, "hello")
		return nil
	},
	// One destination, and after each answer the test says when to go on.
	"patient": func() error {
		s, err := openProgram()
		if err != nil {
			return err
		}
		in := bufio.NewReader(os.Stdin)
		for range 3 {
			s.ask(far4, "hello")
			if _, err := in.ReadString('\n'); err != nil {
				return err
			}
		}
		return nil
	},
	// Several datagrams by one system call, as QUIC senders do.
	"segmented": func() error {
		for _, dst := range []netip.AddrPort{far4, far6} {
			c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(dst))
			if err != nil {
				return err
			}
			raw, err := c.SyscallConn()
			if err != nil {
				return err
			}
			_ = raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1200)
			})
			if err != nil {
				return err
			}
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := c.Write(make([]byte, 3000)); err != nil {
				return err
			}
			b := make([]byte, 3000)
			for range 3 {
				n, err := c.Read(b)
				fmt.Println(n-portLen, err)
			}
		}
		return nil
	},
	"bounded": func() error {
		var sockets []*program
		for range 5 {
			s, err := openProgram()
			if err != nil {
				return err
			}
			sockets = append(sockets, s)
		}
		for range 2 {
			for _, s := range sockets {
				s.ask(far4, "hello")
			}
		}
		return nil
	},
	"settings": func() error {
		for _, name := range []string{"nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"} {
			b, err := os.ReadFile("/proc/sys/net/netfilter/" + name)
			fmt.Printf("%s %v\n", strings.TrimSpace(string(b)), err)
		}
		return nil
	},
}

// program is a UDP socket as programs have it: for both families, unconnected.
type program struct{ *net.UDPConn }

func openProgram() (*program, error) {
	c, err := net.ListenUDP("udp", nil)
	if err != nil {
		return nil, err
	}
	return &program{c}, c.SetDeadline(time.Now().Add(10 * time.Second))
}

// ask prints what comes back, and from where.
func (s *program) ask(dst netip.AddrPort, question string) {
	_, err := s.WriteToUDPAddrPort([]byte(question), dst)
	if err != nil {
		fmt.Printf("%v send: %v\n", dst, err)
		return
	}
	b := make([]byte, 1500)
	n, from, err := s.ReadFromUDPAddrPort(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		fmt.Printf("%v no answer\n", dst)
		return
	}
	fmt.Printf("%v %q %v\n", unmap(from), text(b[:n]), err)
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// portLen is how much an echo puts before what it got: its peer's port, so that an
// answer is never the datagram itself come back.
const portLen = 5

func text(answer []byte) string { return string(answer[min(len(answer), portLen):]) }

func echo(t *testing.T, addr netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 65535)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b[portLen:])
			if err != nil {
				return
			}
			copy(b, fmt.Sprintf("%05d", from.Port()))
			_, _ = c.WriteToUDPAddrPort(b[:portLen+n], from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
}

// outside runs the calling test again in a network namespace where the far sides'
// addresses exist, and reports whether this is that run. An ordinary user makes it in
// a user namespace, which then stands above the captures'.
func outside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideUDP) == "" {
		cmd := exec.Command(exe(t), "-test.v", "-test.run", "^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), insideUDP+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
		userNS := !mayDoWithoutUserNS()
		if userNS {
			uid, gid := os.Getuid(), os.Getgid()
			cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
			cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN}
		}
		out, err := cmd.CombinedOutput()
		var forbids *ForbiddenError
		if err := forbidden(err, userNS); errors.As(err, &forbids) && os.Getenv("CI") != "true" {
			t.Skipf("%v", err)
		}
		switch {
		case err == nil && strings.Contains(string(out), "--- PASS: "+t.Name()):
		case err == nil && strings.Contains(string(out), "--- SKIP: "+t.Name()):
			t.Skipf("%s", out)
		default:
			t.Errorf("%v\n%s", err, out)
		}
		return false
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.AddrPort{far4, other4, refused4, far6, other6} {
		bits := a.Addr().BitLen()
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(bits, bits)}}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(lo, addr); err != nil {
			t.Fatalf("address %v: %v", a.Addr(), err)
		}
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "slow0"}, PeerName: "slow1"}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"slow0", "slow1"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: slow4.Addr().Prev().AsSlice(), Mask: net.CIDRMask(24, 32)}}
	if err := netlink.AddrAdd(veth, addr); err != nil {
		t.Fatal(err)
	}
	return true
}

// narrow dials with room for hardly more than one datagram that is not sent yet.
func narrow(_ context.Context, dst netip.AddrPort) (*net.UDPConn, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(dst))
	if err != nil {
		return nil, err
	}
	return c, c.SetWriteBuffer(1)
}

func TestUDPRelay(t *testing.T) {
	if !outside(t) {
		return
	}
	for _, a := range []netip.AddrPort{far4, other4, refused4, far6, other6} {
		echo(t, a)
	}
	allow := func(dst netip.AddrPort) bool { return dst != refused4 }
	for _, c := range []struct {
		program string
		config  udprelay.Config
		want    string
		records int
	}{
		{program: "unconnected", records: 2, want: `203.0.113.7:7007 "hello" <nil>
[2001:db8::7]:7007 "hello" <nil>
`},
		{program: "connected", records: 2, want: `203.0.113.7:7007 "hello" <nil>
[2001:db8::7]:7007 "hello" <nil>
`},
		{program: "several", records: 4, want: strings.Repeat(`203.0.113.7:7007 "to 203.0.113.7" <nil>
203.0.113.8:7008 "to 203.0.113.8" <nil>
[2001:db8::7]:7007 "to 2001:db8::7" <nil>
[2001:db8::8]:7007 "to 2001:db8::8" <nil>
`, 2)},
		{program: "sizes", records: 2, want: sizesWant()},
		{program: "slow", config: udprelay.Config{Dial: narrow}, records: 2, want: "203.0.113.7:7007 \"hello\" <nil>\n"},
		{program: "refused", records: 2, want: `203.0.113.9:7009 no answer
203.0.113.7:7010 no answer
203.0.113.7:7007 "hello" <nil>
`},
		{program: "patient", config: udprelay.Config{IdleTimeout: 200 * time.Millisecond}, records: 3,
			want: strings.Repeat("203.0.113.7:7007 \"hello\" <nil>\n", 3)},
		{program: "segmented", records: 2, want: strings.Repeat("1200 <nil>\n1200 <nil>\n600 <nil>\n", 2)},
		{program: "bounded", config: udprelay.Config{MaxFlows: 2}, records: 10,
			want: strings.Repeat("203.0.113.7:7007 \"hello\" <nil>\n", 10)},
		{program: "settings", want: "180 <nil>\n180 <nil>\n"},
	} {
		t.Run(c.program, func(t *testing.T) {
			t.Setenv(udpProgram, c.program)
			p := launch(t, Options{UDPRelay: true})
			ended := make(chan udprelay.Record, 64)
			c.config.Ended = func(r udprelay.Record) {
				ended <- r
				fmt.Fprintln(p.stdin) // "patient" waits for it
			}
			c.config.Allow = allow
			p.serve(func(ctx context.Context) {
				if err := p.served.serveUDP(ctx, c.config); err != nil {
					t.Error(err)
				}
			})
			if out := p.finish(); out != c.want {
				t.Errorf("captured program printed\n%s\nwant\n%s", out, c.want)
			}
			close(ended)
			peers := map[netip.AddrPort]int{}
			for r := range ended {
				peers[r.Peer]++
				t.Logf("%+v", r)
			}
			if n := sum(peers); n != c.records {
				t.Errorf("%d conversations, want %d", n, c.records)
			}
			if c.program == "several" && len(peers) != 4 {
				t.Errorf("one socket with four destinations is %d peers", len(peers))
			}
		})
	}
}

func sum(m map[netip.AddrPort]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

func sizesWant() string {
	var b strings.Builder
	for _, from := range []netip.AddrPort{far4, far6} {
		for _, size := range []int{0, 1472, 1473, 60000, 65507 - portLen} {
			fmt.Fprintf(&b, "%v %d bytes equal=true <nil>\n", from, size)
		}
	}
	return b.String()
}

// TestServeUDP is the call that brokers make: with a relay it carries what is
// allowed, without one it has nothing to do.
func TestServeUDP(t *testing.T) {
	if !outside(t) {
		return
	}
	echo(t, far4)
	echo(t, far6)
	t.Setenv(udpProgram, "unconnected")
	p := launch(t, Options{UDPRelay: true})
	p.serve(func(ctx context.Context) {
		if err := p.served.ServeUDP(ctx, func(dst netip.AddrPort) bool { return dst == far4 || dst == far6 }); err != nil {
			t.Error(err)
		}
	})
	if out, want := p.finish(), "203.0.113.7:7007 \"hello\" <nil>\n[2001:db8::7]:7007 \"hello\" <nil>\n"; out != want {
		t.Errorf("captured program printed\n%s\nwant\n%s", out, want)
	}

	p = launch(t, Options{})
	if err := p.served.ServeUDP(t.Context(), func(netip.AddrPort) bool { t.Error("asked"); return true }); err != nil {
		t.Error(err)
	}
	if out, want := p.finish(), "203.0.113.7:7007 send: "; !strings.HasPrefix(out, want) {
		t.Errorf("captured program without a relay printed\n%s", out)
	}
}

// TestUDPRelayTakeover: the broker dies, and another one goes on with the same
// descriptors. A program's next datagram goes out, from another port.
func TestUDPRelayTakeover(t *testing.T) {
	if !outside(t) {
		return
	}
	echo(t, far4)
	t.Setenv(udpProgram, "patient")
	p := begin(t, Options{UDPRelay: true})
	brokers := []*Served{adopt(t, p.child.Manifest, duplicate(t, p.child.Files), false)}
	allow := func(netip.AddrPort) bool { return true }
	p.serve(func(ctx context.Context) {
		for i := 0; ; i++ {
			served, first := brokers[i], make(chan struct{})
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = served.serveUDP(ctx, udprelay.Config{Allow: allow, IdleTimeout: 200 * time.Millisecond,
					Ended: func(udprelay.Record) { close(first) }})
			}()
			<-first // one answer came, and the conversation went idle
			served.Close()
			<-done
			if i == 2 {
				message.CloseAll(p.child.Files)
				fmt.Fprintln(p.stdin)
				return
			}
			brokers = append(brokers, adopt(t, p.child.Manifest, duplicate(t, p.child.Files), true))
			fmt.Fprintln(p.stdin)
		}
	})
	if out, want := p.finish(), strings.Repeat("203.0.113.7:7007 \"hello\" <nil>\n", 3); out != want {
		t.Errorf("captured program printed\n%s\nwant\n%s", out, want)
	}
}

func duplicate(t *testing.T, files []*os.File) (dups []*os.File) {
	t.Helper()
	for _, f := range files {
		err := descriptor.Control(f, func(fd int) error {
			n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err == nil {
				dups = append(dups, os.NewFile(uintptr(n), "capture"))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return dups
}

// TestConntrackForgets: asked from outside the namespace for a conversation that is
// not there, the kernel says just that.
func TestConntrackForgets(t *testing.T) {
	t.Setenv(udpProgram, "settings")
	p := launch(t, Options{UDPRelay: true})
	local := netip.MustParseAddrPort(p.served.relay[0].LocalAddr().String())
	_, err := p.served.conntrack.Original(local, netip.MustParseAddrPort("192.0.0.8:4711"))
	if !errors.Is(err, udprelay.ErrNoEntry) {
		t.Errorf("error is %v, want %v", err, udprelay.ErrNoEntry)
	}
	p.finish()
}

func TestManifestOfARelay(t *testing.T) {
	base := []string{roleQueue, roleDiag, roleTCP, roleDNSUDP, roleDNSTCP}
	for _, c := range []struct {
		name  string
		relay bool
		roles []string
		ok    bool
	}{
		{"none", false, nil, true},
		{"whole", true, []string{roleRelay, roleRelay, roleConntrack}, true},
		{"without IPv6", true, []string{roleRelay, roleConntrack}, true},
		{"not announced", false, []string{roleRelay, roleConntrack}, false},
		{"connection tracking not announced", false, []string{roleConntrack}, false},
		{"no sockets", true, []string{roleConntrack}, false},
		{"no connection tracking", true, []string{roleRelay}, false},
		{"connection tracking twice", true, []string{roleRelay, roleConntrack, roleConntrack}, false},
		{"connection tracking twice, not announced", false, []string{roleConntrack, roleConntrack}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := Manifest{NetNS: 1, Files: append(base[:len(base):len(base)], c.roles...), UDPRelay: c.relay, Held: true}
			if err := m.check(make([]*os.File, len(m.Files))); (err == nil) != c.ok {
				t.Errorf("check: %v", err)
			}
		})
	}
}
