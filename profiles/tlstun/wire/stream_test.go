package wire_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"go.uber.org/goleak"

	"sshbroker/profiles"
	"sshbroker/profiles/tlstun/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

// sessions joins two ends by a connection on loopback.
func sessions(t testing.TB) (client, server *wire.Session) {
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
	if client, err = wire.Client(wire.NewSocket(c)); err != nil {
		t.Fatal(err)
	}
	if server, err = wire.Server(wire.NewSocket(d)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// streams opens one flow between two ends.
func streams(t testing.TB) (a, b *wire.Stream) {
	t.Helper()
	client, server := sessions(t)
	return flow(t, client, server)
}

func flow(t testing.TB, client, server *wire.Session) (a, b *wire.Stream) {
	t.Helper()
	x, y := begin(t, client, server)
	a, b = client.NewStream(x), server.NewStream(y)
	for _, s := range []*wire.Stream{a, b} {
		s.SetDeadline(time.Now().Add(patience))
	}
	return a, b
}

// begin opens a stream of yamux and asks and answers on it.
func begin(t testing.TB, client, server *wire.Session) (x, y *yamux.Stream) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	x, err := client.Open()
	must(err)
	must(wire.WriteRequest(x, wire.Request{Kind: wire.KindFlow, Service: "any"}))
	y, err = server.Accept()
	must(err)
	_, err = wire.ReadRequest(y)
	must(err)
	must(wire.WriteAnswer(y, wire.Answer{Status: wire.OK}))
	_, err = wire.ReadAnswer(x)
	must(err)
	return x, y
}

// reads wants data and then want from s.
func reads(t *testing.T, s *wire.Stream, data string, want error) {
	t.Helper()
	got, err := io.ReadAll(s)
	if string(got) != data {
		t.Errorf("read %d bytes %.40q; want %d %.40q", len(got), got, len(data), data)
	}
	if want == io.EOF {
		want = nil // as ReadAll has it
	}
	if !errors.Is(err, want) || want == nil && err != nil {
		t.Errorf("the end is %v; want %v", err, want)
	}
}

func writes(t *testing.T, s *wire.Stream, data string) {
	t.Helper()
	if n, err := io.WriteString(s, data); n != len(data) || err != nil {
		t.Fatalf("wrote %d of %d: %v", n, len(data), err)
	}
}

func isClosed(t *testing.T, s *wire.Stream, want bool) {
	t.Helper()
	wait := time.Duration(0)
	if want {
		wait = patience
	}
	select {
	case <-s.Closed():
		if !want {
			t.Error("it is Closed")
		}
	case <-time.After(wait):
		if want {
			t.Error("it is never Closed")
		}
	}
}

func noise(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return string(b)
}

// TestEnds has both ways of ending a direction, with and without data before and with
// our own direction open or ended.
func TestEnds(t *testing.T) {
	for _, data := range []string{"", "some data", noise(200 << 10)} {
		for _, halfClosed := range []bool{false, true} {
			for name, c := range map[string]struct {
				end       func(s *wire.Stream)
				seen      error
				words     string
				thenWrite error // of the one who did not end
				closed    bool
			}{
				"CloseWrite": {func(s *wire.Stream) { s.CloseWrite() }, io.EOF, "", nil, false},
				"Close":      {func(s *wire.Stream) { s.Close() }, io.EOF, "", profiles.ErrReset, true},
				"Reset":      {func(s *wire.Stream) { s.Reset() }, profiles.ErrReset, "", profiles.ErrReset, true},
				"EndFor":     {func(s *wire.Stream) { s.EndFor("no longer allowed") }, profiles.ErrReset, "no longer allowed", profiles.ErrReset, true},
			} {
				a, b := streams(t)
				if halfClosed {
					if err := b.CloseWrite(); err != nil {
						t.Fatal(err)
					}
					reads(t, a, "", io.EOF)
				}
				writes(t, a, data)
				c.end(a)
				reads(t, b, data, c.seen)
				if b.Ended() != c.words {
					t.Errorf("%s: words %q", name, b.Ended())
				}
				isClosed(t, b, c.closed || halfClosed)
				if halfClosed {
					continue
				}
				_, err := b.Write([]byte("x"))
				if !errors.Is(err, c.thenWrite) || c.thenWrite == nil && err != nil {
					t.Errorf("%s: then write: %v; want %v", name, err, c.thenWrite)
				}
			}
		}
	}
}

// TestResetAfterEnd: an orderly end does not make an end of the other direction orderly.
func TestResetAfterEnd(t *testing.T) {
	for _, words := range []string{"", "certificate revoked"} {
		a, b := streams(t)
		writes(t, a, "answer")
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		reads(t, b, "answer", io.EOF)
		isClosed(t, b, false)
		if words == "" {
			a.Reset()
		} else {
			a.EndFor(words)
		}
		isClosed(t, b, true)
		if b.Ended() != words {
			t.Errorf("words %q; want %q", b.Ended(), words)
		}
		if _, err := b.Write([]byte("x")); !errors.Is(err, profiles.ErrReset) {
			t.Errorf("write: %v", err)
		}
		reads(t, b, "", io.EOF) // it stays what it was
	}
}

// TestFullWindow: a reader that has stopped holds up neither a reset nor a Close, and
// gets all that came before it.
func TestFullWindow(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(s *wire.Stream)
		seen error
	}{
		"Reset":  {func(s *wire.Stream) { s.Reset() }, profiles.ErrReset},
		"EndFor": {func(s *wire.Stream) { s.EndFor("for a reason") }, profiles.ErrReset},
		"Close":  {func(s *wire.Stream) { s.Close() }, profiles.ErrReset}, // it interrupts a Write
	} {
		a, b := streams(t)
		written := make(chan int)
		go func() {
			n, err := a.Write(make([]byte, 8<<20))
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s: write ended with %v", name, err)
			}
			written <- n
		}()
		stalled(t, a)
		c.end(a)
		n := <-written
		got, err := io.ReadAll(b)
		if !errors.Is(err, c.seen) {
			t.Errorf("%s: %v; want %v", name, err, c.seen)
		}
		if len(got) > n || n-len(got) > 64<<10 {
			t.Errorf("%s: %d bytes of %d arrived", name, len(got), n)
		}
	}
}

