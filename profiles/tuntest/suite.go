package tuntest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"sshbroker/profiles"
)

// patience is how long a test waits for what must happen at once.
const patience = 20 * time.Second

// Quirk is something that a server does and the suite makes allowance for. It has to
// stand in docs/limits.md in these words: users are told what is not tested.
type Quirk string

// KeepsDeadChannels is Dropbear's: it leaves a channel open whose destination has
// gone, and takes no more data.
const KeepsDeadChannels Quirk = "keeps channels whose destination has gone"

// What servers of HTTP CONNECT do.
const (
	// NoHalfClose is that of all but our own.
	NoHalfClose Quirk = "passes no end of one direction on"
	// ConnectionEach is that of all: nothing ends with a transport that is no connection.
	ConnectionEach Quirk = "has a connection for each flow"
	// NoReasons is tinyproxy's.
	NoReasons Quirk = "does not tell why it could not connect"
)

// skippedFor are the tests that make no sense with a quirk.
var skippedFor = map[Quirk][]string{
	NoHalfClose:    {"HalfCloseOurs", "HalfCloseTheirs"},
	ConnectionEach: {"Cut", "DeadPath", "Probe"},
	NoReasons:      {"Refused", "NameNotFound"},
}

// Run holds a connector and the server that p reaches against the contracts of the
// profiles package. The server must be able to reach loopback addresses of this
// host.
func Run(t *testing.T, c profiles.Connector, p *profiles.Profile, quirks ...Quirk) {
	(&rig{connector: c, profile: p, quirks: quirks}).run(t)
}

func (r *rig) run(t *testing.T) {
	r.requireDocumented(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *rig)
	}{
		{"Echo", testEcho},
		{"Copy", testCopy},
		{"Sizes", testSizes},
		{"HalfCloseOurs", testHalfCloseOurs},
		{"HalfCloseTheirs", testHalfCloseTheirs},
		{"ServerFirst", testServerFirst},
		{"NothingAtAll", testNothingAtAll},
		{"ResetByDestination", testResetByDestination},
		{"ResetByUs", testResetByUs},
		{"CloseReleases", testCloseReleases},
		{"CloseDelivers", testCloseDelivers},
		{"Refused", testRefused},
		{"NameNotFound", testNameNotFound},
		{"ManyShort", testManyShort},
		{"ManyAtOnce", testManyAtOnce},
		{"ManySlow", testManySlow},
		{"StalledReader", testStalledReader},
		{"OpenCancelled", testOpenCancelled},
		{"Cut", testCut},
		{"DeadPath", testDeadPath},
		{"Probe", testProbe},
		{"CloseTransport", testCloseTransport},
		{"Conn", testConn},
	} {
		if r.pooled != nil && slices.Contains(ofTheLine, test.name) {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			for _, q := range r.quirks {
				if slices.Contains(skippedFor[q], test.name) {
					t.Skipf("the server %s", q)
				}
			}
			test.run(t, r)
		})
	}
}

type rig struct {
	connector profiles.Connector
	profile   *profiles.Profile
	quirks    []Quirk
	pooled    profiles.Transport // of RunSeveral; nil: each test connects
}

// requireDocumented wants every allowance in docs/limits.md.
func (r *rig) requireDocumented(t *testing.T) {
	t.Helper()
	if len(r.quirks) == 0 {
		return
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for !isModuleRoot(dir) && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
	}
	limits, err := os.ReadFile(filepath.Join(dir, "docs", "limits.md"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(string(limits)), " ")
	for _, q := range r.quirks {
		if !strings.Contains(text, string(q)) {
			t.Errorf("docs/limits.md does not say that a server %q", q)
		}
	}
}

func isModuleRoot(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// long is whether SSHBROKER_LONG=1 asks for what takes its time.
func long() bool { return os.Getenv("SSHBROKER_LONG") == "1" }

// volume is the one number in a usual run and the other in a long one.
func volume(usual, inLong int) int {
	if long() {
		return inLong
	}
	return usual
}

// connect makes a transport over a line that the test can cut or freeze.
func (r *rig) connect(t *testing.T) (profiles.Transport, *line) {
	t.Helper()
	if r.pooled != nil {
		return r.pooled, nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var mu sync.Mutex
	var l *line // the last one: some transports have several
	via := func(ctx context.Context, network, address string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		l = newLine(c)
		return l, nil
	}
	tr, err := r.connector.Connect(ctx, r.profile, via, nil)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	first := l
	t.Cleanup(func() { first.thaw(); tr.Close() })
	return tr, first
}

// listen runs serve for each connection to a new listener, and returns where it is.
func listen(t *testing.T, serve func(c *net.TCPConn)) profiles.Destination {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { l.Close(); tasks.Wait() })
	return destination(l.Addr())
}

func destination(a net.Addr) profiles.Destination {
	at := a.(*net.TCPAddr).AddrPort()
	return profiles.Destination{
		Host: at.Addr().String(), Port: at.Port(),
		Origin: netip.MustParseAddrPort("10.9.8.7:4321"),
	}
}

// echo sends everything back and ends when the other side has.
func echo(c *net.TCPConn) {
	io.Copy(struct{ io.Writer }{c}, c)
	c.CloseWrite()
}

func open(t *testing.T, tr profiles.Transport, dst profiles.Destination) profiles.Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := tr.Open(ctx, dst)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	s.SetDeadline(time.Now().Add(patience))
	return s
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)})
	r.Read(b)
	return b
}

