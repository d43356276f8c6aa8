package tuntest

import (
	"context"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"sshbroker/profiles"
)

// Opener opens streams to an address, for benchmarks.
type Opener func(b *testing.B, dst net.Addr) HalfCloser

// HalfCloser is a stream as the benchmarks need it.
type HalfCloser interface {
	net.Conn
	CloseWrite() error
}

// OpenerOf opens streams of a connector to the server that p reaches.
func OpenerOf(b *testing.B, c profiles.Connector, p *profiles.Profile) Opener {
	tr, err := c.Connect(context.Background(), p, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { tr.Close() })
	return func(b *testing.B, dst net.Addr) HalfCloser {
		at := dst.(*net.TCPAddr)
		s, err := tr.Open(context.Background(), profiles.Destination{Host: at.IP.String(), Port: uint16(at.Port)})
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
}

// Kinds are ways to carry streams that are compared with each other.
type Kinds map[string]func(b *testing.B) Opener

// each runs a benchmark for all kinds and adds the CPU time of this process,
// the ends of the flow included, which tells more than the clock on a busy machine.
func (k Kinds) each(b *testing.B, run func(b *testing.B, open Opener)) {
	for name, kind := range k {
		b.Run(name, func(b *testing.B) {
			open := kind(b)
			begin := cpuTime()
			run(b, open)
			b.ReportMetric(float64(cpuTime()-begin)/float64(b.N), "cpu-ns/op")
		})
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func serve(b *testing.B, handle func(c *net.TCPConn)) net.Addr {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
			}()
		}
	}()
	return l.Addr()
}

const bulk = 256 << 20

// program gives the near end of a socket pair as a relay has it, and the program's.
func program(b *testing.B) (relay, prog *net.TCPConn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	return d.(*net.TCPConn), c.(*net.TCPConn)
}

func pour(c *net.TCPConn, n int) {
	block := make([]byte, 128<<10)
	for ; n > 0; n -= len(block) {
		if _, err := c.Write(block); err != nil {
			return
		}
	}
	c.CloseWrite()
}

// Up moves 256 MiB up through a stream.
func (k Kinds) Up(b *testing.B) {
	k.each(b, func(b *testing.B, open Opener) {
		got := make(chan int64)
		dst := serve(b, func(c *net.TCPConn) {
			n, _ := io.Copy(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c})
			got <- n
		})
		b.SetBytes(bulk)
		for b.Loop() {
			s := open(b, dst)
			relay, prog := program(b)
			go pour(prog, bulk)
			if rf, ok := s.(io.ReaderFrom); ok {
				rf.ReadFrom(relay)
			} else {
				io.Copy(s, struct{ io.Reader }{relay})
			}
			s.CloseWrite()
			if n := <-got; n != bulk {
				b.Fatalf("%d bytes", n)
			}
			s.Close()
			relay.Close()
			prog.Close()
		}
	})
}

// Down moves 256 MiB down.
func (k Kinds) Down(b *testing.B) {
	k.each(b, func(b *testing.B, open Opener) {
		dst := serve(b, func(c *net.TCPConn) { pour(c, bulk) })
		b.SetBytes(bulk)
		for b.Loop() {
			s := open(b, dst)
			relay, prog := program(b)
			go func() {
				if wt, ok := s.(io.WriterTo); ok {
					wt.WriteTo(relay)
				} else {
					io.Copy(struct{ io.Writer }{relay}, s)
				}
				relay.CloseWrite()
			}()
			n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{prog}, make([]byte, 128<<10))
			if n != bulk || err != nil {
				b.Fatalf("%d bytes, %v", n, err)
			}
			s.Close()
			relay.Close()
			prog.Close()
		}
	})
}

// Echo sends 64 bytes there and back.
func (k Kinds) Echo(b *testing.B) {
	k.each(b, func(b *testing.B, open Opener) {
		dst := serve(b, func(c *net.TCPConn) { io.Copy(c, c) })
		s := open(b, dst)
		defer s.Close()
		relay, prog := program(b)
		defer relay.Close()
		defer prog.Close()
		go func() {
			if rf, ok := s.(io.ReaderFrom); ok {
				rf.ReadFrom(relay)
			} else {
				io.Copy(s, struct{ io.Reader }{relay})
			}
		}()
		go func() {
			if wt, ok := s.(io.WriterTo); ok {
				wt.WriteTo(relay)
			} else {
				io.Copy(struct{ io.Writer }{relay}, s)
			}
		}()
		msg := make([]byte, 64)
		for b.Loop() {
			prog.Write(msg)
			if _, err := io.ReadFull(prog, msg); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// Connect opens a stream, waits for the first byte and closes.
func (k Kinds) Connect(b *testing.B) {
	k.each(b, func(b *testing.B, open Opener) {
		dst := serve(b, func(c *net.TCPConn) { c.Write([]byte("220\n")); io.Copy(io.Discard, c) })
		first := make([]byte, 4)
		for b.Loop() {
			s := open(b, dst)
			if _, err := io.ReadFull(s, first); err != nil {
				b.Fatal(err)
			}
			s.CloseWrite()
			if _, err := io.Copy(io.Discard, s); err != nil {
				b.Fatal(err)
			}
			s.Close()
		}
	})
}
