package system

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/message"
	"sshbroker/capture/service"
	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// stranger speaks ssh-captured's protocol as it likes.
type stranger struct {
	*testing.T
	conn     *message.Conn
	seq      uint64
	answers  chan said
	attempts chan service.Message
}

type said struct {
	service.Message
	files []*os.File
}

// stranger connects to ssh-captured as u. The test's end closes the connection.
func (w *world) stranger(t *testing.T, u *netns.User) *stranger {
	t.Helper()
	s := &stranger{T: t, answers: make(chan said, 64), attempts: make(chan service.Message, 64)}
	err := w.Client.As(u, func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "stranger")
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: w.Socket}); err != nil {
			f.Close()
			return err
		}
		s.conn, err = message.New(f)
		return err
	})
	if err != nil {
		t.Fatalf("%s connects to ssh-captured: %v", u.Name, err)
	}
	t.Cleanup(func() { s.conn.Close() })
	if err := s.conn.Send(service.Message{Op: service.OpHello, Hello: &service.Hello{Version: service.Version, Program: "stranger"}}); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.answers)
		for {
			var m service.Message
			files, err := s.conn.Receive(&m)
			if err != nil {
				message.CloseAll(files)
				return
			}
			if m.Op == service.OpAttempt {
				s.attempts <- m
			} else {
				s.answers <- said{m, files}
			}
		}
	}()
	if hello := <-s.answers; hello.Op != service.OpHello || hello.Error != nil {
		t.Fatalf("hello: %+v", hello.Message)
	}
	return s
}

// ask asks and returns the answer. It fails the test if descriptors come with a refusal.
func (s *stranger) ask(m service.Message, files ...*os.File) service.Message {
	s.Helper()
	s.seq++
	m.Seq = s.seq
	if err := s.conn.Send(m, files...); err != nil {
		s.Fatalf("%s: %v", m.Op, err)
	}
	for {
		select {
		case a, ok := <-s.answers:
			if !ok {
				s.Fatalf("%s: cut off", m.Op)
			}
			message.CloseAll(a.files)
			if a.Error != nil && len(a.files) > 0 {
				s.Errorf("%s: refused, and %d descriptors", m.Op, len(a.files))
			}
			if a.Seq == m.Seq {
				return a.Message
			}
		case <-time.After(settle):
			s.Fatalf("%s: no answer", m.Op)
		}
	}
}

// refused fails the test unless the request is refused with one of the codes.
func (s *stranger) refused(what string, m service.Message, file *os.File, codes ...service.Code) {
	s.Helper()
	var files []*os.File
	if file != nil {
		files = append(files, file)
	}
	if a := s.ask(m, files...); a.Error == nil || !slices.Contains(codes, a.Error.Code) {
		s.Errorf("%s: answered %+v (error %+v), want one of %v", what, a, a.Error, codes)
	}
}

// pidfd is a descriptor of a process.
func pidfd(t *testing.T, pid int) *os.File {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { f.Close() })
	return f
}

// alicesCapture is a cgroup capture of Alice's, by rules of her own, with a shell in it
// that does what it is told.
type alicesCapture struct {
	*netns.Process
	typing *os.File
	id     string
	pid    int
}

func (w *world) startAlicesCapture(t *testing.T) *alicesCapture {
	t.Helper()
	stdin, typing, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); typing.Close() })
	c := w.Cmd(w.Alice, w.Capture, "--backend=cgroup", "sh", "-c", `echo "$SSH_CAPTURE $$"; while read -r line; do eval "$line"; echo done; done`)
	c.Stdin, c.Limit = stdin, -1
	a := &alicesCapture{Process: w.Client.Start(t, c), typing: typing}
	fmt.Sscan(a.WaitFor(t, "\n"), &a.id, &a.pid)
	if i := strings.IndexByte(a.id, ':'); i >= 0 {
		a.id = a.id[:i]
	}
	return a
}

// do has the shell run a line, and returns what it said.
func (a *alicesCapture) do(t *testing.T, line string) string {
	t.Helper()
	before := len(a.Output())
	if _, err := a.typing.WriteString(line + "\n"); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(settle); ; {
		if text, ok := strings.CutSuffix(a.Output()[before:], "done\n"); ok {
			return text
		}
		if time.Now().After(end) {
			t.Fatalf("the capture does not do %q: %s", line, a.Output())
		}
		<-time.After(5 * time.Millisecond) // the shell says when
	}
}