// TestCloseWithFullWindow: what was written before Close arrives whole, however late the
// reader comes.
func TestCloseWithFullWindow(t *testing.T) {
	a, b := streams(t)
	data := noise(1 << 20) // fills the window: the headers do not fit any more
	a.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	n, err := io.WriteString(a, data)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d, %v", n, err)
	}
	a.Close()
	reads(t, b, data[:n], io.EOF)
}

// stalled waits until a's writer makes no headway any more.
func stalled(t *testing.T, a *wire.Stream) {
	t.Helper()
	last := uint64(0)
	for still := 0; still < 5; still++ {
		time.Sleep(20 * time.Millisecond) // headway has no event
		if sent, _ := a.Counts(); sent != last {
			last, still = sent, 0
		}
	}
}

// TestBothStopped: two ends that write and do not read can both be closed.
func TestBothStopped(t *testing.T) {
	client, server := sessions(t)
	for range 20 {
		a, b := flow(t, client, server)
		var tasks sync.WaitGroup
		for _, s := range []*wire.Stream{a, b} {
			tasks.Go(func() { s.Write(make([]byte, 8<<20)) })
		}
		stalled(t, a)
		a.Close()
		b.Close()
		tasks.Wait()
	}
}

// TestDeadlineInRecord: a deadline in the middle of a record neither loses nor repeats
// anything, reading and writing.
func TestDeadlineInRecord(t *testing.T) {
	a, b := streams(t)
	data := []byte(noise(4 << 20))
	got := make(chan []byte)
	go func() {
		var all bytes.Buffer
		p := make([]byte, 3000)
		for {
			b.SetReadDeadline(time.Now().Add(time.Millisecond))
			n, err := b.Read(p)
			all.Write(p[:n])
			if err == io.EOF {
				break
			}
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
				break
			}
		}
		got <- all.Bytes()
	}()
	for rest := data; len(rest) > 0; {
		a.SetWriteDeadline(time.Now().Add(500 * time.Microsecond))
		n, err := a.Write(rest)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	a.SetDeadline(time.Time{})
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(<-got, data) {
		t.Error("other bytes arrived")
	}
}