func same(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got %d bytes (sha256 %x), want %d (%x)", what, len(got), sha256.Sum256(got), len(want), sha256.Sum256(want))
	}
}

// exchange sends data to an echo, ends its direction where that means something to the
// server, and returns what comes back.
func (r *rig) exchange(s profiles.Stream, data []byte) ([]byte, error) {
	whole := slices.Contains(r.quirks, NoHalfClose)
	go func() {
		s.Write(data)
		if !whole {
			s.CloseWrite()
		}
	}()
	if whole {
		got := make([]byte, len(data))
		n, err := io.ReadFull(s, got)
		return got[:n], err
	}
	return io.ReadAll(s)
}

func testEcho(t *testing.T, r *rig) {
	tr, _ := r.connect(t)
	s := open(t, tr, listen(t, echo))
	for i := range 100 {
		msg := fmt.Sprintf("line %d\n", i)
		if _, err := io.WriteString(s, msg); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(msg))
		if _, err := io.ReadFull(s, got); err != nil {
			t.Fatal(err)
		}
		if string(got) != msg {
			t.Fatalf("got %q, want %q", got, msg)
		}
	}
	if got := s.LocalAddr().String(); got != "10.9.8.7:4321" {
		t.Errorf("local address %s", got)
	}
}

// testCopy uses the stream's own ways of copying, from and to sockets.
func testCopy(t *testing.T, r *rig) {
	tr, _ := r.connect(t)
	s := open(t, tr, listen(t, echo))
	ours, theirs := tcpPair(t)
	data := noise(5 << 20)
	var tasks sync.WaitGroup
	tasks.Go(func() {
		theirs.Write(data)
		theirs.CloseWrite()
	})
	tasks.Go(func() {
		if n, err := s.(io.ReaderFrom).ReadFrom(ours); err != nil || n != int64(len(data)) {
			t.Errorf("ReadFrom: %d, %v", n, err)
		}
		if err := s.CloseWrite(); err != nil {
			t.Errorf("CloseWrite: %v", err)
		}
	})
	tasks.Go(func() {
		if n, err := s.(io.WriterTo).WriteTo(ours); err != nil || n != int64(len(data)) {
			t.Errorf("WriteTo: %d, %v", n, err)
		}
		ours.CloseWrite()
	})
	got, err := io.ReadAll(theirs)
	tasks.Wait()
	if err != nil {
		t.Fatal(err)
	}
	same(t, "copied", got, data)
	if c, ok := s.(profiles.Counter); ok {
		if sent, received := c.Counts(); sent != uint64(len(data)) || received != uint64(len(data)) {
			t.Errorf("counts %d, %d; want %d", sent, received, len(data))
		}
	}
}

func tcpPair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

// testSizes looks around the packet size, the piece size and the window.
func testSizes(t *testing.T, r *rig) {
	tr, _ := r.connect(t)
	dst := listen(t, echo)
	for _, n := range []int{0, 1, 1<<10 - 1, 1 << 10, 1<<10 + 1, 32<<10 - 1, 32 << 10, 32<<10 + 1,
		64<<10 - 1, 64 << 10, 64<<10 + 1, 2<<20 - 1, 2 << 20, 2<<20 + 1} {
		s := open(t, tr, dst)
		data := noise(n)
		got, err := r.exchange(s, data)
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		same(t, fmt.Sprint(n, " bytes"), got, data)
		s.Close()
	}
}

