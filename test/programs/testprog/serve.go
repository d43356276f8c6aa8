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
	"strings"
	"sync"
	"time"
)

// banner is what a server with -greet says before the client has said anything.
const banner = "220 testprog speaks first\n"

// runServe listens on every address given and prints "listening ADDRESS" for
// each before it accepts. A client's first line says what it wants:
//
//	echo           sends everything back, ends when the client does
//	delay MS       waits MS milliseconds, then echoes
//	sink           reads to the end, answers "COUNT SHA256"
//	drain          reads to the end, answers "COUNT"
//	source N       sends N bytes of the pattern and ends its direction
//	late N MS      reads to the client's end, waits MS milliseconds, sends N bytes
//	early N        sends N bytes and ends its direction first; what the client sends
//	               after that is counted and printed as "early COUNT SHA256"
//	reset N        sends N bytes, then resets the connection
//	stall          reads nothing more until the client is gone
//	talk N         sends one byte and waits for one, N times
//
// Every connection prints a line when it ends: what was asked, and how it ended.
// One that ends before it asked for anything prints nothing.
func runServe(ctx context.Context, args []string, _ io.Reader, stdout io.Writer) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	greet := flags.Bool("greet", false, "speak first")
	if err := flags.Parse(args); err != nil || flags.NArg() == 0 {
		return errors.Join(errUsage, err)
	}
	s := &server{greet: *greet, out: stdout}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, address := range flags.Args() {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		s.say("listening %s", l.Addr())
		wg.Go(func() { <-ctx.Done(); l.Close() })
		wg.Go(func() { s.accept(ctx, l) })
	}
	<-ctx.Done()
	return nil
}

type server struct {
	greet bool

	mu  sync.Mutex // guards out
	out io.Writer
}

func (s *server) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, format+"\n", args...)
}

func (s *server) accept(ctx context.Context, l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.say("accept %v", err)
			time.Sleep(10 * time.Millisecond) // out of descriptors, say
			continue
		}
		go func() {
			defer context.AfterFunc(ctx, func() { c.Close() })()
			defer c.Close()
			switch wish, err := s.answer(c.(*net.TCPConn)); {
			case wish == "":
			case err != nil:
				s.say("%s: %v", wish, err)
			default:
				s.say("%s: done", wish)
			}
		}()
	}
}

// answer serves one connection; wish is the client's first line.
func (s *server) answer(c *net.TCPConn) (wish string, err error) {
	if s.greet {
		if _, err := io.WriteString(c, banner); err != nil {
			return "", err
		}
	}
	r := bufio.NewReaderSize(c, blockSize)
	line, err := r.ReadString('\n')
	if err != nil {
		return line, err
	}
	wish = strings.TrimSpace(line)
	words := strings.Fields(line)
	number := func(i int) int64 {
		if i >= len(words) {
			return 0
		}
		n, _ := strconv.ParseInt(words[i], 10, 64)
		return n
	}
	switch words = append(words, ""); words[0] {
	case "delay":
		time.Sleep(time.Duration(number(1)) * time.Millisecond)
		_, err = io.Copy(c, r)
	case "echo":
		_, err = io.Copy(c, r)
	case "sink":
		got := newTally()
		if _, err = io.Copy(got, r); err == nil {
			_, err = fmt.Fprintln(c, got)
		}
	case "drain":
		var n int64
		if n, err = io.Copy(io.Discard, r); err == nil {
			_, err = fmt.Fprintln(c, n)
		}
	case "source":
		_, err = io.Copy(c, newPattern(number(1)))
		if err == nil {
			err = c.CloseWrite()
		}
		io.Copy(io.Discard, r) // closing with unread data would reset
	case "late":
		if _, err = io.Copy(io.Discard, r); err == nil {
			time.Sleep(time.Duration(number(2)) * time.Millisecond)
			_, err = io.Copy(c, newPattern(number(1)))
		}
	case "early":
		if _, err = io.Copy(c, newPattern(number(1))); err == nil {
			if err = c.CloseWrite(); err == nil {
				got := newTally()
				_, err = io.Copy(got, r)
				s.say("early %s", got)
			}
		}
	case "reset":
		_, err = io.Copy(c, newPattern(number(1)))
		c.SetLinger(0)
	case "stall":
		err = waitForPeerToGo(c)
	case "talk":
		for range number(1) {
			if _, err = c.Write([]byte{'.'}); err != nil {
				break
			}
			if _, err = r.ReadByte(); err != nil {
				break
			}
		}
	default:
		err = errors.New("not understood")
	}
	return wish, err
}
