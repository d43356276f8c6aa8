package interop

// Section 5 of the design, as programs see it: glibc's resolver, dig, and what would
// lead lookups past the broker. Item 7's hostile names are here too.

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"sshbroker/test/netns"
)

// localDNS has the client ask a name server on its own loopback, which no capture
// reaches but through the broker.
func (w *world) localDNS(t *testing.T, zone map[string][]string, more ...string) *netns.DNS {
	t.Helper()
	s := w.Client.StartDNS(t, netip.MustParseAddr("127.0.0.1"), zone)
	w.Client.Replace(t, "/etc/resolv.conf", strings.Join(append(more, "nameserver 127.0.0.1", "options timeout:2 attempts:1"), "\n")+"\n")
	return s
}

// flows waits for n records and returns them in the order in which the flows came.
func (w *world) flows(t *testing.T, n int) []record {
	t.Helper()
	list := w.awaitRecords(t, n)
	slices.SortFunc(list, func(a, b record) int { return cmp.Compare(a.Flow, b.Flow) })
	return list
}

// python runs a script in a capture, or without one where args are empty.
func (w *world) python(t *testing.T, args []string, script string) netns.Result {
	t.Helper()
	c := netns.Cmd{User: w.Alice}
	if args != nil {
		c = w.capture(args...)
	}
	c.Args = append(c.Args, "python3", "-c", script)
	return w.Client.Run(t, c)
}

// resolve is a Python function: the addresses of a family, or the error's number.
const resolve = `
import socket
def resolve(name, family):
    try:
        return ' '.join(sorted({a[4][0] for a in socket.getaddrinfo(name, 80, family, socket.SOCK_STREAM)}))
    except socket.gaierror as e:
        return 'EAI %d' % e.errno
four, six, both = socket.AF_INET, socket.AF_INET6, socket.AF_UNSPEC
`

// pseudoRules makes names below corp.test pseudo and lets the rest out.
func (w *world) pseudoRules(attributes string) string {
	return "<profiles>" + w.profile("srv") + `</profiles>
<filter-engine ` + attributes + `>
<rule host="(.*\.)?corp\.test" pseudo-ip="YES" action="TUNNEL" profile-id="srv"/>
<rule ip-address=".*" action="DIRECT"/></filter-engine>`
}

// TestPseudoNamesInGetaddrinfo asks glibc, as nearly every program does.
func TestPseudoNamesInGetaddrinfo(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	dns := w.localDNS(t, map[string][]string{"plain.test": {"192.0.2.7", "2001:db8::7"}, "four.test": {"192.0.2.8"}})
	defer w.finish(t, w.settled(t))
	const script = resolve + `
print(resolve('www.corp.test', four) == resolve('WWW.Corp.test.', four), resolve('a.corp.test', four) != resolve('www.corp.test', four))
print(resolve('www.corp.test', four))
print(resolve('www.corp.test', six))
print(resolve('www.corp.test', both))
print(socket.gethostbyaddr(resolve('a.corp.test', four))[0])
print(resolve('plain.test', both))
print(resolve('four.test', six), resolve('four.test', both))
print(resolve('no.such.test', both))
print(resolve('localhost', four), resolve('localhost', six), resolve('x.localhost', four))
`
	// -5 is EAI_NODATA, the name has no such address; -2 EAI_NONAME, there is no such name.
	const common = `
a.corp.test
192.0.2.7 2001:db8::7
EAI -5 192.0.2.8
EAI -2
127.0.0.1 ::1 127.0.0.1
`
	w.configure(t, w.pseudoRules(""))
	want := "True True\n198.18.0.1\nEAI -5\n198.18.0.1" + common
	if r := w.python(t, []string{}, script); r.Stdout != want {
		t.Errorf("without a pool of IPv6 addresses:\n%s\nwant\n%s", r, want)
	}
	w.configure(t, w.pseudoRules(`ip-generate-start="198.19.7.0" ip6-generate-start="fd12:3456:789a::"`))
	expect(t, w.ctl(t, "reload"), 0)
	r := w.python(t, []string{}, script)
	lines := strings.Split(r.Stdout, "\n")
	if len(lines) < 4 || lines[0] != "True True" || !strings.HasPrefix(lines[1], "198.19.7.") ||
		!strings.HasPrefix(lines[2], "fd12:3456:789a::") || lines[3] != lines[1]+" "+lines[2] || !strings.HasSuffix(r.Stdout, common) {
		t.Errorf("with both pools: %v", r)
	}
	for _, q := range dns.Asked() {
		if strings.Contains(q, "corp.test") {
			t.Errorf("the name server was asked for %s", q)
		}
	}
	// An address of the pool that stands for nothing leads nowhere, also where the rule
	// that it falls to is DIRECT.
	wire := w.Client.Capture(t, "to-server")
	r = w.Client.Run(t, w.capture(w.Testprog, "connect", "198.19.7.200:80", "[fd12:3456:789a::c8]:80"))
	if strings.Count(r.Stdout, " EHOSTUNREACH ") != 2 {
		t.Errorf("pool addresses without a name: %v", r)
	}
	if left := wire.Packets(t, netns.NewConnections); len(left) > 0 {
		t.Errorf("a connection to %v left the client", left[0].Dst)
	}
}

