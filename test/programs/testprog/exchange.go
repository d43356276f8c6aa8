package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"
	"time"
)

// runExchange is the client of serve: it asks for a behaviour and checks that
// it sees exactly that, end of stream and reset included.
//
//	testprog exchange [-greet] [-n BYTES] [-ms MS] MODE ADDRESS
//
// Modes are those of serve. It prints "ok MODE" and what it measured. Three more
// are about how a connection ends:
//
//	await   asks what -ask says (with echo, sees one byte come back), prints
//	        "established", reads to the end and prints "ended after N bytes: HOW",
//	        HOW being EOF or the name of the errno. With -write it then writes until
//	        that fails and prints "write: HOW". With -nudge it sends a byte for each
//	        line of standard input, prints "answered" for what comes, and ends its
//	        direction where the input ends
//	abort   asks for the pattern without an end, reads BYTES of it and resets
//	unread  asks for the pattern without an end, prints "established" and reads
//	        nothing until standard input ends
func runExchange(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	flags := flag.NewFlagSet("exchange", flag.ContinueOnError)
	greet := flags.Bool("greet", false, "expect the server to speak first")
	n := flags.Int64("n", 1<<20, "bytes of the pattern in each direction that has any")
	ms := flags.Int("ms", 0, "milliseconds, for the modes that wait")
	nudge := flags.Bool("nudge", false, "with await: send a byte for each line of standard input")
	limit := flags.Duration("timeout", time.Minute, "give up after")
	wish := flags.String("ask", "echo", "with await: what to ask for")
	write := flags.Bool("write", false, "with await: write after the end")
	if err := flags.Parse(args); err != nil || flags.NArg() != 2 {
		return errors.Join(errUsage, err)
	}
	mode, address := flags.Arg(0), flags.Arg(1)
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	started := time.Now()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("%s: %w", mode, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	c := &client{TCPConn: conn.(*net.TCPConn), in: bufio.NewReaderSize(conn, blockSize), n: *n, ms: *ms, want: patternSum(*n)}
	if *greet {
		if line, err := c.in.ReadString('\n'); err != nil || line != banner {
			return fmt.Errorf("greeting %q: %w", line, errors.Join(errDiffers, err))
		}
	}
	switch mode {
	case "await":
		if !*nudge {
			stdin = nil
		}
		err = c.await(*wish, *write, stdin, stdout)
	case "abort":
		err = c.abort()
	case "unread":
		err = c.unread(stdin, stdout)
	default:
		err = c.exchange(mode)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", mode, err)
	}
	_, err = fmt.Fprintf(stdout, "ok %s %d bytes %.3f s\n", mode, *n, time.Since(started).Seconds())
	return err
}

var errDiffers = errors.New("not what was expected")

type client struct {
	*net.TCPConn
	in   *bufio.Reader
	n    int64
	ms   int
	want string // checksum of n bytes, as tally.String has it; "" counts only
}

func (c *client) exchange(mode string) error {
	switch mode {
	case "echo", "delay":
		if err := c.ask(mode, int64(c.ms)); err != nil {
			return err
		}
		sent := make(chan error, 1)
		go func() { sent <- c.send() }()
		return errors.Join(c.receive(), <-sent)
	case "sink":
		if err := c.ask(mode); err != nil {
			return err
		}
		if err := c.send(); err != nil {
			return err
		}
		return c.receiveSum()
	case "source":
		// The server ends first; the client still has its own end to give.
		if err := c.ask(mode, c.n); err != nil {
			return err
		}
		return c.receive()
	case "late":
		// The client ends first; data arrives long after that.
		if err := c.ask(mode, c.n, int64(c.ms)); err != nil {
			return err
		}
		if err := c.CloseWrite(); err != nil {
			return err
		}
		return c.receive()
	case "early":
		// The server ends first; the client sends long after that.
		if err := c.ask(mode, c.n); err != nil {
			return err
		}
		if err := c.receive(); err != nil {
			return err
		}
		time.Sleep(time.Duration(c.ms) * time.Millisecond)
		return c.send()
	case "reset":
		if err := c.ask(mode, c.n); err != nil {
			return err
		}
		got, err := io.Copy(io.Discard, c.in)
		if !errors.Is(err, syscall.ECONNRESET) {
			return fmt.Errorf("ended after %d bytes with %v: %w", got, err, errDiffers)
		}
		return nil
	case "talk":
		if err := c.ask(mode, c.n); err != nil {
			return err
		}
		for i := range c.n {
			if _, err := c.in.ReadByte(); err != nil {
				return fmt.Errorf("byte %d: %w", i, err)
			}
			if _, err := c.Write([]byte{'.'}); err != nil {
				return fmt.Errorf("byte %d: %w", i, err)
			}
		}
		return nil
	case "stall":
		// Fills what the way there can hold, then leaves with a reset.
		if err := c.ask(mode); err != nil {
			return err
		}
		if err := c.SetWriteDeadline(time.Now().Add(time.Duration(c.ms) * time.Millisecond)); err != nil {
			return err
		}
		io.Copy(c.TCPConn, newPattern(c.n))
		return c.SetLinger(0)
	}
	return errUsage
}

// endless is more than any test reads.
const endless = 1 << 50

// await tells how the connection ends, which is never an error of its own. nudges may be
// nil.
func (c *client) await(wish string, write bool, nudges io.Reader, stdout io.Writer) error {
	if err := c.ask(wish); err != nil {
		return err
	}
	if wish == "echo" {
		if _, err := c.Write([]byte{'.'}); err != nil {
			return err
		}
		if _, err := c.in.ReadByte(); err != nil {
			return err
		}
	}
	fmt.Fprintln(stdout, "established")
	var sink io.Writer = io.Discard
	if nudges != nil {
		sink = answered{stdout}
		go c.nudge(nudges)
	}
	n, err := io.Copy(struct{ io.Writer }{sink}, c.in)
	how := "EOF"
	if err != nil {
		how = outcomeOf(err)
	}
	fmt.Fprintf(stdout, "ended after %d bytes: %s\n", n, how)
	if !write {
		return nil
	}
	for {
		if _, err := c.Write([]byte{'.'}); err != nil {
			_, err = fmt.Fprintln(stdout, "write:", outcomeOf(err))
			return err
		}
		time.Sleep(time.Millisecond) // not a flood: the answer to one byte is enough
	}
}

// nudge sends a byte for each line. Where that fails, the reader of the connection knows.
func (c *client) nudge(lines io.Reader) {
	for in := bufio.NewScanner(lines); in.Scan(); {
		if _, err := c.Write([]byte{'.'}); err != nil {
			return
		}
	}
	_ = c.CloseWrite()
}

// answered tells of everything that is written to it.
type answered struct{ out io.Writer }

func (a answered) Write(b []byte) (int, error) {
	_, err := fmt.Fprintln(a.out, "answered")
	return len(b), err
}

func (c *client) abort() error {
	if err := c.ask("source", endless); err != nil {
		return err
	}
	if _, err := io.CopyN(io.Discard, c.in, c.n); err != nil {
		return err
	}
	return c.SetLinger(0)
}

func (c *client) unread(stdin io.Reader, stdout io.Writer) error {
	if err := c.ask("source", endless); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "established")
	_, err := io.Copy(io.Discard, stdin)
	return err
}

