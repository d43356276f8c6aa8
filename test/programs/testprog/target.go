package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// greeting is the one byte that a target says first, on its greeting addresses.
const greeting = 'g'

// bulkSize is how much the load generator and its target move in one system call.
const bulkSize = 256 << 10

// request is what a client of a target sends first: a letter and a number.
type request struct {
	kind  byte
	value uint64
}

const (
	requestUp   = 'u' // reads to the end, answers the count as 8 bytes, big-endian
	requestDown = 'd' // sends for so many milliseconds, then ends its direction
	requestEcho = 'e' // sends back what comes
)

const requestSize = 9

func (r request) bytes() []byte {
	return binary.BigEndian.AppendUint64([]byte{r.kind}, r.value)
}

// runTarget is the server that load wants. It does what each client asks; at the
// address after -greet it sends one byte instead and waits for the client's end, at the
// one after -end it ends every connection at once, and at the one after -turns it sends
// every byte back, both by plain system calls, one connection at a time. It prints
// "listening ADDRESS" for each address, and nothing after that.
//
//	testprog target [-greet ADDRESS] [-end ADDRESS] [-turns ADDRESS] ADDRESS...
func runTarget(ctx context.Context, args []string, _ io.Reader, stdout io.Writer) error {
	flags := flag.NewFlagSet("target", flag.ContinueOnError)
	greet := flags.String("greet", "", "address at which to speak first")
	end := flags.String("end", "", "address at which to end every connection at once")
	turns := flags.String("turns", "", "address at which to send every byte back by plain system calls")
	if err := flags.Parse(args); err != nil || flags.NArg() == 0 && *greet+*end+*turns == "" {
		return errors.Join(errUsage, err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	start := func(address string, serve func(*net.TCPConn) error) error {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err != nil {
			return err
		}
		fmt.Fprintf(stdout, "listening %s\n", l.Addr())
		wg.Go(func() { <-ctx.Done(); l.Close() })
		wg.Go(func() { accept(ctx, l, serve, &wg) })
		return nil
	}
	if *greet != "" {
		if err := start(*greet, greetAndWait); err != nil {
			return err
		}
	}
	for address, serve := range map[string]plainServer{*end: endAtOnce, *turns: takeTurns} {
		if address == "" {
			continue
		}
		fd, at, err := listenPlain(address)
		if err != nil {
			return err
		}
		fmt.Fprintf(stdout, "listening %s\n", at)
		wg.Go(func() { <-ctx.Done(); _ = unix.Shutdown(fd, unix.SHUT_RDWR) })
		wg.Go(func() { servePlain(fd, serve); unix.Close(fd) })
	}
	for _, address := range flags.Args() {
		if err := start(address, hit); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return nil
}

func accept(ctx context.Context, l net.Listener, serve func(*net.TCPConn) error, wg *sync.WaitGroup) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors, say
			continue
		}
		wg.Go(func() {
			defer context.AfterFunc(ctx, func() { c.Close() })()
			defer c.Close()
			// A client that goes away in the middle measures nothing.
			_ = serve(c.(*net.TCPConn))
		})
	}
}

func greetAndWait(c *net.TCPConn) error {
	if _, err := c.Write([]byte{greeting}); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	return err
}

// hit serves one connection as its client asks.
func hit(c *net.TCPConn) error {
	var asked [requestSize]byte
	if _, err := io.ReadFull(c, asked[:]); err != nil {
		return err
	}
	switch value := binary.BigEndian.Uint64(asked[1:]); asked[0] {
	case requestUp:
		n, err := discard(c)
		if err != nil {
			return err
		}
		_, err = c.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
		return err
	case requestDown:
		if _, err := pour(c, time.Duration(value)*time.Millisecond); err != nil {
			return err
		}
		if err := c.CloseWrite(); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, bufio.NewReaderSize(c, 16)) // closing with unread data would reset
		return err
	case requestEcho:
		var b [256]byte
		for {
			n, err := c.Read(b[:])
			if err != nil {
				return err
			}
			if _, err := c.Write(b[:n]); err != nil {
				return err
			}
		}
	}
	return errors.New("not understood")
}

// discard reads to the end and counts.
func discard(c *net.TCPConn) (n int64, err error) {
	b := make([]byte, bulkSize)
	for {
		m, err := c.Read(b)
		n += int64(m)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// pour writes for as long as it is told, and counts.
func pour(c *net.TCPConn, limit time.Duration) (n int64, err error) {
	b := make([]byte, bulkSize)
	for end := time.Now().Add(limit); time.Now().Before(end); {
		m, err := c.Write(b)
		n += int64(m)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
