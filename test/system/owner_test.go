package system

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"sshbroker/capture/service"
	"sshbroker/test/host"
	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

// askingScript is a program that asks for PREFIX0.test, PREFIX1.test and so on, from
// BEGIN to END: each of its sockets asks three servers, as musl's resolver does, for a
// name each, so that the redirect has to rewrite source ports. One more name is asked
// for over TCP. Then it connects to all that it was told, and says what it got.
const askingScript = `
import errno, socket, struct, sys

def query(i, name):
    return struct.pack('>6H', i, 0x100, 1, 0, 0, 0) + b''.join(bytes([len(l)]) + l.encode() for l in name.split('.')) + b'\0\0\1\0\1'

def answer(m):
    i, flags, _, n, _, _ = struct.unpack('>6H', m[:12])
    return i, flags & 15, [socket.inet_ntoa(m[-4:])] if n else []

def connect(address):
    s = socket.socket()
    s.settimeout(60)
    e = s.connect_ex((address, 7001))
    s.close()
    return errno.errorcode.get(e, 'ok')

servers = {socket.AF_INET: ['10.99.1.2', '10.99.1.77', '127.0.0.53'], socket.AF_INET6: ['fd99:1::2', 'fd99:1::77', '::1']}

def ask(prefix, begin, end):
    for first in range(begin, end - 1, 3):
        family = [socket.AF_INET, socket.AF_INET6][first // 3 % 2]
        s = socket.socket(family, socket.SOCK_DGRAM)
        s.settimeout(60)
        for i, server in zip(range(first, end - 1), servers[family]):
            s.sendto(query(i, '%s%d.test' % (prefix, i)), (server, 53))
        for i in range(first, min(first + 3, end - 1)):
            m, source = s.recvfrom(1500)
            i, code, addresses = answer(m)
            if source[0] != servers[family][i - first]:
                print('from', source)
            print(prefix, i, code, *[connect(a) for a in addresses])
        s.close()
    i = end - 1
    s = socket.create_connection(('10.99.1.2', 53), 60)
    q = query(i, '%s%d.test' % (prefix, i))
    s.sendall(struct.pack('>H', len(q)) + q)
    f = s.makefile('rb')
    i, code, addresses = answer(f.read(*struct.unpack('>H', f.read(2))))
    print(prefix, i, code, *[connect(a) for a in addresses])
    f.close()
    s.close()

if sys.argv[1] == 'ask':
    ask(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
elif sys.argv[1] == 'wait':   # for an answer to what another asked
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(60)
    s.bind(('127.0.0.1', 40030))
    print('bound', flush=True)
    _, code, addresses = answer(s.recv(1500))
    print(code, *[connect(a) for a in addresses])
elif sys.argv[1] == 'forge':  # asks from another's address and port
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(('127.0.0.2', 40030))
    pktinfo = struct.pack('@i4s4s', 0, socket.inet_aton('127.0.0.1'), bytes(4))
    s.sendmsg([query(1, 'forged.test')], [(socket.IPPROTO_IP, 8, pktinfo)], 0, ('127.0.0.53', 53))
elif sys.argv[1] == 'connect':
    print(connect(sys.argv[2]))
`