func (c *client) ask(mode string, args ...int64) error {
	line := mode
	for _, arg := range args {
		line += " " + strconv.FormatInt(arg, 10)
	}
	_, err := io.WriteString(c.TCPConn, line+"\n")
	return err
}

// send sends the pattern and ends this direction.
func (c *client) send() error {
	if _, err := io.Copy(c.TCPConn, newPattern(c.n)); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return c.CloseWrite()
}

// receive reads to the end and expects the pattern.
func (c *client) receive() error {
	if c.want == "" {
		got, err := io.Copy(io.Discard, c.in)
		if err == nil && got != c.n {
			err = errDiffers
		}
		if err != nil {
			return fmt.Errorf("received %d of %d bytes: %w", got, c.n, err)
		}
		return nil
	}
	got := newTally()
	if _, err := io.Copy(got, c.in); err != nil {
		return fmt.Errorf("receive: after %d bytes: %w", got.n, err)
	}
	if got.String() != c.want {
		return fmt.Errorf("received %s, want %s: %w", got, c.want, errDiffers)
	}
	return nil
}

// receiveSum reads the server's account of what it got and expects the pattern,
// or where it only counted, the length.
func (c *client) receiveSum() error {
	line, err := c.in.ReadString('\n')
	if err != nil {
		return fmt.Errorf("receive checksum: %w", err)
	}
	want := c.want
	if want == "" {
		want = strconv.FormatInt(c.n, 10)
	}
	if line != want+"\n" {
		return fmt.Errorf("server got %q, want %q: %w", line, want, errDiffers)
	}
	if _, err := c.in.ReadByte(); err != io.EOF {
		return fmt.Errorf("after the checksum: %v: %w", err, errDiffers)
	}
	return nil
}
