package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sshbroker/broker/control"
	"sshbroker/profiles/proxy"
)

// join gives the broker far as one end of a flow. It closes far.
func (b *bench) join(far *os.File, args control.ConnectArgs) (rows chan control.ConnectRow, done chan error) {
	rows, done = make(chan control.ConnectRow, 4), make(chan error, 1)
	c := b.dial()
	b.t.Cleanup(func() { c.Close() })
	go func() {
		done <- c.Call(context.Background(), control.OpConnect, args, []*os.File{far}, func(m json.RawMessage) error {
			far.Close() // the broker's alone from now on
			var row control.ConnectRow
			err := json.Unmarshal(m, &row)
			rows <- row
			return err
		}, nil)
		far.Close()
	}()
	return rows, done
}

func fileOf(t *testing.T, c interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// A socket that is no end of a connection is refused: one that listens, one that never
// was connected, and one whose other end was reset before the broker got it.
func TestConnectByOtherSockets(t *testing.T) {
	b := begin(t, "", tunnel, nil)
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, far := pair()
	reset := fileOf(t, far)
	_ = near.SetLinger(0)
	near.Close()
	if _, err := io.ReadAll(far); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("%v", err)
	}
	far.Close()
	for name, f := range map[string]*os.File{"listens": fileOf(t, l), "unconnected": os.NewFile(uintptr(fd), "socket"), "reset": reset} {
		_, done := b.join(f, control.ConnectArgs{Host: "db.internal", Port: 5432})
		var failure *control.Error
		if err := within(t, done); !errors.As(err, &failure) || failure.Code != control.CodeBadRequest {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A broker that is to stop does not wait for the end of what clients have joined.
func TestStopWithConnect(t *testing.T) {
	b := begin(t, "", tunnel, nil)
	near, far := pair()
	defer near.Close()
	f := fileOf(t, far)
	far.Close()
	rows, _ := b.join(f, control.ConnectArgs{Host: "db.internal", Port: 5432})
	if !within(t, rows).Connected {
		t.Error("not connected")
	}
	b.Stop(0)
	if err := near.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(near); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after the stop: %v", err)
	}
	if r := b.records(1)[0]; r["reason"] != "shutdown" {
		t.Errorf("recorded %v", r)
	}
}

// Without a filter-engine, what the rules are to decide about is refused, also after a
// reload that has taken it away: it would go out in clear.
func TestJudgedWithoutRules(t *testing.T) {
	b := begin(t, "", tunnel, nil)
	row, err := one[control.ListenerRow](b, control.OpOpenListener, control.OpenListenerArgs{Type: "socks-proxy", Listen: ":0"})
	if err != nil {
		t.Fatal(err)
	}
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	b.write(``, noTunnels)
	b.reload()
	set, _ := proxy.Parse("socks5://" + row.Listen + "/")
	c, err := proxy.Dialer{Dial: (&net.Dialer{}).DialContext}.DialContext(t.Context(), set, "tcp", target.Addr().String())
	if err == nil {
		c.Close()
		t.Error("the listener carries")
	}
	near, far := pair()
	defer near.Close()
	f := fileOf(t, far)
	far.Close()
	_, port, _ := net.SplitHostPort(target.Addr().String())
	n, _ := strconv.Atoi(port)
	_, done := b.join(f, control.ConnectArgs{Host: "127.0.0.1", Port: uint16(n)})
	var failure *control.Error
	if err := within(t, done); !errors.As(err, &failure) || failure.Code != control.CodeRefused || !strings.Contains(failure.Message, "no filter-engine") {
		t.Errorf("%v", err)
	}
	for _, r := range b.records(2) {
		if r["reason"] != "blocked" {
			t.Errorf("recorded %v", r)
		}
	}
}