// TestWhoseQueries has two users ask for names of the same addresses, from sockets whose
// ports the redirect rewrites. Each user's flows go by the names that this user asked for,
// also beside rules that take marks away, and after ssh-captured was killed.
func TestWhoseQueries(t *testing.T) {
	netns.RequireRoot(t)
	netns.RequireProgram(t, "python3", "python3")
	h := host.Bare(t, sut.Build(t))
	const names, more = 61, 20 // the last of each over TCP
	zone := map[string][]string{"forged.test": {"192.0.2.200"}}
	for i := range names + more {
		for _, prefix := range []string{"alice", "bob"} {
			zone[fmt.Sprintf("%s%d.test", prefix, i)] = []string{address(i)}
		}
	}
	h.Client.StartDNS(t, resolver, zone)
	h.Client.Replace(t, "/etc/resolv.conf", fmt.Sprintf("nameserver %v\noptions timeout:5 attempts:1\n", resolver))
	if r := h.Server.Run(t, netns.Cmd{Args: strings.Fields("ip route add local 192.0.2.0/24 dev lo")}); r.Code != 0 {
		t.Fatal(r)
	}
	l := h.Server.Listen(t, "tcp", ":7001")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	h.StartCaptured(t)
	h.StartSystemBroker(t, host.Config(`<filter-engine><rule host="alice.*\.test" action="BLOCK"/><rule host="forged\.test" action="BLOCK"/></filter-engine>`))
	h.Enable(t)

	users := map[string]*netns.User{"alice": h.Alice, "bob": h.Bob}
	outcome := map[string]string{"alice": "ECONNREFUSED", "bob": "ok"}
	ask := func(when string, begin, end int) {
		t.Helper()
		asking := map[string]*netns.Process{}
		for prefix, u := range users {
			asking[prefix] = h.Client.Start(t, netns.Cmd{User: u, Args: []string{"python3", "-c", askingScript, "ask", prefix, fmt.Sprint(begin), fmt.Sprint(end)}})
		}
		for prefix, p := range asking {
			r := p.Wait(t)
			got := map[string]bool{}
			for line := range strings.Lines(r.Stdout) {
				got[strings.TrimSpace(line)] = true
			}
			for i := begin; i < end; i++ {
				if want := fmt.Sprintf("%s %d 0 %s", prefix, i, outcome[prefix]); !got[want] {
					t.Errorf("%s: %q is not what %s got: %v", when, want, prefix, r)
					break
				}
			}
			if r.Code != 0 || len(got) != end-begin {
				t.Errorf("%s: %s got %d answers for %d: %v", when, prefix, len(got), end-begin, r)
			}
		}
	}
	ask("at first", 0, names)
	if n := rewritten(t, h.Client); n < names/2 {
		t.Errorf("the redirect rewrote the ports of %d queries: this shows nothing", n)
	}

	// wg-quick(8) loads such a table.
	wireguard := `table inet wg-quick { chain pre { type filter hook prerouting priority -150; meta l4proto udp meta mark set ct mark
		}
	}`
	if r := h.Client.Run(t, netns.Cmd{Args: []string{"nft", "-f", "-"}, Stdin: strings.NewReader(wireguard)}); r.Code != 0 {
		t.Fatal(r)
	}
	pid := h.Status(t).PID
	h.KillCaptured(t, false)
	h.Await(t, "another ssh-captured, served", func(st service.Status) bool { return st.PID != pid && st.Serving })
	ask("beside WireGuard, after a restart", names, names+more)

	// Bob's query from Alice's port teaches nothing about her flows.
	script := func(args ...string) []string { return append([]string{"python3", "-c", askingScript}, args...) }
	waiting := h.Client.Start(t, netns.Cmd{User: h.Alice, Args: script("wait")})
	waiting.WaitFor(t, "bound")
	if r := h.Client.Run(t, netns.Cmd{User: h.Bob, Args: script("forge")}); r.Code != 0 {
		t.Fatal(r)
	}
	if r := waiting.Wait(t); r.Stdout != "bound\n0 ok\n" {
		t.Errorf("Alice, with the answer to Bob's query: %v", r)
	}
	if r := h.Client.Run(t, netns.Cmd{User: h.Bob, Args: script("connect", "192.0.2.200")}); r.Stdout != "ECONNREFUSED\n" {
		t.Errorf("Bob: %v", r)
	}

	for _, r := range host.AwaitRecords(t, h.AuditFile(), 2*(names+more)+2) {
		prefix, want := "alice", ""
		if r.UID == h.Bob.UID {
			prefix = "bob"
		}
		for i := range names + more {
			if strings.HasPrefix(r.Dst, address(i)+":") {
				want = fmt.Sprintf("%s%d.test", prefix, i)
			}
		}
		if want == "" && prefix == "bob" {
			want = "forged.test"
		}
		if got := strings.Join(r.Names, " "); got != want {
			t.Errorf("%s's flow to %s was known by %q, want %q", prefix, r.Dst, got, want)
		}
	}
}

// address is what the names of that number stand for.
func address(i int) string { return fmt.Sprintf("192.0.2.%d", i+1) }

// rewritten counts the name queries that came to the resolver from another port than
// their socket's.
func rewritten(t *testing.T, m *netns.Machine) (n int) {
	t.Helper()
	err := m.Do(func() error {
		for _, family := range []netlink.InetFamily{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
			if err != nil {
				return err
			}
			for _, f := range flows {
				if f.Forward.Protocol == 17 && f.Forward.DstPort == 53 && f.Reverse.SrcIP.IsLoopback() &&
					f.Reverse.SrcPort != 53 && f.Reverse.DstPort != f.Forward.SrcPort {
					n++
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