// privacyConfig is the system's: names of the company and one port go through the tunnel.
func (w *world) privacyConfig() string {
	return host.Config("<profiles>" + w.profile("good", w.SSHD.Addr4.Port()) + `</profiles>
<filter-engine>
  <rule host=".*\.corp\.test" pseudo-ip="YES" action="TUNNEL" profile-id="good"/>
  <rule ports="7001" action="TUNNEL" profile-id="good"/>
  <rule host="special\.test" ports="7002" action="BLOCK"/>
</filter-engine>`)
}

// alicesConfig is Alice's own: whom she has names for is nobody's business.
func (w *world) alicesConfig() string {
	return host.Config("<profiles>" + w.profile("good", w.SSHD.Addr4.Port()) + `</profiles>
<filter-engine ip-generate-start="198.51.100.0">
  <rule host="(secret|mail)\.corp\.test" pseudo-ip="YES" action="TUNNEL" profile-id="good"/>
  <rule host="special\.test" ports="7003" action="DIRECT"/>
  <rule ports="7003" action="BLOCK"/>
</filter-engine>`)
}

// TestStrangerAtSSHCaptured: Bob asks ssh-captured for everything that is Alice's or the
// host's, and gets nothing; what is his own he gets.
func TestStrangerAtSSHCaptured(t *testing.T) {
	w := newWorld(t)
	w.came.listen(t, 7001)
	w.StartCaptured(t)
	w.StartSystemBroker(t, w.privacyConfig())
	w.Enable(t)
	w.startOwnBroker(t, w.Alice, w.alicesConfig())
	a := w.startAlicesCapture(t)
	bob, alice := w.stranger(t, w.Bob), w.stranger(t, w.Alice)
	const (
		forbidden, busy, notFound = service.CodeForbidden, service.CodeBusy, service.CodeNotFound
		ended, bad                = service.CodeEnded, service.CodeBadRequest
	)
	sleeper := w.Client.Start(t, netns.Cmd{Args: []string{"sleep", "1000"}, User: w.Bob, Limit: -1})
	own, theirs := pidfd(t, sleeper.Pid()), pidfd(t, a.pid)
	yes, no := true, false
	open := &capture.Spec{Rest: capture.Pass, Open: true}

	for _, id := range []string{a.id, service.System} {
		bob.refused("serve "+id, service.Message{Op: service.OpServe, Capture: id, Spec: open}, nil, forbidden)
		bob.refused("serve again "+id, service.Message{Op: service.OpServe, Capture: id, Spec: open, Resume: true}, nil, forbidden)
		bob.refused("other rules for "+id, service.Message{Op: service.OpSpec, Capture: id, Spec: open}, nil, forbidden)
		bob.refused("a process of his into "+id, service.Message{Op: service.OpEnter, Capture: id}, own, forbidden, bad)
		bob.refused("Alice's process into "+id, service.Message{Op: service.OpEnter, Capture: id}, theirs, forbidden, bad)
		bob.refused("make "+id, service.Message{Op: service.OpMake, Capture: id}, nil, busy, bad)
	}
	bob.refused("connector off", service.Message{Op: service.OpConnector, Enable: &no}, nil, forbidden)
	bob.refused("connector on", service.Message{Op: service.OpConnector, Enable: &yes}, nil, forbidden)
	bob.refused("release", service.Message{Op: service.OpRelease}, nil, forbidden)
	bob.refused("a capture that is not there", service.Message{Op: service.OpServe, Capture: "nosuchcapture", Spec: open}, nil, ended, notFound)
	alice.refused("serve the host", service.Message{Op: service.OpServe, Capture: service.System, Spec: open}, nil, forbidden)

	// His own capture is his, for his own processes; Carol's process, root's and what is no process are not.
	if m := bob.ask(service.Message{Op: service.OpMake, Capture: "bobsown0"}); m.Error != nil || m.Made == nil {
		t.Fatalf("a capture of Bob's own: %+v", m.Error)
	}
	carols := w.Client.Start(t, netns.Cmd{Args: []string{"sleep", "1000"}, User: w.Carol, Limit: -1})
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for what, f := range map[string]*os.File{"Alice's process": theirs, "Carol's process": pidfd(t, carols.Pid()), "root's process": pidfd(t, os.Getpid()),
		"process 1": pidfd(t, 1), "ssh-captured": pidfd(t, w.Status(t).PID), "a file": file} {
		bob.refused(what+" into Bob's capture", service.Message{Op: service.OpEnter, Capture: "bobsown0"}, f, forbidden, notFound, bad, service.CodeKernel)
	}
	alice.refused("Alice into Bob's capture", service.Message{Op: service.OpEnter, Capture: "bobsown0"}, theirs, forbidden)
	if m := bob.ask(service.Message{Op: service.OpEnter, Capture: "bobsown0"}, own); m.Error != nil {
		t.Errorf("Bob's process into Bob's capture: %+v", m.Error)
	}
	cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", a.pid))
	if err != nil || strings.Contains(string(cgroup), "bobsown0") {
		t.Errorf("Alice's process is in %s (%v)", cgroup, err)
	}

	// Who sees what.
	seen := func(s *stranger) (ids []string, carriers []uint32) {
		st := s.ask(service.Message{Op: service.OpStatus}).Status
		for _, c := range st.Captures {
			ids = append(ids, c.ID)
		}
		return ids, st.Carriers
	}
	if ids, carriers := seen(bob); !slices.Equal(ids, []string{"bobsown0"}) || len(carriers) != 0 {
		t.Errorf("Bob sees the captures %v and the carriers %v", ids, carriers)
	}
	if ids, carriers := seen(alice); !slices.Equal(ids, []string{a.id}) || !slices.Equal(carriers, []uint32{w.Alice.UID}) {
		t.Errorf("Alice sees the captures %v and the carriers %v", ids, carriers)
	}

	// Bob offers to carry. What is Alice's never comes to him, what is his does.
	if m := bob.ask(service.Message{Op: service.OpCarry}); m.Error != nil {
		t.Fatalf("Bob offers to carry: %+v", m.Error)
	}
	alice.refused("a second one that carries for Alice", service.Message{Op: service.OpCarry}, nil, busy)
	for _, u := range []*netns.User{w.Alice, w.Carol} {
		o := w.try(t, u, "", "10.99.1.2:7001")
		as := w.Service
		if w.hasBroker(u) {
			as = u
		}
		w.throughTunnel(t, o, as)
	}
	if len(bob.attempts) > 0 {
		t.Errorf("Bob is to carry %+v", (<-bob.attempts).Attempt)
	}

	// A flow of Alice's is held, as nobody decides. Bob has its number, as it were, and its key.
	w.KillSystemBroker(t)
	waiting := w.Client.Start(t, w.Cmd(w.Alice, w.Testprog, "connect", "10.99.1.2:7001"))
	w.awaitWaiting(t, 1)
	for _, op := range []service.Op{service.OpAdmit, service.OpHand, service.OpOrigin, service.OpWaits} {
		for id := range uint64(16) {
			if op != service.OpAdmit || id > 0 {
				bob.refused(fmt.Sprintf("%s of attempt %d", op, id), service.Message{Op: op, ID: id}, nil, notFound)
			}
		}
	}
	for _, op := range []service.Op{service.OpRefuse, service.OpPass} {
		for id := range uint64(16) {
			if err := bob.conn.Send(service.Message{Op: op, ID: id, Refusal: capture.Refused}); err != nil {
				t.Fatal(err)
			}
		}
	}
	bob.refused("serve the host while nobody does", service.Message{Op: service.OpServe, Capture: service.System, Spec: open}, nil, forbidden)
	if st := w.Status(t); st.Waiting != 1 {
		t.Errorf("%d SYNs wait", st.Waiting)
	}
	w.StartSystemBroker(t, "")
	if r := waiting.Wait(t); !strings.Contains(r.Stdout, " ok ") {
		t.Errorf("Alice's flow, after that: %v", r)
	}
	if came := w.came.take(7001); len(came) != 1 || came[0].account != int(w.Alice.UID) {
		t.Errorf("Alice's flow arrived as %+v", came)
	}

	// His own flow comes to him, and he may refuse it.
	his := w.Client.Start(t, w.Cmd(w.Bob, w.Testprog, "connect", "10.99.1.2:7001"))
	select {
	case m := <-bob.attempts:
		if m.Attempt.UID != w.Bob.UID {
			t.Errorf("Bob is to carry %+v", m.Attempt)
		}
		if err := bob.conn.Send(service.Message{Op: service.OpRefuse, ID: m.ID, Refusal: capture.Refused}); err != nil {
			t.Fatal(err)
		}
	case <-time.After(settle):
		t.Error("Bob is not asked to carry his own flow")
	}
	if r := his.Wait(t); !strings.Contains(r.Stdout, " ECONNREFUSED ") {
		t.Errorf("Bob's flow: %v", r)
	}

	sleeper.Kill(t)
	bob.conn.Close()
	alice.conn.Close()
	carols.Kill(t)
	a.typing.Close()
	a.Wait(t)
	w.finish(t)
}