// testHalfCloseOurs: we end first, the far end answers late.
func testHalfCloseOurs(t *testing.T, r *rig) {
	tr, _ := r.connect(t)
	question, answer := noise(300<<10), noise(1<<20)
	var seen []byte
	dst := listen(t, func(c *net.TCPConn) {
		seen, _ = io.ReadAll(c)
		time.Sleep(50 * time.Millisecond) // lateness is the point
		c.Write(answer)
	})
	s := open(t, tr, dst)
	if _, err := s.Write(question); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(s)
	if err != nil {
		t.Fatalf("after our end: %v", err)
	}
	same(t, "answer", got, answer)
	same(t, "question", seen, question)
	if _, err := s.Write([]byte("x")); err == nil {
		t.Error("a write after CloseWrite succeeded")
	}
}

// testHalfCloseTheirs: the far end ends first and we go on.
func testHalfCloseTheirs(t *testing.T, r *rig) {
	tr, _ := r.connect(t)
	greeting, late := noise(300<<10), noise(1<<20)
	seen := make(chan []byte, 1)
	dst := listen(t, func(c *net.TCPConn) {
		c.Write(greeting)
		c.CloseWrite()
		got, _ := io.ReadAll(c)
		seen <- got
	})
	s := open(t, tr, dst)
	got, err := io.ReadAll(s)
	if err != nil {
		t.Fatalf("their end: %v", err)
	}
	same(t, "greeting", got, greeting)
	if fc, ok := s.(profiles.FarCloser); ok {
		select {
		case <-fc.Closed():
			t.Error("Closed after a half-close")
		default:
		}
	}
	if _, err := s.Write(late); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-seen:
		same(t, "late data", got, late)
	case <-time.After(patience):
		t.Fatal("the destination never saw our end")
	}
	if fc, ok := s.(profiles.FarCloser); ok {
		select {
		case <-fc.Closed():
		case <-time.After(patience):
			t.Error("not Closed after both ends")
		}
	}
}

func testServerFirst(t *testing.T, r *rig) {
	tr, _ := r.connect(t)
	s := open(t, tr, listen(t, func(c *net.TCPConn) {
		io.WriteString(c, "220 ready\r\n")
		io.Copy(io.Discard, c)
	}))
	got := make([]byte, 11)
	if _, err := io.ReadFull(s, got); err != nil || string(got) != "220 ready\r\n" {
		t.Fatalf("%q, %v", got, err)
	}
}

func testNothingAtAll(t *testing.T, r *rig) {
	tr, _ := r.connect(t)
	ended := make(chan int64, 1)
	s := open(t, tr, listen(t, func(c *net.TCPConn) {
		n, _ := io.Copy(io.Discard, c)
		ended <- n
	}))
	if n, err := s.Read(nil); n != 0 || err != nil {
		t.Errorf("empty read: %d, %v", n, err)
	}
	if n, err := s.Write(nil); n != 0 || err != nil {
		t.Errorf("empty write: %d, %v", n, err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read: %d, %v; want EOF", n, err)
	}
	select {
	case n := <-ended:
		if n != 0 {
			t.Errorf("the destination got %d bytes", n)
		}
	case <-time.After(patience):
		t.Error("the destination never saw the end")
	}
}

// testResetByDestination: SSH cannot carry a reset, so the reader may see either
// end; but a writer must learn that nobody is there.
func testResetByDestination(t *testing.T, r *rig) {
	tr, _ := r.connect(t)
	s := open(t, tr, listen(t, func(c *net.TCPConn) {
		c.Read(make([]byte, 1))
		c.SetLinger(0)
	}))
	if _, err := s.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Read(make([]byte, 1)); n != 0 || err != io.EOF && !errors.Is(err, profiles.ErrReset) {
		t.Errorf("read %d, %v", n, err)
	}
	if slices.Contains(r.quirks, KeepsDeadChannels) {
		return
	}
	var err error
	for range 1000 {
		if _, err = s.Write(make([]byte, 32<<10)); err != nil {
			break
		}
	}
	if !errors.Is(err, profiles.ErrReset) {
		t.Errorf("write: %v; want ErrReset", err)
	}
	if fc, ok := s.(profiles.FarCloser); ok {
		select {
		case <-fc.Closed():
		case <-time.After(patience):
			t.Error("never Closed")
		}
	}
}

func testResetByUs(t *testing.T, r *rig) {
	tr, _ := r.connect(t)
	ended := make(chan struct{})
	s := open(t, tr, listen(t, func(c *net.TCPConn) {
		io.Copy(io.Discard, c)
		close(ended)
	}))
	reader := make(chan error, 1)
	go func() {
		_, err := s.Read(make([]byte, 1))
		reader <- err
	}()
	if err := s.Reset(); err != nil {
		t.Errorf("Reset: %v", err)
	}
	select {
	case err := <-reader:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("reader got %v", err)
		}
	case <-time.After(patience):
		t.Error("Reset did not release the reader")
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the destination never saw the end")
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close after Reset: %v", err)
	}
}

