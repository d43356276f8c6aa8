package wire_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"runtime"
	"testing"
	"time"

	"sshbroker/profiles"
	"sshbroker/profiles/tlstun/wire"
)

// Who asks for signs of life without end and reads no answer is got rid of, before what
// waits for it takes all memory.
func TestPingFlood(t *testing.T) {
	a, b := net.Pipe() // takes nothing that is not read
	server, err := wire.Server(b)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	before := runtime.NumGoroutine()
	ping := make([]byte, 12)
	ping[1] = 2
	binary.BigEndian.PutUint16(ping[2:], 1)
	flood := bytes.Repeat(ping, 1000)
	a.SetDeadline(time.Now().Add(patience))
	for range 100 {
		if _, err := a.Write(flood); err != nil {
			break
		}
	}
	select {
	case <-server.Done():
	case <-time.After(patience):
		t.Error("the session goes on")
	}
	if n := runtime.NumGoroutine() - before; n > 1000 {
		t.Errorf("%d goroutines wait", n)
	}
	if err := server.Err(); !errors.Is(err, profiles.ErrLost) {
		t.Errorf("got %v", err)
	}
	a.Close()
}

// Who reads the answers may ask as often as it likes, between data of any size.
func TestPings(t *testing.T) {
	client, server := sessions(t)
	a, b := flow(t, client, server)
	go func() {
		for n := range 200 {
			a.Write(bytes.Repeat([]byte{2}, 1+997*n%40_000))
		}
		a.CloseWrite()
	}()
	go func() {
		for range 1000 {
			client.Ask()
		}
		b.CloseWrite()
	}()
	for _, s := range []*wire.Stream{b, a} {
		if _, err := s.WriteTo(discard{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := server.Err(); err != nil {
		t.Error(err)
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
