package owner

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sshbroker/capture/netlink"
	"sshbroker/capture/origin"
)

// The uids whose sockets there are. setfsuid gives a socket its owner.
const alice, bob = 61001, 61002

func skipOwner(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// place is a network namespace with a resolver to which port 53 is redirected. It is
// the calling thread's, which ends with the test.
type place struct {
	t        testing.TB
	diag     *origin.Diag
	udp, tcp map[bool]int // the resolver's sockets; true: IPv6
}

const resolverPort = 5300

func newPlace(t testing.TB) *place {
	t.Helper()
	if os.Geteuid() != 0 {
		skipOwner(t, "needs root")
	}
	runtime.LockOSThread() // and never unlocked
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"ip link set lo up",
		"ip link add d0 type veth peer name d1", "ip link set d0 up", "ip link set d1 up",
		"ip addr add 192.0.2.1/24 dev d0", "ip route add default dev d0",
		"ip addr add 2001:db8::1/64 dev d0 nodad", "ip route add default dev d0",
		"nft add table inet t", "nft add chain inet t c { type nat hook output priority -105; }",
		"nft add rule inet t c udp dport 53 redirect to :5300", "nft add rule inet t c tcp dport 53 redirect to :5300",
	} {
		words := strings.Fields(line)
		if words[0] == "ip" && strings.Contains(line, "2001:") {
			words = append([]string{"ip", "-6"}, words[1:]...)
		}
		if _, err := exec.LookPath(words[0]); err != nil {
			skipOwner(t, "needs "+words[0])
		}
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil && !strings.Contains(string(out), "File exists") {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
	exec.Command("ip", "-6", "route", "add", "default", "dev", "d0").Run()
	diag, err := origin.OpenDiag()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { diag.Close() })
	p := &place{t: t, diag: diag, udp: map[bool]int{}, tcp: map[bool]int{}}
	for six, host := range map[bool]string{false: "127.0.0.1", true: "::1"} {
		at := netip.AddrPortFrom(netip.MustParseAddr(host), resolverPort)
		p.udp[six] = p.socket(0, unix.SOCK_DGRAM, six)
		p.bind(p.udp[six], at)
		p.tcp[six] = p.socket(0, unix.SOCK_STREAM, six)
		p.bind(p.tcp[six], at)
		if err := unix.Listen(p.tcp[six], 16); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// socket makes one of uid's, to be closed by the test or with it.
func (p *place) socket(uid, typ int, six bool, options ...int) int {
	p.t.Helper()
	unix.Setfsuid(uid)
	defer unix.Setfsuid(0)
	family := unix.AF_INET
	if six {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "socket")
	p.t.Cleanup(func() { file.Close() })
	files[fd] = file
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})
	for _, o := range options {
		level := unix.SOL_SOCKET
		if o == unix.IPV6_V6ONLY {
			level = unix.IPPROTO_IPV6
		}
		if err := unix.SetsockoptInt(fd, level, o, 1); err != nil {
			p.t.Fatal(err)
		}
	}
	return fd
}

// files closes what a test does not, and only that.
var files = map[int]*os.File{}

func (p *place) close(fd int) { files[fd].Close() }

func sockaddr(a netip.AddrPort, six bool) unix.Sockaddr {
	if six {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

func family6(fd int) bool {
	family, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	return family == unix.AF_INET6
}

func (p *place) bind(fd int, a netip.AddrPort) {
	p.t.Helper()
	if err := unix.Bind(fd, sockaddr(a, family6(fd))); err != nil {
		p.t.Fatalf("bind %v: %v", a, err)
	}
}

func (p *place) connect(fd int, a netip.AddrPort) {
	p.t.Helper()
	if err := unix.Connect(fd, sockaddr(a, family6(fd))); err != nil {
		p.t.Fatalf("connect %v: %v", a, err)
	}
}

// own is the address that fd has.
func (p *place) own(fd int) netip.AddrPort {
	p.t.Helper()
	a, err := unix.Getsockname(fd)
	if err != nil {
		p.t.Fatal(err)
	}
	return fromSockaddr(a)
}

func fromSockaddr(a unix.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// arrives sends a query and returns where the resolver sees it come from.
func (p *place) arrives(fd int, to netip.AddrPort, control []byte) netip.AddrPort {
	p.t.Helper()
	var dst unix.Sockaddr
	if to.IsValid() {
		dst = sockaddr(to, family6(fd))
	} else if peer, err := unix.Getpeername(fd); err != nil {
		p.t.Fatal(err)
	} else {
		to = fromSockaddr(peer)
	}
	if err := unix.Sendmsg(fd, []byte("query"), control, dst, 0); err != nil {
		p.t.Fatalf("send to %v: %v", to, err)
	}
	_, from, err := unix.Recvfrom(p.udp[to.Addr().Unmap().Is6()], make([]byte, 100), 0)
	if err != nil {
		p.t.Fatalf("%v: nothing arrived: %v", to, err)
	}
	return fromSockaddr(from)
}

func (p *place) want(what, network string, from, remote netip.AddrPort, uid uint32, want error) {
	p.t.Helper()
	got, err := Of(p.diag, network, from, remote)
	if !errors.Is(err, want) || err == nil && got != uid {
		p.t.Errorf("%s: from %v: %d, %v; want %d, %v", what, from, got, err, uid, want)
	}
}

var (
	any4, any6 = netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("::")
	unknown    netip.AddrPort
)

// Every way in which a program asks leads to its uid, with nothing known but where
// the redirected query came from.
func TestOwnerOfDatagrams(t *testing.T) {
	p := newPlace(t)
	for _, c := range []struct {
		to   string
		six  bool // the socket
		bind string
	}{
		{"127.0.0.1:53", false, ""}, {"127.0.0.53:53", false, ""}, {"8.8.8.8:53", false, ""}, {"192.0.2.1:53", false, ""},
		{"8.8.8.8:53", false, "192.0.2.1:40001"}, {"8.8.8.8:53", false, "0.0.0.0:40002"},
		{"[::1]:53", true, ""}, {"[2001:db8:1::53]:53", true, ""}, {"[2001:db8:1::53]:53", true, "[2001:db8::1]:40003"},
		{"[::ffff:8.8.8.8]:53", true, ""}, {"[::ffff:127.0.0.53]:53", true, ""}, {"[::ffff:8.8.8.8]:53", true, "[::ffff:192.0.2.1]:40004"},
	} {
		for _, uid := range []int{alice, bob, 0} {
			for _, connected := range []bool{false, true} {
				to := netip.MustParseAddrPort(c.to)
				what := c.to + " bound to " + c.bind
				var fd int
				var from netip.AddrPort
				for fd == 0 || from.Port() != p.own(fd).Port() { // see TestRedirectedPort
					if fd != 0 {
						p.close(fd)
					}
					fd = p.socket(uid, unix.SOCK_DGRAM, c.six)
					if c.bind != "" {
						p.bind(fd, netip.MustParseAddrPort(c.bind))
					}
					dst := to
					if connected {
						p.connect(fd, to)
						dst = netip.AddrPort{}
					}
					from = p.arrives(fd, dst, nil)
				}
				p.want(what, "udp", from, unknown, uint32(uid), nil)
				p.want(what+", remote known", "udp", from, to, uint32(uid), nil)
				p.close(fd)
				p.want(what+", closed", "udp", from, unknown, 0, origin.ErrNoSocket)
			}
		}
	}
}

// The reason why Owner lists: an exact look-up takes the peer for the source (the two
// are swapped for UDP), does not find a connected socket whose peer is not known, and
// names one where two users share a port.
func TestExactLookupOfDatagrams(t *testing.T) {
	p := newPlace(t)
	exact := func(src, dst netip.AddrPort) (origin.Socket, error) {
		m, err := p.diag.Ask(origin.MsgSockets, origin.Request(unix.AF_INET, unix.IPPROTO_UDP, origin.EveryState, src, dst))
		if err != nil {
			return origin.Socket{}, err
		}
		return origin.Parse(m)
	}
	remote, nobody := netip.MustParseAddrPort("8.8.8.8:53"), netip.AddrPortFrom(any4, 0)
	fd := p.socket(alice, unix.SOCK_DGRAM, false)
	p.connect(fd, remote)
	local := p.own(fd)
	if s, err := exact(remote, local); err != nil || s.UID != alice {
		t.Errorf("swapped: %+v, %v", s, err)
	}
	if s, err := exact(local, remote); !errors.Is(err, origin.ErrNoSocket) {
		t.Errorf("not swapped: %+v, %v", s, err)
	}
	if s, err := exact(nobody, local); !errors.Is(err, origin.ErrNoSocket) {
		t.Errorf("connected, remote unknown: %+v, %v", s, err)
	}
	free := p.socket(bob, unix.SOCK_DGRAM, false)
	p.bind(free, netip.AddrPortFrom(any4, 0))
	if s, err := exact(nobody, netip.AddrPortFrom(local.Addr(), p.own(free).Port())); err != nil || s.UID != bob {
		t.Errorf("not connected: %+v, %v", s, err)
	}
	at := netip.AddrPortFrom(any4, 40010)
	for _, uid := range []int{alice, bob} {
		p.bind(p.socket(uid, unix.SOCK_DGRAM, false, unix.SO_REUSEADDR), at)
	}
	if s, err := exact(nobody, netip.AddrPortFrom(local.Addr(), 40010)); err != nil {
		t.Errorf("shared port: %+v, %v", s, err)
	}
}

func TestOwnerWithSharedPorts(t *testing.T) {
	p := newPlace(t)
	to := netip.MustParseAddrPort("8.8.8.8:53")

	group := make([]int, 8)
	for i := range group {
		group[i] = p.socket(alice, unix.SOCK_DGRAM, i%2 == 0, unix.SO_REUSEPORT)
		p.bind(group[i], netip.AddrPortFrom(map[bool]netip.Addr{true: any6, false: any4}[i%2 == 0], 40020))
	}
	p.want("SO_REUSEPORT", "udp", p.arrives(group[3], to, nil), unknown, alice, nil)

	for _, connected := range []bool{false, true} {
		one := p.socket(alice, unix.SOCK_DGRAM, false, unix.SO_REUSEADDR)
		p.bind(one, netip.AddrPortFrom(any4, 40021))
		two := p.socket(bob, unix.SOCK_DGRAM, true, unix.SO_REUSEADDR)
		p.bind(two, netip.AddrPortFrom(any6, 40021))
		dst := to
		if connected {
			p.connect(one, to)
			dst = netip.AddrPort{}
		}
		from := p.arrives(one, dst, nil)
		p.want("two users", "udp", from, unknown, 0, ErrSeveral)
		p.want("two users, remote known", "udp", from, to, 0, ErrSeveral)
		p.close(two)
		p.want("one has gone", "udp", from, unknown, alice, nil)
		p.close(one)
	}

	// What cannot send over IPv4 has no say about it.
	four := p.socket(alice, unix.SOCK_DGRAM, false)
	p.bind(four, netip.AddrPortFrom(any4, 40022))
	six := p.socket(bob, unix.SOCK_DGRAM, true, unix.IPV6_V6ONLY)
	p.bind(six, netip.AddrPortFrom(any6, 40022))
	p.want("beside an IPv6 socket", "udp", p.arrives(four, to, nil), unknown, alice, nil)
	p.want("beside an IPv4 socket", "udp", p.arrives(six, netip.MustParseAddrPort("[::1]:53"), nil), unknown, bob, nil)

	// More than are read are not read.
	for range 1200 {
		p.bind(p.socket(alice, unix.SOCK_DGRAM, false, unix.SO_REUSEPORT), netip.AddrPortFrom(any4, 40023))
	}
	p.want("1,200 sockets", "udp", netip.MustParseAddrPort("127.0.0.1:40023"), unknown, 0, ErrSeveral)
}

// A program may send from any address of the host, by IP_PKTINFO; it must not pass for
// whoever has the port there.
func TestOwnerOfForgedSource(t *testing.T) {
	p := newPlace(t)
	to := netip.MustParseAddrPort("127.0.0.53:53")
	victim := p.socket(alice, unix.SOCK_DGRAM, false)
	p.bind(victim, netip.MustParseAddrPort("127.0.0.1:40030"))
	forger := p.socket(bob, unix.SOCK_DGRAM, false)
	p.bind(forger, netip.MustParseAddrPort("127.0.0.2:40030"))
	forged := unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte{127, 0, 0, 1}})
	from := p.arrives(forger, to, forged)
	if from != p.own(victim) {
		t.Fatalf("it came from %v: this kernel does not let it be forged", from)
	}
	p.want("forged", "udp", from, unknown, 0, ErrSeveral)
	p.close(victim)
	p.want("forged, the victim is gone", "udp", from, unknown, 0, origin.ErrNoSocket)
}

// A socket that asks two servers, as musl's resolver does, has another port at the
// second one: both queries would come from one address to our one socket. Whoever
// holds the new port did not ask; mostly nobody does, and the answer is unknown.
func TestRedirectedPort(t *testing.T) {
	p := newPlace(t)
	fd := p.socket(alice, unix.SOCK_DGRAM, false)
	p.want("the first", "udp", p.arrives(fd, netip.MustParseAddrPort("8.8.8.8:53"), nil), unknown, alice, nil)
	from := p.arrives(fd, netip.MustParseAddrPort("1.1.1.1:53"), nil)
	if from.Port() == p.own(fd).Port() {
		t.Errorf("the second query came from %v as well: this kernel is better than Owner's comment says", from)
	}
	p.want("the second", "udp", from, unknown, 0, origin.ErrNoSocket)
}

func TestOwnerOfConnections(t *testing.T) {
	p := newPlace(t)
	connect := func(uid int, six bool, bind string, to netip.AddrPort) (fd int, from netip.AddrPort) {
		t.Helper()
		fd = p.socket(uid, unix.SOCK_STREAM, six, unix.SO_REUSEADDR)
		if bind != "" {
			p.bind(fd, netip.MustParseAddrPort(bind))
		}
		p.connect(fd, to)
		c, peer, err := unix.Accept(p.tcp[to.Addr().Unmap().Is6()])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(c) })
		return fd, fromSockaddr(peer)
	}
	for _, c := range []struct {
		to  string
		six bool
	}{
		{"127.0.0.53:53", false}, {"8.8.8.8:53", false}, {"[::1]:53", true}, {"[2001:db8:1::53]:53", true}, {"[::ffff:8.8.8.8]:53", true},
	} {
		for _, uid := range []int{alice, bob} {
			to := netip.MustParseAddrPort(c.to)
			fd, from := connect(uid, c.six, "", to)
			p.want(c.to, "tcp", from, to, uint32(uid), nil)
			p.want(c.to+", remote unknown", "tcp", from, unknown, uint32(uid), nil)
			p.close(fd) // FIN_WAIT: the kernel's alone
			p.want(c.to+", closed", "tcp", from, unknown, 0, origin.ErrNoSocket)
			p.want(c.to+", closed", "tcp", from, to, 0, origin.ErrNoSocket)
		}
	}
	one, two := netip.MustParseAddrPort("8.8.8.8:53"), netip.MustParseAddrPort("8.8.4.4:53")
	_, from := connect(alice, false, "192.0.2.1:40040", one)
	connect(bob, false, "192.0.2.1:40040", two)
	p.want("one port, two users", "tcp", from, unknown, 0, ErrSeveral)
	p.want("one port, two users, remote known", "tcp", from, one, alice, nil)
	p.want("one port, two users, remote known", "tcp", from, two, bob, nil)
	p.want("a listener", "tcp", netip.MustParseAddrPort("127.0.0.1:5300"), one, 0, origin.ErrNoSocket)
}