// hostileNames are label bytes that no host name has. Each would do harm in a file
// name, in a command line, on a terminal or in a log.
var hostileNames = []string{
	"-oProxyCommand=x", "-leading", "a b", "a;b", "$(id)", "`id`", "a/b", "..", "a\\b", "%h", "a'b", `a"b`, "a\x00b", "a\nb",
	"\x1b]0;x\a", "a*b", "a@b", "a:b", "[::1]", "\xc3\xa4", "\xff\xfe", "a,b", "<x>", "a=b", "a#b", "~a", "!a", "a|b",
}

// TestHostileNamesAreRefused sends them as they are, which glibc would not, both where
// names are pseudo by a rule and where every name is.
func TestHostileNamesAreRefused(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	dns := w.localDNS(t, map[string][]string{"good.test": {"192.0.2.7"}})
	defer w.finish(t, w.settled(t))
	w.configure(t, w.pseudoRules(""))
	var script strings.Builder
	script.WriteString(`
import socket, struct
def ask(labels, tcp):
    m = b'\x12\x34\x01\0\0\1\0\0\0\0\0\0' + b''.join(bytes([len(l)]) + l for l in labels) + b'\0\0\1\0\1'
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    s.settimeout(5)
    s.connect(('192.0.2.53', 53))
    s.sendall(struct.pack('>H', len(m)) + m if tcp else m)
    a = s.recv(4096)[2 if tcp else 0:]
    return 'rcode %d answers %d' % (a[3] & 15, struct.unpack('>H', a[6:8])[0])
`)
	for _, tail := range []string{"b'corp', b'test'", "b'test'"} {
		for _, name := range hostileNames {
			fmt.Fprintf(&script, "for tcp in False, True: print(ask([bytes(%s), %s], tcp))\n", byteList(name), tail)
		}
	}
	// Too long in all: four labels of 63 bytes.
	script.WriteString("for tcp in False, True: print(ask([b'x' * 63] * 4, tcp))\n")
	script.WriteString("print('good', ask([b'_x', b'corp', b'test'], False), ask([b'9-a', b'corp', b'test'], True))\n")
	n := 2 * (2*len(hostileNames) + 1)
	for _, args := range [][]string{{}, {"--via", w.via(w.Alice)}} {
		r := expect(t, w.python(t, args, script.String()), 0)
		refused := strings.Count(r.Stdout, "rcode 5 answers 0\n") + strings.Count(r.Stdout, "rcode 1 answers 0\n")
		if refused != n || !strings.Contains(r.Stdout, "good rcode 0 answers 1 rcode 0 answers 1\n") {
			t.Errorf("%v: %d of %d hostile names were refused: %v", args, refused, n, r)
		}
	}
	if asked := dns.Asked(); len(asked) > 0 {
		t.Errorf("the name server was asked %q", asked)
	}
	// Through glibc, which lets some of them pass.
	r := w.Client.Run(t, w.capture("sh", "-c", `for n in -x.corp.test 'a b.corp.test' '$(id).corp.test' a/b.corp.test; do getent ahosts -- "$n"; echo $?; done`))
	if r.Stdout != "2\n2\n2\n2\n" {
		t.Errorf("getent: %v", r)
	}
}

