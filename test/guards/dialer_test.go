package guards

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sshbroker/test/netns"
)

// dialerEnv makes the test binary a user's program that connects as it is told.
const dialerEnv = "GUARDS_TEST_DIALER"

const ready = "ready"

// dialAll reads "NUMBER ADDRESS" to connect, "NUMBER say TEXT" and "NUMBER close" from
// standard input. Each is answered by a line that ends with "<NUMBER.ANSWER>".
func dialAll() {
	fmt.Println(ready)
	flows := map[string]chan string{}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		number, what, _ := strings.Cut(in.Text(), " ")
		orders := flows[number]
		if orders == nil {
			orders = make(chan string, 8)
			flows[number] = orders
			go serveFlow(number, what, orders)
			continue
		}
		orders <- what
	}
}

func serveFlow(number, address string, orders <-chan string) {
	answers := 0
	answer := func(format string, args ...any) {
		answers++
		fmt.Printf("%s <%s.%d>\n", fmt.Sprintf(format, args...), number, answers)
	}
	ctx, cancel := context.WithCancel(context.Background())
	type dialed struct {
		c   net.Conn
		err error
	}
	done := make(chan dialed, 1)
	go func() {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		done <- dialed{c, err}
	}()
	var d dialed
	select {
	case d = <-done:
	case <-orders: // only to close makes sense now
		cancel()
		d = <-done
	}
	cancel()
	if d.err != nil {
		answer("%s", nameOf(d.err))
		return
	}
	defer d.c.Close()
	answer("connected")
	replies := bufio.NewReader(d.c)
	for order := range orders {
		text, say := strings.CutPrefix(order, "say ")
		if !say {
			return
		}
		_, err := fmt.Fprintln(d.c, text)
		var reply string
		if err == nil {
			reply, err = replies.ReadString('\n')
		}
		if err != nil {
			answer("%s", nameOf(err))
			return
		}
		answer("%s", strings.TrimSpace(reply))
	}
}

func nameOf(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// dialer is that program, run by somebody.
type dialer struct {
	*netns.Process
	in io.WriteCloser

	mu   sync.Mutex
	last int
}

// startDialer runs it as c says, but for the input.
func (w *world) startDialer(t *testing.T, c netns.Cmd) *dialer {
	t.Helper()
	r, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w.t.Cleanup(func() { in.Close() })
	c.Args, c.Env, c.Stdin, c.Limit = append(c.Args, w.program), append(c.Env, dialerEnv+"=1"), r, -1
	d := &dialer{Process: w.Client.Start(w.t, c), in: in}
	r.Close()
	d.WaitFor(t, ready) // in a capture its rules are in force then
	return d
}

// stop ends it and waits for its end.
func (d *dialer) stop(t *testing.T) {
	t.Helper()
	d.in.Close()
	d.Wait(t)
}

func (d *dialer) order(t *testing.T, format string, args ...any) {
	t.Helper()
	if _, err := fmt.Fprintf(d.in, format+"\n", args...); err != nil {
		t.Fatal(err)
	}
}

// flow is one connection, or an attempt to make one.
type flow struct {
	d       *dialer
	number  int
	to      string
	answers int // asked for so far
}

// dial begins to connect.
func (d *dialer) dial(t *testing.T, address string) *flow {
	t.Helper()
	d.mu.Lock()
	d.last++
	f := &flow{d: d, number: d.last, to: address, answers: 1}
	d.mu.Unlock()
	d.order(t, "%d %s", f.number, address)
	return f
}

// answered tells whether the last order has been carried out.
func (f *flow) answered() bool { return strings.Contains(f.d.Stdout(), f.token()) }

func (f *flow) token() string { return fmt.Sprintf(" <%d.%d>\n", f.number, f.answers) }

// answer waits for what became of the last order.
func (f *flow) answer(t *testing.T) string {
	t.Helper()
	before, _, _ := strings.Cut(f.d.WaitFor(t, f.token()), f.token())
	return before[strings.LastIndex(before, "\n")+1:]
}

// say sends a text and returns what came back, "LOCAL REMOTE TEXT" as the far end has it.
func (f *flow) say(t *testing.T, text string) string {
	t.Helper()
	f.answers++
	f.d.order(t, "%d say %s", f.number, text)
	return f.answer(t)
}

// close closes the connection, or gives up.
func (f *flow) close(t *testing.T) {
	t.Helper()
	f.d.order(t, "%d close", f.number)
}