// testCloseReleases closes streams whose readers and writers are blocked.
func testCloseReleases(t *testing.T, r *rig) {
	tr, _ := r.connect(t)
	hold := make(chan struct{})
	dst := listen(t, func(c *net.TCPConn) { <-hold })
	t.Cleanup(func() { close(hold) })
	for _, name := range []string{"Read", "WriteTo", "Write", "ReadFrom"} {
		s := open(t, tr, dst)
		s.SetDeadline(time.Time{})
		done := make(chan error, 1)
		go func() {
			var err error
			switch name {
			case "Read":
				_, err = s.Read(make([]byte, 1))
			case "WriteTo":
				_, err = s.(io.WriterTo).WriteTo(io.Discard)
			case "Write":
				_, err = s.Write(make([]byte, 64<<20))
			case "ReadFrom":
				_, err = s.(io.ReaderFrom).ReadFrom(endless{})
			}
			done <- err
		}()
		if name == "Write" || name == "ReadFrom" {
			waitStall(t, s)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%s: Close: %v", name, err)
		}
		select {
		case err := <-done:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s released with %v; want net.ErrClosed", name, err)
			}
		case <-time.After(patience):
			t.Errorf("Close did not release %s", name)
		}
		if err := s.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// waitStall waits until a stream's writer makes no headway any more.
func waitStall(t *testing.T, s profiles.Stream) {
	t.Helper()
	c, ok := s.(profiles.Counter)
	if !ok {
		return
	}
	last, still := uint64(0), 0
	for range 1000 {
		time.Sleep(50 * time.Millisecond) // headway has no event
		sent, _ := c.Counts()
		if sent != last {
			last, still = sent, 0
		} else if still++; still == 5 {
			return
		}
	}
	t.Error("the writer never stalls")
}

// testCloseDelivers: what was written before Close arrives.
func testCloseDelivers(t *testing.T, r *rig) {
	tr, _ := r.connect(t)
	data := noise(1 << 20)
	for range 20 {
		seen := make(chan []byte, 1)
		s := open(t, tr, listen(t, func(c *net.TCPConn) {
			got, _ := io.ReadAll(c)
			seen <- got
		}))
		if _, err := s.Write(data); err != nil {
			t.Fatal(err)
		}
		s.Close()
		select {
		case got := <-seen:
			same(t, "before Close", got, data)
		case <-time.After(patience):
			t.Fatal("the destination never saw the end")
		}
	}
}

func testRefused(t *testing.T, r *rig) {
	tr, _ := r.connect(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dst := destination(l.Addr())
	l.Close()
	_, err = tr.Open(t.Context(), dst)
	if !errors.Is(err, profiles.ErrRefused) {
		t.Errorf("open of a closed port: %v; want ErrRefused", err)
	}
}

func testNameNotFound(t *testing.T, r *rig) {
	tr, _ := r.connect(t)
	_, err := tr.Open(t.Context(), profiles.Destination{Host: "no-such-host.invalid", Port: 80})
	if !errors.Is(err, profiles.ErrNameNotFound) {
		t.Errorf("open of an unknown name: %v; want ErrNameNotFound", err)
	}
}

func testManyShort(t *testing.T, r *rig) {
	tr, _ := r.connect(t)
	dst := listen(t, echo)
	var tasks sync.WaitGroup
	for worker := range 8 {
		tasks.Go(func() {
			for i := range volume(100, 1250) {
				msg := fmt.Sprintf("%d/%d", worker, i)
				s, err := tr.Open(t.Context(), dst)
				if err != nil {
					t.Error(err)
					return
				}
				s.SetDeadline(time.Now().Add(patience))
				got, err := r.exchange(s, []byte(msg))
				s.Close()
				if err != nil || string(got) != msg {
					t.Errorf("%q, %v; want %q", got, err, msg)
					return
				}
			}
		})
	}
	tasks.Wait()
}

func testManyAtOnce(t *testing.T, r *rig) {
	const flows = 200
	tr, _ := r.connect(t)
	dst := listen(t, echo)
	data := noise(100 << 10)
	var tasks sync.WaitGroup
	all := make(chan struct{})
	var ready sync.WaitGroup
	ready.Add(flows)
	for range flows {
		tasks.Go(func() {
			s, err := tr.Open(t.Context(), dst)
			ready.Done()
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			<-all
			s.SetDeadline(time.Now().Add(3 * patience))
			got, err := r.exchange(s, data)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v; want %d", len(got), err, len(data))
			}
		})
	}
	ready.Wait()
	close(all)
	tasks.Wait()
}

// testManySlow has a thousand flows on which a byte goes there and back now and then,
// in an order that is another one each time: none may wait for another.
func testManySlow(t *testing.T, r *rig) {
	flows, rounds := volume(100, 1000), volume(3, 10)
	tr, _ := r.connect(t)
	dst := listen(t, echo)
	streams := make([]profiles.Stream, flows)
	for i := range streams {
		streams[i] = open(t, tr, dst)
		streams[i].SetDeadline(time.Time{})
	}
	for round := range rounds {
		for _, i := range rand.Perm(flows) {
			s, b := streams[i], []byte{byte(i + round)}
			s.SetDeadline(time.Now().Add(patience))
			if _, err := s.Write(b); err != nil {
				t.Fatalf("flow %d, round %d: %v", i, round, err)
			}
			got := make([]byte, 1)
			if _, err := io.ReadFull(s, got); err != nil || got[0] != b[0] {
				t.Fatalf("flow %d, round %d: %v, %v; want %v", i, round, got, err, b)
			}
		}
	}
	for i, s := range streams {
		if slices.Contains(r.quirks, NoHalfClose) {
			break
		}
		if err := s.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Fatalf("flow %d ends with %d, %v", i, n, err)
		}
	}
}