// TestStrangerAtTheControlSockets: the system broker talks to administrators alone, a
// user's broker to that user.
func TestStrangerAtTheControlSockets(t *testing.T) {
	w := newWorld(t)
	w.came.listen(t, 7001)
	w.StartCaptured(t)
	w.StartSystemBroker(t, w.privacyConfig())
	w.Enable(t)
	w.startOwnBroker(t, w.Alice, w.alicesConfig())
	hold := w.Client.Start(t, func() netns.Cmd {
		c := w.Cmd(w.Alice, w.Testprog, "exchange", "await", "10.99.1.2:7001")
		c.Limit = -1
		return c
	}())
	w.Await(t, "a flow of Alice's", func(service.Status) bool { return len(host.Records(t, w.AuditFile())) == 1 })
	for _, address := range []string{w.Address(), "/tmp/ssh-" + w.Alice.Name + "/ssh-broker"} {
		for _, args := range [][]string{{"status"}, {"list-channels"}, {"list-connections"}, {"reload"}, {"stop"}, {"explain", "10.99.1.2", "7001"}} {
			for _, u := range []*netns.User{w.Bob, w.Carol} {
				r := w.Run(t, u, append([]string{w.Ctl, "-a", address}, args...)...)
				if r.Code != 1 || strings.Contains(r.Stdout+r.Stderr, "10.99.1.2") || strings.Contains(r.Stdout+r.Stderr, "corp") {
					t.Errorf("%s: %v of %s: %v", u.Name, args, address, r)
				}
			}
		}
	}
	for _, args := range [][]string{{"connector", "disable"}, {"connector", "enable"}} {
		if r := w.Run(t, w.Bob, append([]string{w.Ctl}, args...)...); r.Code != 1 {
			t.Errorf("Bob: %v: %v", args, r)
		}
	}
	r := w.Run(t, w.Bob, w.Ctl, "connector", "status")
	if r.Code != 0 || strings.Contains(r.Stdout, w.Alice.Name) || strings.Contains(r.Stdout, fmt.Sprint(w.Alice.UID)) {
		t.Errorf("connector status to Bob: %v", r)
	}
	if r := w.Run(t, w.Service, w.Ctl, "connector", "disable"); r.Code != 0 {
		t.Errorf("an administrator: %v", r)
	}
	if r := w.Run(t, nil, w.Ctl, "-a", w.Address(), "status"); r.Code != 0 {
		t.Errorf("root at the system broker: %v", r)
	}
	hold.Kill(t)
	w.finish(t)
}