// A connection that was accepted leads to the other end, by the destination that was
// asked for, unless the redirect had to rewrite the port.
func TestOfPeer(t *testing.T) {
	p := newPlace(t)
	accepted := func(uid int, six bool, bind, to string) (fd int, c *net.TCPConn) {
		t.Helper()
		fd = p.socket(uid, unix.SOCK_STREAM, six, unix.SO_REUSEADDR)
		if bind != "" {
			p.bind(fd, netip.MustParseAddrPort(bind))
		}
		dst := netip.MustParseAddrPort(to)
		p.connect(fd, dst)
		s, _, err := unix.Accept(p.tcp[dst.Addr().Unmap().Is6()])
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(s), "accepted")
		defer f.Close()
		conn, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return fd, conn.(*net.TCPConn)
	}
	want := func(what string, c *net.TCPConn, uid uint32, want error) {
		t.Helper()
		if got, err := OfPeer(p.diag, c); got != uid || !errors.Is(err, want) {
			t.Errorf("%s: %d, %v; want %d, %v", what, got, err, uid, want)
		}
	}
	for _, c := range []struct {
		to  string
		six bool
	}{
		{"127.0.0.53:53", false}, {"8.8.8.8:53", false}, {"[::1]:53", true}, {"[2001:db8:1::53]:53", true}, {"[::ffff:8.8.8.8]:53", true},
		{"127.0.0.1:5300", false}, {"[::1]:5300", true}, // straight to the resolver
	} {
		for _, uid := range []int{alice, bob} {
			fd, conn := accepted(uid, c.six, "", c.to)
			want(c.to, conn, uint32(uid), nil)
			p.close(fd)
			want(c.to+", closed", conn, 0, origin.ErrNoSocket)
		}
	}
	_, one := accepted(alice, false, "192.0.2.1:40050", "8.8.8.8:53")
	_, two := accepted(bob, false, "192.0.2.1:40050", "8.8.4.4:53")
	want("the first", one, alice, nil)
	if two.RemoteAddr().(*net.TCPAddr).Port == 40050 {
		t.Error("the second connection kept its port")
	}
	want("the second", two, 0, origin.ErrNoSocket)
}

