package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// runLoad makes load for measurements. It reads jobs from standard input, a line
// each, does one after the other against the target at ADDRESS, and answers each
// with a line of JSON and the line "end NUMBER", jobs being counted from 1. GREETER
// is where the same target speaks first.
//
//	testprog load ADDRESS GREETER
//
//	up STREAMS MS        sends for MS milliseconds on each of STREAMS connections, until
//	                     the target has told how much of it came: bytes, seconds
//	down STREAMS MS      the other direction: bytes, seconds
//	echo MS              one byte there and back on one connection, again and again:
//	                     count, p50, p99
//	beside up|down MS BEFORE   the same on a connection that was used for BEFORE
//	                     milliseconds when another one begins to send or to fetch as much
//	                     as it can, as up and down do: count, p50, p95, p99, and bytes and
//	                     seconds of the other
//	connect WORKERS MS   connects, has a byte echoed, closes, again and again by each
//	                     worker: count, seconds, p50 and p99 up to the byte
//	greeted WORKERS MS   the same with a target that speaks first
//	hold N               opens N connections, has a byte echoed on each, and keeps them
//	touch                has one more byte echoed on each of them
//	release              closes what hold opened
//
// These go to addresses of their own, the first three by plain system calls, to a target
// that serves so too:
//
//	turns MS ADDRESS         one byte there and back, again and again: count, seconds, p50
//	                         and p99 of one turn, taken by the batch
//	opens MS ADDRESS         connects, waits for the target's end, again and again: count,
//	                         seconds, p50 and p99 of connect(2)
//	paced EVERY MS ADDRESS   connects every EVERY milliseconds: count, p50 and p99 of
//	                         connect(2)
//	rush RATE MS ADDRESS...  begins RATE connections a second, at the addresses in turn, has
//	                         a byte echoed and closes: seconds, outcomes by errno, count
//	                         and percentiles of those that were echoed
//
// Percentiles are in microseconds. A job that fails answers with error alone.
func runLoad(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	if err := flags.Parse(args); err != nil || flags.NArg() != 2 {
		return errors.Join(errUsage, err)
	}
	l := &loader{address: flags.Arg(0), greeter: flags.Arg(1)}
	defer l.release()
	jobs := bufio.NewScanner(stdin)
	for number := 1; jobs.Scan(); number++ {
		r, err := l.do(ctx, jobs.Text())
		if err != nil {
			r = loadResult{Error: fmt.Sprintf("%s: %v", jobs.Text(), err)}
		}
		line, err := json.Marshal(r)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(stdout, "%s\nend %d\n", line, number); err != nil {
			return err
		}
	}
	return jobs.Err()
}