// TestLost: the end of the connection is no end in order, and comes after the data.
func TestLost(t *testing.T) {
	client, server := sessions(t)
	a, b := flow(t, client, server)
	c, d := flow(t, client, server)
	writes(t, a, "before")
	writes(t, c, "before")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	writes(t, d, "x") // and so all of the above is there
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	one := make([]byte, 1)
	if _, err := io.ReadFull(b, one); err != nil {
		t.Fatal(err)
	}
	client.Close()
	reads(t, b, "efore", profiles.ErrLost)
	isClosed(t, b, true)
	reads(t, d, "before", io.EOF)
	isClosed(t, d, true)
	if _, err := d.Write([]byte("x")); !errors.Is(err, profiles.ErrLost) {
		t.Errorf("write: %v", err)
	}
	<-server.Done()
	if err := server.Err(); !errors.Is(err, profiles.ErrLost) || !strings.Contains(err.Error(), "closed by the other side") {
		t.Errorf("Err: %v", err)
	}
	if _, err := server.Accept(); !errors.Is(err, profiles.ErrLost) {
		t.Errorf("Accept: %v", err)
	}
	if _, err := server.Open(); !errors.Is(err, profiles.ErrLost) {
		t.Errorf("Open: %v", err)
	}
}

// TestGoAway: no new streams, and the open ones go on.
func TestGoAway(t *testing.T) {
	client, server := sessions(t)
	a, b := flow(t, client, server)
	if err := server.GoAway(); err != nil {
		t.Fatal(err)
	}
	writes(t, b, "x")
	if _, err := io.ReadFull(a, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Open(); !errors.Is(err, wire.ErrGoingAway) || !errors.Is(err, profiles.ErrLost) {
		t.Errorf("Open: %v", err)
	}
	writes(t, a, "y")
	a.Close()
	reads(t, b, "y", io.EOF)
}

// TestBadRecords: an end that breaks the protocol is a reset, never data or an end.
func TestBadRecords(t *testing.T) {
	for name, bytes := range map[string]string{
		"kind 0":               "\x00\x00\x00\x01x",
		"unknown kind":         "\x09\x00\x00\x01x",
		"empty data":           "\x01\x00\x00\x00",
		"more than fits":       "\x01\x01\x00\x01x",
		"end with data":        "\x02\x00\x00\x01x",
		"data after the end":   "\x02\x00\x00\x00\x01\x00\x00\x01x",
		"end after the end":    "\x02\x00\x00\x00\x02\x00\x00\x00",
		"reset with data":      "\x03\x00\x00\x01x",
		"no reason":            "\x04\x00\x00\x00",
		"a reason without end": "\x04\xff\xff\xff",
	} {
		client, server := sessions(t)
		x, y := begin(t, client, server)
		s := server.NewStream(y)
		io.WriteString(x, bytes)
		s.SetReadDeadline(time.Now().Add(patience))
		got, err := io.ReadAll(s)
		if strings.HasSuffix(name, "after the end") {
			isClosed(t, s, true)
		} else if !errors.Is(err, profiles.ErrReset) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if _, err := s.Write([]byte("x")); !errors.Is(err, profiles.ErrReset) {
			t.Errorf("%s: write: %v", name, err)
		}
		if len(got) > 0 {
			t.Errorf("%s: read %q", name, got)
		}
	}
}

// TestIdleMemory: what a flow has grown while data moved it gives back when it is quiet.
func TestIdleMemory(t *testing.T) {
	const flows, burst = 50, 900 << 10
	client, server := sessions(t)
	heap := func() int {
		runtime.GC()
		runtime.GC() // pools keep what they have for one
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	before := heap()
	var far []*wire.Stream
	for range flows {
		a, b := flow(t, client, server)
		a.SetDeadline(time.Time{})
		b.SetDeadline(time.Time{})
		writes(t, a, string(make([]byte, burst)))
		far = append(far, b)
	}
	if grown := heap() - before; grown < flows*burst {
		t.Errorf("%d bytes wait for readers; want %d at least", grown, flows*burst)
	}
	for _, b := range far {
		if _, err := io.CopyN(io.Discard, b, burst); err != nil {
			t.Fatal(err)
		}
		go b.Read(make([]byte, 1))
	}
	var each int
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if each = (heap() - before) / flows; each < 16<<10 {
			t.Logf("%d bytes a flow, both ends", each)
			return
		}
	}
	t.Errorf("%d bytes a flow, both ends, after it was quiet", each)
}
