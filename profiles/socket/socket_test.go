package socket

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// first is the size of a piece that more follows.
const first = 4 << 10

// connPair is a Conn whose handshake is over, and what its peer holds.
func connPair(t *testing.T) (*Conn, *net.TCPConn) {
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
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	peer.SetDeadline(time.Now().Add(20 * time.Second))
	w := New(c, func(n int) bool { return n == first })
	w.Settle()
	t.Cleanup(func() {
		peer.Close()
		w.Close()
		<-w.Ended()
	})
	return w, peer.(*net.TCPConn)
}

// TestPutsOff holds the first piece of a packet back for the rest of it, unless
// the sender happens to be awake.
func TestPutsOff(t *testing.T) {
	w, peer := connPair(t)
	begin := bytes.Repeat([]byte("a"), first)
	putOff := 0
	for i := range 50 {
		want := bytes.Clone(begin)
		w.Write(begin)
		w.sendMu.Lock()
		if len(w.waiting) > 0 && !w.sending {
			putOff++
		}
		w.sendMu.Unlock()
		if i%2 == 0 {
			want = append(want, "rest"...)
			w.Write([]byte("rest"))
		} else {
			w.Flush()
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(peer, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("got %d bytes, %v", len(got), err)
		}
	}
	if putOff == 0 {
		t.Error("no piece was put off")
	}
}

// TestKeepsOrder writes more than the kernel takes, in pieces of all sizes, with
// flushes by others in between, to a peer that reads late.
func TestKeepsOrder(t *testing.T) {
	w, peer := connPair(t)
	data := make([]byte, 32<<20)
	rand.Read(data)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				w.Flush()
			}
		}
	})
	wg.Go(func() {
		sizes := []int{1, 5, first, 28 << 10, first, 100, 64 << 10}
		for i, rest := 0, data; len(rest) > 0; i++ {
			n := min(sizes[i%len(sizes)], len(rest))
			if m, err := w.Write(rest[:n]); m != n || err != nil {
				t.Errorf("wrote %d of %d, %v", m, n, err)
				return
			}
			rest = rest[n:]
		}
	})
	got := make([]byte, len(data))
	_, err := io.ReadFull(peer, got)
	close(stop)
	wg.Wait()
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("the peer got something else, %v", err)
	}
	if sent := w.Sent(); sent != uint64(len(data)) {
		t.Errorf("counted %d bytes of %d", sent, len(data))
	}
}

// TestClosesAfterTheRest sends what is waiting before it closes.
func TestClosesAfterTheRest(t *testing.T) {
	w, peer := connPair(t)
	data := make([]byte, 8<<20)
	w.Write(data[:100])
	w.Write(data[100:])
	w.Close()
	if n, err := io.Copy(io.Discard, peer); n != int64(len(data)) || err != nil {
		t.Errorf("%d bytes of %d arrived, %v", n, len(data), err)
	}
	if _, err := w.Write(data[:1]); err == nil {
		t.Error("a closed Conn takes data")
	}
}

// TestFails finds out that the peer is gone with the bytes that are left.
func TestFails(t *testing.T) {
	w, peer := connPair(t)
	peer.SetLinger(0)
	peer.Close()
	for end := time.Now().Add(20 * time.Second); ; {
		if _, err := w.Write([]byte("x")); err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("writes to a peer that is gone succeed")
		}
		time.Sleep(time.Millisecond) // the reset has no other sign
	}
	<-w.Ended()
	if w.Failure() == nil {
		t.Error("no failure is told")
	}
}