// testStalledReader: a stream that nobody reads does not hold up the others.
func testStalledReader(t *testing.T, r *rig) {
	tr, _ := r.connect(t)
	flood := listen(t, func(c *net.TCPConn) {
		for {
			if _, err := c.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	for range 4 {
		stalled := open(t, tr, flood)
		if _, err := stalled.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	testEchoOn(t, r, tr)
}

func testEchoOn(t *testing.T, r *rig, tr profiles.Transport) {
	t.Helper()
	s := open(t, tr, listen(t, echo))
	data := noise(4 << 20)
	got, err := r.exchange(s, data)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "beside the others", got, data)
}

// testOpenCancelled: opens given up at random moments leave nothing open at the
// destination.
func testOpenCancelled(t *testing.T, r *rig) {
	tr, _ := r.connect(t)
	var served sync.WaitGroup
	dst := listen(t, func(c *net.TCPConn) {
		served.Add(1)
		defer served.Done()
		io.Copy(io.Discard, c)
	})
	var tasks sync.WaitGroup
	for range 300 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(5000))*time.Microsecond)
		tasks.Go(func() {
			defer cancel()
			s, err := tr.Open(ctx, dst)
			switch {
			case err == nil:
				s.Close()
			case !errors.Is(err, context.DeadlineExceeded):
				t.Errorf("open: %v", err)
			}
		})
	}
	tasks.Wait()
	testEchoOn(t, r, tr) // the server answers in order, so all opens are answered now
	ended := make(chan struct{})
	go func() { served.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the destination still has connections")
	}
}

