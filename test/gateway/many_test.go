package gateway

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sshbroker/profiles"
)

// mostPerFlow is what an idle flow may cost the gateway, in KiB, with its two sockets'
// share of the process.
const mostPerFlow = 40

// Ten thousand flows over one gateway: all of them carry, and what one costs is stated.
func TestManyFlows(t *testing.T) {
	flows := 1000
	if os.Getenv("SSHBROKER_LONG") == "1" {
		flows = 10_000
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur < uint64(flows+500) {
		t.Skipf("%d descriptors are too few for %d flows", limit.Cur, flows)
	}
	addr := serve(t, func(c *net.TCPConn) { // io.Copy would keep a pipe for each
		io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 4<<10))
	})
	w := newWorld(t, quiet, collection)
	transport, err := connector(t).Connect(t.Context(), w.profile(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer transport.Close()
	dst := profiles.Destination{Host: "127.0.0.1", Port: uint16(addr.(*net.TCPAddr).Port)}
	before := w.settledMemory()

	all := make([]profiles.Stream, flows)
	started := time.Now()
	var opening sync.WaitGroup
	for worker := range 16 {
		opening.Go(func() {
			for i := worker; i < flows; i += 16 {
				s, err := transport.Open(t.Context(), dst)
				if err != nil {
					t.Errorf("flow %d: %v", i, err)
					return
				}
				s.SetDeadline(time.Now().Add(2 * time.Minute))
				all[i] = s
			}
		})
	}
	opening.Wait()
	if t.Failed() {
		t.FailNow()
	}
	opened := time.Since(started)
	idle := w.settledMemory()
	// Each carries, with all the others open.
	for range 2 {
		var carrying sync.WaitGroup
		for worker := range 16 {
			carrying.Go(func() {
				want, got := make([]byte, 4<<10), make([]byte, 4<<10)
				for i := worker; i < flows; i += 16 {
					copy(want, strconv.Itoa(i))
					if _, err := all[i].Write(want); err != nil {
						t.Errorf("flow %d: %v", i, err)
						return
					}
					if _, err := io.ReadFull(all[i], got); err != nil || !bytes.Equal(got, want) {
						t.Errorf("flow %d: %v", i, err)
						return
					}
				}
			})
		}
		carrying.Wait()
	}
	used := w.settledMemory()
	t.Logf("%d flows opened in %v; %.1f KiB of the gateway's memory for each before data, %.1f KiB idle after it (%d KiB without any)",
		flows, opened.Round(time.Millisecond), float64(idle-before)/float64(flows), float64(used-before)/float64(flows), before)
	if per := float64(used-before) / float64(flows); flows >= 10_000 && per > mostPerFlow {
		t.Errorf("%.1f KiB for each flow, %d are the most", per, mostPerFlow)
	}
	for _, s := range all {
		s.Close()
	}
	w.awaitFlows(0)
	t.Logf("%d KiB behind them", w.settledMemory())
}

// memory is what the gateway has resident, in KiB.
func (w *world) memory() int {
	w.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.cmd.Process.Pid))
	if err != nil {
		w.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// settledMemory waits until the gateway has given back what it does not need: it does
// when it has been idle for a while.
func (w *world) settledMemory() int {
	w.t.Helper()
	least, since := w.memory(), time.Now()
	for time.Since(since) < 8*time.Second {
		<-time.After(200 * time.Millisecond)
		if now := w.memory(); now < least {
			least, since = now, time.Now()
		}
	}
	return w.memory()
}