func byteList(s string) string {
	var list []string
	for _, b := range []byte(s) {
		list = append(list, fmt.Sprint(b))
	}
	return "[" + strings.Join(list, ",") + "]"
}

// TestHostsFileCountsForRules: inside there is nothing of it to read, yet its names
// resolve, rules know them, and a change of the file counts at once.
func TestHostsFileCountsForRules(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	w.localDNS(t, map[string][]string{"blocked.test": {"10.99.1.1"}})
	hosts(t, w.Client, "10.99.1.2 Server-1 alias.test", "fd99:1::2 server-1", "10.99.1.2 blocked.test")
	defer w.finish(t, w.settled(t))
	w.configure(t, `<filter-engine><rule host="blocked\.test" action="BLOCK"/><rule ip-address=".*" action="DIRECT"/></filter-engine>`)
	r := w.Client.Run(t, w.capture("grep", "-c", "server-1", "/etc/hosts"))
	if r.Stdout != "0\n" {
		t.Errorf("the hosts file inside: %v", r)
	}
	r = w.python(t, []string{}, resolve+`
print(resolve('server-1', both), resolve('ALIAS.test', both), resolve('blocked.test', both), socket.gethostbyaddr('10.99.1.2')[0])`)
	if r.Stdout != "10.99.1.2 fd99:1::2 10.99.1.2 10.99.1.2 server-1\n" {
		t.Errorf("names of the hosts file: %v", r)
	}
	connect := func(address, want string) {
		t.Helper()
		if r := w.Client.Run(t, w.capture(w.Testprog, "connect", address)); !strings.Contains(r.Stdout, " "+want+" ") {
			t.Errorf("connect to %s, want %s: %v", address, want, r)
		}
	}
	connect("10.99.1.2:22", "ECONNREFUSED") // nobody has asked for a name
	connect("alias.test:22", "ECONNREFUSED")
	connect("[fd99:1::2]:22", "ok")
	for i, r := range w.flows(t, 3)[:2] {
		if r.Reason != "blocked" || r.Name != "blocked.test" || !slices.Contains(r.Names, "alias.test") {
			t.Errorf("recorded %d %+v", i, r)
		}
	}
	hosts(t, w.Client, "10.99.1.2 server-1")
	connect("10.99.1.2:22", "ok")
}