type loadResult struct {
	Count   int64   `json:"count,omitempty"`
	Bytes   int64   `json:"bytes,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
	P50     float64 `json:"p50,omitempty"`
	P95     float64 `json:"p95,omitempty"`
	P99     float64 `json:"p99,omitempty"`
	Error   string  `json:"error,omitempty"`

	Outcomes map[string]int64 `json:"outcomes,omitempty"`
}

type loader struct {
	address, greeter string
	held             []net.Conn
}

func (l *loader) do(ctx context.Context, job string) (loadResult, error) {
	var kind string
	var a, b int
	n, _ := fmt.Sscan(job, &kind, &a, &b)
	if rest, ok := strings.CutPrefix(job, "beside "); ok {
		return l.beside(ctx, rest)
	}
	limit := func(ms int) time.Duration { return time.Duration(ms) * time.Millisecond }
	switch {
	case kind == "up" && n == 3 && a > 0:
		return l.bulk(ctx, a, func(c *net.TCPConn) (int64, error) { return l.up(c, limit(b)) })
	case kind == "down" && n == 3 && a > 0:
		return l.bulk(ctx, a, func(c *net.TCPConn) (int64, error) { return l.down(c, limit(b)) })
	case kind == "echo" && n == 2:
		return l.echo(ctx, limit(a))
	case kind == "connect" && n == 3 && a > 0:
		return connect(a, limit(b), func() (net.Conn, error) { return echoed(ctx, l.address) })
	case kind == "greeted" && n == 3 && a > 0:
		return connect(a, limit(b), func() (net.Conn, error) { return l.greeted(ctx) })
	case kind == "hold" && n == 2:
		return l.hold(ctx, a)
	case kind == "touch" && n == 1:
		return l.touch()
	case kind == "release" && n == 1:
		return l.release(), nil
	}
	return l.elsewhere(ctx, strings.Fields(job))
}

// elsewhere does the jobs that have addresses of their own.
func (l *loader) elsewhere(ctx context.Context, job []string) (loadResult, error) {
	numbers := map[string]int{"turns": 1, "opens": 1, "paced": 2, "rush": 2}
	if len(job) == 0 || numbers[job[0]] == 0 || len(job) < 2+numbers[job[0]] {
		return loadResult{}, errUsage
	}
	var n [2]int
	for i := range numbers[job[0]] {
		var err error
		if n[i], err = strconv.Atoi(job[1+i]); err != nil || n[i] <= 0 {
			return loadResult{}, errUsage
		}
	}
	addresses := job[1+numbers[job[0]]:]
	to, err := netip.ParseAddrPort(addresses[0])
	if err != nil {
		return loadResult{}, err
	}
	const ms = time.Millisecond
	switch job[0] {
	case "turns":
		return turns(time.Duration(n[0])*ms, to)
	case "opens":
		return opens(time.Duration(n[0])*ms, to)
	case "paced":
		return paced(time.Duration(n[0])*ms, time.Duration(n[1])*ms, to)
	default:
		return l.rush(ctx, n[0], time.Duration(n[1])*ms, addresses), nil
	}
}

func dial(ctx context.Context, address string) (*net.TCPConn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// echoed returns a connection on which a byte went there and back.
func echoed(ctx context.Context, address string) (net.Conn, error) {
	c, err := dial(ctx, address)
	if err != nil {
		return nil, err
	}
	// In one write: ssh(1) leaves Nagle's algorithm on, by which a second one right
	// behind the first waits for 40 ms.
	if _, err = c.Write(append(request{kind: requestEcho}.bytes(), '.')); err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// greeted returns a connection from which the greeting was read.
func (l *loader) greeted(ctx context.Context) (net.Conn, error) {
	c, err := dial(ctx, l.greeter)
	if err != nil {
		return nil, err
	}
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil || b[0] != greeting {
		c.Close()
		return nil, fmt.Errorf("greeting %q: %w", b, cmp.Or(err, errDiffers))
	}
	return c, nil
}

// bulk runs one way on several connections. The clock starts when all are open.
func (l *loader) bulk(ctx context.Context, streams int, move func(*net.TCPConn) (int64, error)) (loadResult, error) {
	conns := make([]*net.TCPConn, streams)
	for i := range conns {
		c, err := dial(ctx, l.address)
		if err != nil {
			return loadResult{}, err
		}
		defer c.Close()
		conns[i] = c
	}
	var wg sync.WaitGroup
	moved := make([]int64, streams)
	errs := make([]error, streams)
	begin := time.Now()
	for i, c := range conns {
		wg.Go(func() { moved[i], errs[i] = move(c) })
	}
	wg.Wait()
	r := loadResult{Seconds: time.Since(begin).Seconds()}
	for _, n := range moved {
		r.Bytes += n
	}
	return r, errors.Join(errs...)
}

func (l *loader) up(c *net.TCPConn, limit time.Duration) (int64, error) {
	if _, err := c.Write(request{kind: requestUp}.bytes()); err != nil {
		return 0, err
	}
	n, err := pour(c, limit)
	if err != nil {
		return n, err
	}
	if err := c.CloseWrite(); err != nil {
		return n, err
	}
	var count [8]byte
	if _, err := io.ReadFull(c, count[:]); err != nil {
		return n, err
	}
	if got := binary.BigEndian.Uint64(count[:]); got != uint64(n) {
		return n, fmt.Errorf("the target got %d bytes of %d: %w", got, n, errDiffers)
	}
	return n, nil
}

func (l *loader) down(c *net.TCPConn, limit time.Duration) (int64, error) {
	if _, err := c.Write(request{requestDown, uint64(limit.Milliseconds())}.bytes()); err != nil {
		return 0, err
	}
	return discard(c)
}

func (l *loader) echo(ctx context.Context, limit time.Duration) (loadResult, error) {
	c, err := echoed(ctx, l.address)
	if err != nil {
		return loadResult{}, err
	}
	defer c.Close()
	took, err := echoes(c, func(time.Time) bool { return true }, time.Now().Add(limit))
	return summary(took), err
}

// beside answers how an echo fares beside a transfer. What the echo took while the
// transfer had not moved anything, or not any more, does not count.
func (l *loader) beside(ctx context.Context, job string) (loadResult, error) {
	var direction string
	var ms, before int
	if n, _ := fmt.Sscan(job, &direction, &ms, &before); n != 3 || ms <= 0 || before <= 0 || direction != "up" && direction != "down" {
		return loadResult{}, errUsage
	}
	c, err := echoed(ctx, l.address)
	if err != nil {
		return loadResult{}, err
	}
	defer c.Close()
	if _, err := echoes(c, func(time.Time) bool { return true }, time.Now().Add(time.Duration(before)*time.Millisecond)); err != nil {
		return loadResult{}, err
	}
	other, err := dial(ctx, l.address)
	if err != nil {
		return loadResult{}, err
	}
	defer other.Close()
	begin := time.Now()
	over := make(chan loadResult, 1)
	failed := make(chan error, 1)
	go func() {
		move := l.up
		if direction == "down" {
			move = l.down
		}
		n, err := move(other, time.Duration(ms)*time.Millisecond)
		over <- loadResult{Bytes: n, Seconds: time.Since(begin).Seconds()}
		failed <- err
	}()
	// The first tenth is the transfer's own beginning.
	end := begin.Add(time.Duration(ms) * time.Millisecond)
	took, err := echoes(c, func(at time.Time) bool { return at.Sub(begin) > end.Sub(begin)/10 }, end)
	if err != nil {
		return loadResult{}, err
	}
	moved, err := <-over, <-failed
	if err == nil && len(took) == 0 {
		err = errors.New("no echo came back in that time")
	}
	r := summary(took)
	r.Bytes, r.Seconds = moved.Bytes, moved.Seconds
	return r, err
}

// echoes has one byte echoed again and again until end, and returns how long those took
// that counts says yes to when they begin.
func echoes(c net.Conn, counts func(time.Time) bool, end time.Time) (took []time.Duration, err error) {
	for {
		begin := time.Now()
		if begin.After(end) {
			return took, nil
		}
		if err := roundTrip(c); err != nil {
			return nil, err
		}
		if counts(begin) {
			took = append(took, time.Since(begin))
		}
	}
}

func roundTrip(c net.Conn) error {
	b := [1]byte{'.'}
	if _, err := c.Write(b[:]); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b[:])
	return err
}

// connect has workers open one connection after the other.
func connect(workers int, limit time.Duration, open func() (net.Conn, error)) (loadResult, error) {
	var wg sync.WaitGroup
	all := make([][]time.Duration, workers)
	errs := make([]error, workers)
	begin := time.Now()
	end := begin.Add(limit)
	for i := range workers {
		wg.Go(func() {
			for {
				start := time.Now()
				if start.After(end) {
					return
				}
				c, err := open()
				if err != nil {
					errs[i] = err
					return
				}
				all[i] = append(all[i], time.Since(start))
				c.Close()
			}
		})
	}
	wg.Wait()
	r := summary(slices.Concat(all...))
	r.Seconds = time.Since(begin).Seconds()
	return r, errors.Join(errs...)
}

// summary counts and gives the percentiles.
func summary(took []time.Duration) loadResult {
	if len(took) == 0 {
		return loadResult{}
	}
	slices.Sort(took)
	at := func(percent int) float64 {
		return float64(took[min(len(took)*percent/100, len(took)-1)].Nanoseconds()) / 1e3
	}
	return loadResult{Count: int64(len(took)), P50: at(50), P95: at(95), P99: at(99)}
}

func (l *loader) hold(ctx context.Context, n int) (loadResult, error) {
	for range n {
		c, err := echoed(ctx, l.address)
		if err != nil {
			return loadResult{}, fmt.Errorf("connection %d: %w", len(l.held)+1, err)
		}
		l.held = append(l.held, c)
	}
	return loadResult{Count: int64(len(l.held))}, nil
}

func (l *loader) release() loadResult {
	r := loadResult{Count: int64(len(l.held))}
	for _, c := range l.held {
		c.Close()
	}
	l.held = nil
	return r
}
