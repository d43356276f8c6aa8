package relay

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// relayChild makes this test binary a process that does nothing but relay between
// two listeners, so that its own I/O accounting can be read.
const relayChild = "RELAY_TEST_CHILD"

// runRelayChild relays one flow from a listener to the address given, then waits for
// its standard input to end.
func runRelayChild() int {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return 2
	}
	fmt.Println(l.Addr())
	prog, err := l.AcceptTCP()
	if err != nil {
		return 2
	}
	far, err := net.Dial("tcp", os.Getenv(relayChild))
	if err != nil {
		return 2
	}
	var r Relay
	res := r.Pipe(context.Background(), prog, TCP{far.(*net.TCPConn)}, nil)
	fmt.Println(res.Up.Bytes, res.Down.Bytes)
	io.Copy(io.Discard, os.Stdin)
	return 0
}

// The kernel adds to rchar what read() and recv() bring to user space, but not what
// splice moves.
func TestSpliceMovesInTheKernel(t *testing.T) {
	const size = 64 << 20
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), relayChild+"="+l.Addr().String())
	child.Stderr = os.Stderr
	in, _ := child.StdinPipe()
	out, _ := child.StdoutPipe()
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer in.Close()
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("the child did not start")
	}
	app, err := net.Dial("tcp", lines.Text())
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	server, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	before := readChars(t, child.Process.Pid)
	var wg sync.WaitGroup
	for _, c := range []struct{ from, to *net.TCPConn }{{app.(*net.TCPConn), server}, {server, app.(*net.TCPConn)}} {
		wg.Go(func() {
			c.from.Write(make([]byte, size))
			c.from.CloseWrite()
		})
		wg.Go(func() {
			if n, err := io.Copy(io.Discard, struct{ io.Reader }{c.to}); n != size || err != nil {
				t.Errorf("got %d bytes, %v", n, err)
			}
		})
	}
	wg.Wait()
	if !lines.Scan() || lines.Text() != fmt.Sprintf("%d %d", size, size) {
		t.Errorf("child counted %q", lines.Text())
	}
	if read := readChars(t, child.Process.Pid) - before; read > size/64 {
		t.Errorf("the relay read %d bytes into user space of %d moved", read, 2*size)
	}
}

func readChars(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("no I/O accounting in this kernel: ", err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		if v, ok := strings.CutPrefix(line, "rchar: "); ok {
			n, err := strconv.Atoi(v)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no rchar in %q", text)
	return 0
}

// Where no pipe can be made the relay copies.
func TestNoDescriptorsLeft(t *testing.T) {
	j := join(t, new(Relay), "tcp")
	send(t, j.app, "first")
	receive(t, j.server, "first")
	k := join(t, new(Relay), "tcp") // its pool is empty
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	low := old
	low.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	send(t, k.app, "copied")
	receive(t, k.server, "copied")
	send(t, k.server, "back")
	receive(t, k.app, "back")
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	shut(t, k.app)
	receiveEOF(t, k.server)
	shut(t, k.server)
	receiveEOF(t, k.app)
	if res := k.want(EOF, EOF); res.Up.Bytes != 6 || res.Down.Bytes != 4 {
		t.Errorf("bytes %d, %d", res.Up.Bytes, res.Down.Bytes)
	}
	j.app.Close()
	j.server.Close()
	j.result()
}

// Idle flows hold neither pipes nor buffers, also after they have moved data.
func TestIdleFlowsAreSmall(t *testing.T) {
	const flows = 400
	for _, kind := range []string{"tcp", "stream"} {
		t.Run(kind, func(t *testing.T) {
			r := new(Relay)
			defer r.Close()
			all := make([]*joined, flows)
			ends := openDescriptors(t)
			start := memory()
			for i := range all {
				all[i] = join(t, r, kind)
			}
			for _, j := range all {
				send(t, j.app, "x")
				receive(t, j.server, "x")
				send(t, j.server, "y")
				receive(t, j.app, "y")
			}
			if kind == "stream" {
				time.Sleep(quiet + quiet/2) // its large buffer is given up only then
			}
			if extra := openDescriptors(t) - ends - 4*flows; extra > 2*idlePipes {
				t.Errorf("%d descriptors beyond the flows' own", extra)
			}
			each := (memory() - start) / flows
			t.Logf("%d bytes a flow, both outer ends included", each)
			if each > bufferSize/2 {
				t.Errorf("an idle flow holds %d bytes", each)
			}
			for _, j := range all {
				j.app.Close()
				j.server.Close()
			}
			for _, j := range all {
				j.result()
			}
		})
	}
}

// memory is what the heap and the stacks hold after two collections, which empty the
// pools.
func memory() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	// Descriptors beyond this are not in use by any test.
	n := 0
	for fd := range 8192 {
		if _, err := unix.FcntlInt(uintptr(fd), syscall.F_GETFD, 0); err == nil {
			n++
		}
	}
	return n
}