// TestSearchList: a capture by rules sees the host's world, with its search list; under
// --via names are the far side's, and neither the host's list nor the domain in its
// own name is put behind them.
func TestSearchList(t *testing.T) {
	w := newBastionWorld(t, netns.SSHDOptions{})
	dns := w.localDNS(t, map[string][]string{"short.search.test": {"10.99.1.2"}, "short.dom.test": {"192.0.2.1"}}, "search\tsearch.test")
	hosts(t, w.Server, "10.99.1.2 server", "10.99.2.2 short")
	inner := w.Inner.Listen(t, "tcp", ":7000")
	go func() {
		for {
			c, err := inner.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	root(t, w.Client, "hostname client.dom.test")
	defer w.finish(t, w.settled(t))
	w.configure(t, `<filter-engine><rule host="short\.search\.test" action="DIRECT"/><rule ip-address=".*" action="BLOCK"/></filter-engine>`)

	if r := w.Client.Run(t, w.capture(w.Testprog, "connect", "short:22")); !strings.Contains(r.Stdout, " ok ") {
		t.Errorf("by rules: %v", r)
	}
	if r := w.Client.Run(t, w.capture("getent", "hosts", "short")); !strings.Contains(r.Stdout, "10.99.1.2 ") {
		t.Errorf("by rules: %v", r)
	}
	if r := w.awaitRecords(t, 1)[0]; r.Name != "short.search.test" || r.Rule != 1 {
		t.Errorf("recorded %+v", r)
	}

	before := len(dns.Asked())
	w.configure(t, `<filter-engine><rule host="no" action="BLOCK"/></filter-engine>`)
	expect(t, w.ctl(t, "reload"), 0)
	for i, script := range []string{
		"import socket; socket.create_connection(('short', 7000), 10)",
		"import socket; socket.create_connection(('short.', 7000), 10)",
	} {
		expect(t, w.python(t, []string{"--via", w.via(w.Alice)}, script), 0)
		if r := w.awaitRecords(t, i+2)[i+1]; r.Reason != "carried" || r.Target != "short:7000" {
			t.Errorf("recorded %+v", r)
		}
	}
	if asked := dns.Asked()[before:]; len(asked) > 0 {
		t.Errorf("under --via the name server was asked %q", asked)
	}
}

// TestTwoNamesOnOneAddress: rules are tried in order against each name that a capture
// has asked for; what another capture has asked for does not count.
func TestTwoNamesOnOneAddress(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	w.localDNS(t, map[string][]string{"first.test": {"10.99.1.2"}, "second.test": {"10.99.1.2"}, "third.test": {"10.99.1.2"}})
	hosts(t, w.Client)
	defer w.finish(t, w.settled(t))
	w.configure(t, `<filter-engine>
<rule host="second\.test" action="BLOCK"/>
<rule host="first\.test" action="DIRECT"/>
<rule host="10\.99\.1\.2" action="DIRECT"/>
<rule ip-address=".*" action="BLOCK"/></filter-engine>`)
	const connect = `
import errno
def connect(what):
    try:
        socket.create_connection(('10.99.1.2', 22), 5).close()
        print(what, 'ok')
    except OSError as e:
        print(what, errno.errorcode[e.errno])
`
	r := w.python(t, []string{}, resolve+connect+`
connect('no name')
resolve('third.test', four); connect('third')
resolve('first.test', four); connect('first and third')
resolve('second.test', four); connect('all')
resolve('first.test', four); connect('all again')`)
	if want := "no name ok\nthird ECONNREFUSED\nfirst and third ok\nall ECONNREFUSED\nall again ECONNREFUSED\n"; r.Stdout != want {
		t.Errorf("got %v\nwant %s", r, want)
	}
	if r := w.python(t, []string{}, resolve+connect+"resolve('first.test', four); connect('first')"); r.Stdout != "first ok\n" {
		t.Errorf("another capture: %v", r)
	}
	var got []string
	for _, r := range w.flows(t, 6) {
		got = append(got, fmt.Sprintf("%d:%s", r.Rule, r.Name))
	}
	if want := "3: 4:third.test 2:first.test 1:second.test 1:second.test 2:first.test"; strings.Join(got, " ") != want {
		t.Errorf("decided %v, want %s", got, want)
	}
}

// TestQueriesToAnyServerReachTheBroker: dig names its server, and asks over TCP when
// told to, or when an answer does not fit.
func TestQueriesToAnyServerReachTheBroker(t *testing.T) {
	netns.RequireProgram(t, "dig", "dnsutils")
	w := newWorld(t, netns.SSHDOptions{})
	var many []string
	for i := range 60 {
		many = append(many, fmt.Sprintf("192.0.2.%d", i+1))
	}
	w.localDNS(t, map[string][]string{"plain.test": {"192.0.2.7"}, "many.test": many})
	defer w.finish(t, w.settled(t))
	w.configure(t, w.pseudoRules(""))
	wire := w.Client.Capture(t, "to-server")
	dig := func(args ...string) string {
		t.Helper()
		return w.Client.Run(t, w.capture(append([]string{"dig", "+short", "+tries=1", "+time=3"}, args...)...)).Stdout
	}
	for _, server := range []string{"@192.0.2.53", "@10.99.1.2", "@2001:db8::53", "@127.0.0.1", "@::1"} {
		for _, transport := range []string{"+notcp", "+tcp"} {
			if got := dig(server, transport, "www.corp.test"); got != "198.18.0.1\n" {
				t.Errorf("pseudo name, %s %s: %q", server, transport, got)
			}
			if got := dig(server, transport, "plain.test"); got != "192.0.2.7\n" {
				t.Errorf("forwarded name, %s %s: %q", server, transport, got)
			}
		}
	}
	if got := strings.Count(dig("@192.0.2.53", "+noedns", "many.test"), "\n"); got != len(many) {
		t.Errorf("an answer that has to come over TCP has %d addresses, want %d", got, len(many))
	}
	if got := strings.Count(dig("@192.0.2.53", "+tcp", "many.test"), "\n"); got != len(many) {
		t.Errorf("an answer over TCP has %d addresses, want %d", got, len(many))
	}
	if got := dig("@192.0.2.53", "-x", "198.18.0.1", "+notcp"); got != "" {
		t.Errorf("a pseudo address of other captures has the name %q", got)
	}
	if asked := wire.Packets(t, func(p netns.Packet) bool { return p.Dst.Port() == 53 }); len(asked) > 0 {
		t.Errorf("%d packets went to port 53 of the servers named", len(asked))
	}
}

// TestLookupDaemonsAreOutOfReach: glibc would ask nscd before any name server. The
// control shows that outside it does.
func TestLookupDaemonsAreOutOfReach(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	w.localDNS(t, map[string][]string{"plain.test": {"192.0.2.7"}})
	paths := []string{"/run/nscd/socket", "/run/systemd/resolve/io.systemd.Resolve", "/run/systemd/resolve/io.systemd.Resolve.Monitor",
		"/run/systemd/machines/io.systemd.Machine", "/run/avahi-daemon/socket"}
	root(t, w.Client, "mount -t tmpfs -o mode=755 tmpfs /run; mkdir -p /run/nscd /run/systemd/resolve /run/systemd/machines /run/avahi-daemon; "+
		"echo nameserver 192.0.2.1 >/run/systemd/resolve/stub-resolv.conf")
	const listen = `
import os, selectors, socket, sys
wait = selectors.DefaultSelector()
for path in sys.argv[1:]:
    s = socket.socket(socket.AF_UNIX)
    s.bind(path); s.listen(); os.chmod(path, 0o666)
    wait.register(s, selectors.EVENT_READ, path)
print('listening', flush=True)
while True:
    for key, _ in wait.select():
        key.fileobj.accept()[0].close()
        print('asked', key.data, flush=True)
`
	daemons := w.Client.Start(t, netns.Cmd{Args: append([]string{"python3", "-c", listen}, paths...), Limit: -1})
	daemons.WaitFor(t, "listening")
	defer w.finish(t, w.settled(t))
	connect := `
import os, socket
for path in ` + "['" + strings.Join(paths, "', '") + "']" + `:
    for path in path, '/var' + path:
        try:
            socket.socket(socket.AF_UNIX).connect(path)
            print('connected')
        except OSError as e:
            print(type(e).__name__)
print(sorted(os.listdir('/run/nscd') + os.listdir('/run/systemd/resolve') + os.listdir('/run/avahi-daemon')))
print(open('/run/systemd/resolve/stub-resolv.conf').read())
`
	w.configure(t, w.pseudoRules(""))
	for _, args := range [][]string{{}, {"--via", w.via(w.Alice)}} {
		r := w.python(t, args, connect)
		if strings.Count(r.Stdout, "FileNotFoundError") != 2*len(paths) || strings.Contains(r.Stdout, "192.0.2.1") || !strings.Contains(r.Stdout, "['stub-resolv.conf']") {
			t.Errorf("%v: inside a capture: %v", args, r)
		}
		expect(t, w.Client.Run(t, w.capture(append(args, "getent", "ahosts", "plain.test")...)), 0)
	}
	if strings.Contains(daemons.Stdout(), "asked") {
		t.Errorf("daemons of the host were asked from inside:\n%s", daemons.Stdout())
	}
	r := w.python(t, nil, connect)
	if strings.Count(r.Stdout, "connected") != 2*len(paths) {
		t.Errorf("the control could not connect: %v", r)
	}
	before := strings.Count(daemons.Stdout(), "asked /run/nscd/socket")
	w.Client.Run(t, netns.Cmd{Args: []string{"getent", "ahosts", "plain.test"}, User: w.Alice})
	if strings.Count(daemons.Stdout(), "asked /run/nscd/socket") == before {
		t.Error("outside glibc did not ask nscd: the control proves nothing")
	}
}