func TestOwnerRefuses(t *testing.T) {
	p := newPlace(t)
	at := netip.MustParseAddrPort("127.0.0.1:5300")
	for _, c := range []struct {
		network string
		local   netip.AddrPort
	}{{"udp", unknown}, {"udp", netip.AddrPortFrom(at.Addr(), 0)}, {"", at}, {"unix", at}} {
		if uid, err := Of(p.diag, c.network, c.local, unknown); err == nil {
			t.Errorf("%q %v: %d", c.network, c.local, uid)
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	if uid, err := Of(p.diag, "udp", at, unknown); err == nil || !strings.Contains(err.Error(), "another network namespace") {
		t.Errorf("from another namespace: %d, %v", uid, err)
	}
}

// What a list says is the kernel's, but lengths are checked all the same.
func FuzzOwnerList(f *testing.F) {
	body := make([]byte, origin.AnswerLen)
	body[0] = unix.AF_INET6
	binary.BigEndian.PutUint16(body[offsetLocalPort:], 7)
	entry := netlink.Append(nil, origin.MsgSockets, 0, 0, body, netlink.Attr(attrV6Only, []byte{1}))
	f.Add(append(entry, entry...))
	f.Add(entry[:20])
	f.Fuzz(func(t *testing.T, b []byte) {
		w := walk{local: netip.MustParseAddrPort("127.0.0.1:7")}
		if _, err := w.read(b); err == nil && w.fits && !w.found {
			t.Errorf("fits, but nobody was found")
		}
	})
}

// With 1,000 UDP sockets open. A walk costs as much as the table is long, sockets or
// not: its size is in the kernel's log, "UDP hash table entries".
func benchmarkOwner(b *testing.B, network, to string, six, known bool) {
	p := newPlace(b)
	for range 1000 {
		p.bind(p.socket(alice, unix.SOCK_DGRAM, false), netip.AddrPortFrom(any4, 0))
	}
	remote, typ := netip.MustParseAddrPort(to), unix.SOCK_DGRAM
	if network == "tcp" {
		typ = unix.SOCK_STREAM
	}
	fd := p.socket(bob, typ, six)
	p.connect(fd, remote)
	local := p.own(fd)
	if !known {
		remote = unknown
	}
	for b.Loop() {
		if uid, err := Of(p.diag, network, local, remote); uid != bob || err != nil {
			b.Fatal(uid, err)
		}
	}
}

func BenchmarkOwnerUDP4(b *testing.B)       { benchmarkOwner(b, "udp", "8.8.8.8:53", false, false) }
func BenchmarkOwnerUDP6(b *testing.B)       { benchmarkOwner(b, "udp", "[::1]:53", true, false) }
func BenchmarkOwnerTCP(b *testing.B)        { benchmarkOwner(b, "tcp", "8.8.8.8:53", false, true) }
func BenchmarkOwnerTCPUnknown(b *testing.B) { benchmarkOwner(b, "tcp", "8.8.8.8:53", false, false) }
