package sshtun

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// wirePair is a wire whose handshake is over, and what its peer holds.
func wirePair(t *testing.T) (*wire, *net.TCPConn) {
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
	w := newWire(c)
	w.settle()
	t.Cleanup(func() {
		peer.Close()
		w.Close()
		<-w.ended
	})
	return w, peer.(*net.TCPConn)
}

// TestWirePutsOff holds the first piece of a packet back for the rest of it, unless
// the sender happens to be awake.
func TestWirePutsOff(t *testing.T) {
	w, peer := wirePair(t)
	first := bytes.Repeat([]byte("a"), libraryBuffer)
	putOff := 0
	for i := range 50 {
		want := bytes.Clone(first)
		w.Write(first)
		w.sendMu.Lock()
		if len(w.waiting) > 0 && !w.sending {
			putOff++
		}
		w.sendMu.Unlock()
		if i%2 == 0 {
			want = append(want, "rest"...)
			w.Write([]byte("rest"))
		} else {
			w.flush()
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

// TestWireKeepsOrder writes more than the kernel takes, in pieces of all sizes, with
// flushes by others in between, to a peer that reads late.
func TestWireKeepsOrder(t *testing.T) {
	w, peer := wirePair(t)
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
				w.flush()
			}
		}
	})
	wg.Go(func() {
		sizes := []int{1, 5, libraryBuffer, 28 << 10, libraryBuffer, 100, 64 << 10}
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
	if sent := w.sent.Load(); sent != uint64(len(data)) {
		t.Errorf("counted %d bytes of %d", sent, len(data))
	}
}

// TestWireClosesAfterTheRest sends what is waiting before it closes.
func TestWireClosesAfterTheRest(t *testing.T) {
	w, peer := wirePair(t)
	data := make([]byte, 8<<20)
	w.Write(data[:100])
	w.Write(data[100:])
	w.Close()
	if n, err := io.Copy(io.Discard, peer); n != int64(len(data)) || err != nil {
		t.Errorf("%d bytes of %d arrived, %v", n, len(data), err)
	}
	if _, err := w.Write(data[:1]); err == nil {
		t.Error("a closed wire takes data")
	}
}

// TestWireFails finds out that the peer is gone with the bytes that are left.
func TestWireFails(t *testing.T) {
	w, peer := wirePair(t)
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
	<-w.ended
	if w.failure() == nil {
		t.Error("no failure is told")
	}
}