// TestStrangerReadsNoFiles: of everything that is written below the directories of
// ssh-captured, of the system broker and of Alice's, Bob can read nothing.
func TestStrangerReadsNoFiles(t *testing.T) {
	w := newWorld(t)
	w.came.listen(t, 7001)
	w.StartCaptured(t)
	w.StartSystemBroker(t, w.privacyConfig())
	w.Enable(t)
	w.startOwnBroker(t, w.Alice, w.alicesConfig())
	a := w.startAlicesCapture(t)
	a.do(t, "getent hosts secret.corp.test")
	w.throughTunnel(t, w.try(t, w.Alice, "", "10.99.1.2:7001"), w.Alice)
	w.throughTunnel(t, w.try(t, w.Carol, "", "www.corp.test:7001"), w.Service)
	host.AwaitRecords(t, w.AuditFile(), 2)

	files, secrets := 0, 0
	for _, dir := range []string{w.Dir, w.Service.Home, w.Alice.Home, "/tmp/ssh-" + w.Alice.Name} {
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() || path == w.ConfigFile() {
				return err
			}
			files++
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if bytes.Contains(content, []byte("corp.test")) || bytes.Contains(content, []byte("10.99.1.2")) {
				secrets++
			}
			for _, flag := range []int{os.O_RDONLY, os.O_WRONLY} {
				var f *os.File
				err := w.Client.As(w.Bob, func() (err error) { f, err = os.OpenFile(path, flag, 0); return err })
				if err == nil {
					t.Errorf("Bob opens %s", path)
					f.Close()
				} else if !errors.Is(err, fs.ErrPermission) {
					t.Errorf("%s: %v", path, err)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// The state of ssh-captured, two records, two journals of names, a configuration, known_hosts.
	if files < 6 || secrets < 5 {
		t.Errorf("%d files, %d of them with something to hide: this proves nothing", files, secrets)
	}
	a.typing.Close()
	a.Wait(t)
	w.finish(t)
}

// sockets are those of the client's loopback on which programs of root's wait.
func (w *world) sockets(t *testing.T, network string) (list []netip.AddrPort) {
	t.Helper()
	state := map[string]string{"tcp": "0A", "udp": "07"}[network]
	err := w.Client.Do(func() error {
		for _, table := range []string{network, network + "6"} {
			content, err := os.ReadFile("/proc/thread-self/net/" + table)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(content)) {
				f := strings.Fields(line)
				if len(f) < 8 || f[3] != state || f[7] != "0" {
					continue
				}
				addr, text, _ := strings.Cut(f[1], ":")
				port, err := strconv.ParseUint(text, 16, 16)
				if err != nil {
					return err
				}
				switch addr {
				case "0100007F":
					list = append(list, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port)))
				case "00000000000000000000000001000000":
					list = append(list, netip.AddrPortFrom(netip.IPv6Loopback(), uint16(port)))
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// query asks a name server, as u, straight at its port.
func (w *world) query(u *netns.User, network string, to netip.AddrPort, name string, typ dnsmessage.Type) (m dnsmessage.Message, err error) {
	q := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name + "."), Type: typ, Class: dnsmessage.ClassINET}}}
	msg, err := q.Pack()
	if err != nil {
		return m, err
	}
	if network == "tcp" {
		msg = append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)
	}
	answer := make([]byte, 4096)
	err = w.Client.As(u, func() error {
		c, err := net.Dial(network, to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(settle))
		_, werr := c.Write(msg) // a reset may come first
		if network == "udp" && werr != nil {
			return werr
		}
		if network == "tcp" {
			if _, err := io.ReadFull(c, answer[:2]); err != nil {
				return errors.Join(werr, err)
			}
		}
		n, err := c.Read(answer)
		answer = answer[:max(n, 0)]
		return errors.Join(werr, err)
	})
	if err != nil {
		return m, err
	}
	return m, m.Unpack(answer)
}

// reverse is the name under which the name of an IPv4 address is asked for.
func reverse(a netip.Addr) string {
	b := a.As4()
	return fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa", b[3], b[2], b[1], b[0])
}

// TestStrangerAtTheLoopbackSockets: at the sockets that flows and name queries are
// diverted to, Bob gets nothing that is Alice's and leaves nothing with her, and cannot
// have their ports, whichever of our daemons is dead.
func TestStrangerAtTheLoopbackSockets(t *testing.T) {
	w := newWorld(t)
	for _, port := range []uint16{7001, 7003} {
		w.came.listen(t, port)
	}
	w.StartCaptured(t)
	w.StartSystemBroker(t, w.privacyConfig())
	w.Enable(t)
	w.startOwnBroker(t, w.Alice, w.alicesConfig())
	a := w.startAlicesCapture(t)
	if got := a.do(t, "getent ahostsv4 secret.corp.test"); !strings.HasPrefix(got, "198.51.100.1 ") {
		t.Fatalf("in Alice's capture secret.corp.test is %q", got)
	}
	w.throughTunnel(t, w.try(t, w.Alice, "", "www.corp.test:7001"), w.Alice)
	secret, www := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.18.0.1")
	if got := a.do(t, "getent hosts "+secret.String()); !strings.Contains(got, "secret.corp.test") {
		t.Errorf("the control: Alice asks for the name of %v: %q", secret, got)
	}
	if r := w.Run(t, w.Alice, "getent", "hosts", www.String()); !strings.Contains(r.Stdout, "www.corp.test") {
		t.Errorf("the control: Alice asks for the name of %v: %v", www, r)
	}

	// Three ports of TCP, of the listener, of the host's resolver and of Alice's, and two of UDP.
	tcp, udp := w.sockets(t, "tcp"), w.sockets(t, "udp")
	if len(tcp) != 6 || len(udp) != 4 {
		t.Fatalf("sockets on loopback: %v TCP, %v UDP", tcp, udp)
	}
	for network, list := range map[string][]netip.AddrPort{"tcp": tcp, "udp": udp} {
		want := map[string]error{"tcp": syscall.ECONNREFUSED, "udp": syscall.EPERM}[network]
		for _, at := range list {
			for _, q := range []struct {
				name string
				typ  dnsmessage.Type
			}{{reverse(secret), dnsmessage.TypePTR}, {reverse(www), dnsmessage.TypePTR}, {"secret.corp.test", dnsmessage.TypeA}, {"special.test", dnsmessage.TypeA}} {
				if m, err := w.query(w.Bob, network, at, q.name, q.typ); !errors.Is(err, want) {
					t.Errorf("%s %v tells Bob of %s: %v, %v", network, at, q.name, m.Answers, err)
				}
			}
		}
	}
	// Bob has asked for special.test. Alice has not: it names no flow of hers, neither in
	// her capture, where it would let them out, nor by the system's rules.
	if got := a.do(t, w.Testprog+" connect 10.99.1.2:7003"); !strings.Contains(got, " ECONNREFUSED ") {
		t.Errorf("a name that Bob asked for decided Alice's flow: %s", got)
	}
	if got := a.do(t, w.Testprog+" connect special.test:7003"); !strings.Contains(got, " ok ") {
		t.Errorf("the control: Alice asks for it: %s", got)
	}

	t.Run("ports", func(t *testing.T) {
		requireTaken(t, w, tcp, udp)
		w.KillSystemBroker(t)
		requireTaken(t, w, tcp, udp)
		w.Client.KillAll(t, "ssh-broker") // Alice's too
		requireTaken(t, w, tcp, udp)
		w.KillCaptured(t, false)
		requireTaken(t, w, tcp, udp)
		w.AwaitCaptured(t)
		requireTaken(t, w, tcp, udp)
		if now := w.sockets(t, "tcp"); !slices.Equal(now, tcp) {
			t.Errorf("listening now: %v, before %v", now, tcp)
		}
	})
	a.typing.Close()
	a.Wait(t)
	w.finish(t)
}

// requireTaken has Bob try to bind every port, by every address it could be had by.
func requireTaken(t *testing.T, w *world, tcp, udp []netip.AddrPort) {
	t.Helper()
	for typ, list := range map[int][]netip.AddrPort{unix.SOCK_STREAM: tcp, unix.SOCK_DGRAM: udp} {
		for _, at := range list {
			wildcard := netip.IPv4Unspecified()
			if at.Addr().Is6() {
				wildcard = netip.IPv6Unspecified()
			}
			for _, addr := range []netip.Addr{at.Addr(), wildcard} {
				for _, option := range []int{0, unix.SO_REUSEADDR, unix.SO_REUSEPORT} {
					err := w.Client.As(w.Bob, func() error { return bind(typ, netip.AddrPortFrom(addr, at.Port()), option) })
					if !errors.Is(err, unix.EADDRINUSE) {
						t.Errorf("Bob binds %v with option %d: %v", netip.AddrPortFrom(addr, at.Port()), option, err)
					}
				}
			}
		}
	}
}

// bind binds a socket, has it listen where it is of TCP, and closes it.
func bind(typ int, at netip.AddrPort, option int) error {
	family, sa := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(at.Port())})
	if at.Addr().Is4() {
		sa.(*unix.SockaddrInet4).Addr = at.Addr().As4()
	} else {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if option != 0 {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1)
	}
	if err == nil && family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err == nil && typ == unix.SOCK_STREAM {
		err = unix.Listen(fd, 1)
	}
	return err
}
