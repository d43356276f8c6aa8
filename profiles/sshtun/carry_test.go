package sshtun_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"sshbroker/profiles"
	"sshbroker/profiles/tuntest"
)

// carried is a stream to a TCP server of the test's, through a server in this process.
func carried(t *testing.T) (profiles.Stream, profiles.Carrier, *net.TCPConn) {
	t.Helper()
	_, p := tuntest.StartServer(t, nil)
	tr, err := connector(t).Connect(context.Background(), p, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, err := tr.Open(context.Background(), profiles.Destination{Host: "127.0.0.1", Port: uint16(l.Addr().(*net.TCPAddr).Port)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	far, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	far.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { far.Close() })
	return s, s.(profiles.Carrier), far
}

// TestTakeFrom sends pieces with every mixture of quiet moments between them.
func TestTakeFrom(t *testing.T) {
	s, c, far := carried(t)
	data := make([]byte, 1<<20)
	rand.Read(data)
	rest := data
	quiet := 0
	took := make(chan error, 1)
	go func() {
		took <- c.TakeFrom(func(patient bool) ([]byte, error) {
			if !patient && len(rest)%3 == 0 && quiet < 20 {
				quiet++
				return nil, nil
			}
			n := min(len(rest), 1+len(rest)%40000)
			piece := bytes.Clone(rest[:n])
			if rest = rest[n:]; n == 0 {
				return nil, io.EOF
			}
			return piece, nil
		})
		s.CloseWrite()
	}()
	got, err := io.ReadAll(far)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes arrived, %v", len(got), err)
	}
	if err := <-took; err != nil || quiet == 0 {
		t.Errorf("TakeFrom: %v after %d quiet moments", err, quiet)
	}
}

func TestTakeFromPassesErrorsOn(t *testing.T) {
	_, c, _ := carried(t)
	mine := errors.New("the program's")
	for _, after := range []int{0, 1} {
		n := 0
		err := c.TakeFrom(func(bool) ([]byte, error) {
			if n++; n > after {
				return nil, mine
			}
			return []byte("x"), nil
		})
		if err != mine {
			t.Errorf("after %d pieces: %v", after, err)
		}
	}
}

// TestTakeFromReleased resets a stream whose far end takes nothing.
func TestTakeFromReleased(t *testing.T) {
	s, c, _ := carried(t)
	took := make(chan error, 1)
	full := make(chan struct{})
	stall := time.AfterFunc(200*time.Millisecond, func() { close(full) }) // no event says that nothing moves
	go func() {
		took <- c.TakeFrom(func(bool) ([]byte, error) {
			stall.Reset(200 * time.Millisecond)
			return make([]byte, 32<<10), nil
		})
	}()
	<-full
	s.Reset()
	if err := <-took; !errors.Is(err, net.ErrClosed) {
		t.Errorf("TakeFrom: %v", err)
	}
}

func TestDeliverTo(t *testing.T) {
	_, c, far := carried(t)
	data := make([]byte, 3<<20)
	rand.Read(data)
	go func() {
		far.Write(data)
		far.CloseWrite()
	}()
	var got bytes.Buffer
	done := make(chan error, 2)
	c.DeliverTo(&got, func(err error) { done <- err })
	if err := <-done; err != nil || !bytes.Equal(got.Bytes(), data) {
		t.Errorf("%d bytes of %d delivered, %v", got.Len(), len(data), err)
	}
}

// TestDeliverToAfterRead loses nothing of what a Read has left over.
func TestDeliverToAfterRead(t *testing.T) {
	s, c, far := carried(t)
	far.Write([]byte("hello"))
	far.CloseWrite()
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	done := make(chan error, 2)
	c.DeliverTo(&got, func(err error) { done <- err })
	if err := <-done; err != nil || got.String() != "ello" {
		t.Errorf("delivered %q, %v", got.String(), err)
	}
}

// TestDeliverToReleased ends a stream on which nothing comes, and has done called
// exactly once.
func TestDeliverToReleased(t *testing.T) {
	for name, end := range map[string]func(profiles.Stream) error{"Reset": profiles.Stream.Reset, "Close": profiles.Stream.Close} {
		t.Run(name, func(t *testing.T) {
			s, c, far := carried(t)
			done := make(chan error, 2)
			c.DeliverTo(io.Discard, func(err error) { done <- err })
			end(s)
			if err := <-done; !errors.Is(err, net.ErrClosed) {
				t.Errorf("done with %v", err)
			}
			far.Close()
			c.DeliverTo(io.Discard, func(err error) { done <- err })
			if err := <-done; !errors.Is(err, net.ErrClosed) {
				t.Errorf("on a closed stream done with %v", err)
			}
			if len(done) != 0 {
				t.Error("done was called twice")
			}
		})
	}
}

// TestDeliverToKeepsTheWritersError tells it from the stream's.
func TestDeliverToKeepsTheWritersError(t *testing.T) {
	_, c, far := carried(t)
	far.Write([]byte("x"))
	done := make(chan error, 1)
	c.DeliverTo(failingWriter{}, func(err error) { done <- err })
	if err := <-done; err != io.ErrClosedPipe {
		t.Errorf("done with %v", err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
