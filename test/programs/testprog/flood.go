package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"time"
)

// runFlood moves bulk data over several connections at once.
//
//	testprog flood [-up BYTES] [-down BYTES] [-streams N] [-sum=false] ADDRESS
//
// Each stream is a connection of its own. Its receiving side takes the checksum
// of what arrives, or with -sum=false only counts it, which costs less than
// carrying it. It prints "up|down STREAMS BYTES SECONDS MB/s", MB being 10^6.
func runFlood(ctx context.Context, args []string, _ io.Reader, stdout io.Writer) error {
	flags := flag.NewFlagSet("flood", flag.ContinueOnError)
	up := flags.Int64("up", 0, "bytes to send on each stream")
	down := flags.Int64("down", 0, "bytes to fetch on each stream")
	sum := flags.Bool("sum", true, "compare checksums")
	streams := flags.Int("streams", 1, "connections at once, each way")
	if err := flags.Parse(args); err != nil || flags.NArg() != 1 || *up == 0 && *down == 0 {
		return errors.Join(errUsage, err)
	}
	var upSum, downSum string
	upMode := "drain"
	if *sum {
		upMode = "sink"
		// Taken before the clock starts.
		upSum, downSum = patternSum(*up), patternSum(*down)
	}
	type result struct {
		way  string
		took time.Duration
		err  error
	}
	results := make(chan result)
	started := 0
	start := func(way string, n int64, want string) {
		if n == 0 {
			return
		}
		for range *streams {
			started++
			go func() {
				begin := time.Now()
				err := stream(ctx, flags.Arg(0), way, n, want)
				results <- result{way, time.Since(begin), err}
			}()
		}
	}
	start(upMode, *up, upSum)
	start("source", *down, downSum)
	longest := map[string]time.Duration{}
	var errs []error
	for range started {
		r := <-results
		longest[r.way] = max(longest[r.way], r.took)
		if r.err != nil {
			errs = append(errs, r.err)
		}
	}
	report := func(name, way string, n int64) {
		if n > 0 {
			seconds := longest[way].Seconds()
			total := n * int64(*streams)
			fmt.Fprintf(stdout, "%s %d %d %.3f %.1f\n", name, *streams, total, seconds, float64(total)/seconds/1e6)
		}
	}
	report("up", upMode, *up)
	report("down", "source", *down)
	return errors.Join(errs...)
}

// stream is one connection of a flood. Its mode is "sink" or "drain", where it
// sends, or "source", where it receives; want is the checksum, "" for any.
func stream(ctx context.Context, address, mode string, n int64, want string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("flood %s: %w", mode, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	c := &client{TCPConn: conn.(*net.TCPConn), in: bufio.NewReaderSize(conn, blockSize), n: n, want: want}
	switch mode {
	case "source":
		if err = c.ask(mode, n); err == nil {
			err = c.receive()
		}
	default:
		if err = c.ask(mode); err == nil {
			if err = c.send(); err == nil {
				err = c.receiveSum()
			}
		}
	}
	if err != nil {
		return fmt.Errorf("flood %s: %w", mode, err)
	}
	return nil
}