// testCut: a transport cut in the middle ends every flow with an error, and none
// with an end in order.
func testCut(t *testing.T, r *rig) {
	tr, l := r.connect(t)
	start := make(chan struct{}) // opening among floods takes long
	flood := listen(t, func(c *net.TCPConn) {
		<-start
		for {
			if _, err := c.Write(make([]byte, 4<<10)); err != nil {
				return
			}
		}
	})
	quiet := listen(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	flows := volume(40, 1000)
	ends := make(chan error, flows)
	for i := range flows {
		dst := flood
		if i%2 == 1 {
			dst = quiet
		}
		s := open(t, tr, dst)
		s.SetDeadline(time.Time{})
		if i%4 >= 2 { // our own end must not make a loss look like theirs
			if err := s.CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		if i%4 == 3 {
			continue // quiet, and we have ended: it ends in order right away
		}
		go func() {
			var err error
			if i%8 < 4 {
				_, err = io.Copy(io.Discard, struct{ io.Reader }{s})
			} else {
				_, err = s.(io.WriterTo).WriteTo(io.Discard)
			}
			ends <- err
		}()
	}
	close(start)
	s := open(t, tr, quiet) // by now data is on its way
	l.Conn.Close()
	s.Close()
	for range flows * 3 / 4 {
		select {
		case err := <-ends:
			if !errors.Is(err, profiles.ErrLost) {
				t.Errorf("a flow ended with %v; want ErrLost", err)
			}
		case <-time.After(patience):
			t.Fatal("a flow did not end")
		}
	}
	select {
	case <-tr.Done():
	case <-time.After(patience):
		t.Fatal("not Done")
	}
	if !errors.Is(tr.Err(), profiles.ErrLost) {
		t.Errorf("Err: %v", tr.Err())
	}
	if _, err := tr.Open(t.Context(), quiet); !errors.Is(err, profiles.ErrLost) {
		t.Errorf("open on a lost transport: %v", err)
	}
}

// testDeadPath: nothing arrives and nothing leaves, and streams can still be let go.
func testDeadPath(t *testing.T, r *rig) {
	tr, l := r.connect(t)
	dst := listen(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	reading, writing := open(t, tr, dst), open(t, tr, dst)
	writing.SetDeadline(time.Time{})
	l.freeze()
	done := make(chan error, 2)
	go func() {
		_, err := reading.Read(make([]byte, 1))
		done <- err
	}()
	go func() {
		_, err := writing.(io.ReaderFrom).ReadFrom(endless{})
		done <- err
	}()
	waitStall(t, writing)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := tr.Open(ctx, dst); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("open on a dead path: %v", err)
	}
	reading.Close()
	writing.Reset()
	for range 2 {
		select {
		case err := <-done:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("released with %v", err)
			}
		case <-time.After(patience):
			t.Fatal("not released")
		}
	}
	closed := make(chan struct{})
	go func() { tr.Close(); close(closed) }()
	select {
	case <-tr.Done():
	case <-time.After(patience):
		t.Error("not Done after Close")
	}
	l.thaw()
	<-closed
}

// testProbe: a transport that works passes, under load too, and a dead one is found out.
func testProbe(t *testing.T, r *rig) {
	tr, l := r.connect(t)
	prober, ok := tr.(profiles.Prober)
	if !ok {
		t.Fatal("it cannot be asked whether it works")
	}
	for range 3 {
		prober.Probe(patience)
		testEchoOn(t, r, tr)
	}
	waiting := open(t, tr, listen(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) }))
	waiting.SetDeadline(time.Time{})
	l.freeze()
	prober.Probe(10 * time.Millisecond)
	if _, err := waiting.Read(make([]byte, 1)); !errors.Is(err, profiles.ErrLost) {
		t.Errorf("read on a dead transport: %v; want ErrLost", err)
	}
	select {
	case <-tr.Done():
	case <-time.After(patience):
		t.Error("not Done")
	}
}

func testCloseTransport(t *testing.T, r *rig) {
	tr, _ := r.connect(t)
	s := open(t, tr, listen(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) }))
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, profiles.ErrLost) {
		t.Errorf("read: %v; want ErrLost", err)
	}
	if _, err := s.Write(make([]byte, 1)); !errors.Is(err, profiles.ErrLost) {
		t.Errorf("write: %v; want ErrLost", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := tr.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// testConn is the standard suite for a net.Conn. The far end of the pipe is the
// destination's socket.
func testConn(t *testing.T, r *rig) {
	tr, _ := r.connect(t)
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, nil, nil, err
		}
		defer l.Close()
		s, err := tr.Open(t.Context(), destination(l.Addr()))
		if err != nil {
			return nil, nil, nil, err
		}
		c, err := l.Accept()
		if err != nil {
			s.Close()
			return nil, nil, nil, err
		}
		if !strings.Contains(s.RemoteAddr().String(), "127.0.0.1") {
			return nil, nil, nil, fmt.Errorf("remote address %s", s.RemoteAddr())
		}
		return s, c, func() { s.Close(); c.Close() }, nil
	})
}
