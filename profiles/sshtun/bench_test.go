package sshtun_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
	"sshbroker/profiles/tuntest"
)

// opener opens a stream to an address; the two kinds that are compared.
type opener func(b *testing.B, dst net.Addr) halfCloser

type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// ours opens streams of this package.
func ours(b *testing.B, p *profiles.Profile) opener {
	tr, err := connector(b).Connect(context.Background(), p, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { tr.Close() })
	return func(b *testing.B, dst net.Addr) halfCloser {
		at := dst.(*net.TCPAddr)
		s, err := tr.Open(context.Background(), profiles.Destination{Host: at.IP.String(), Port: uint16(at.Port)})
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
}

// naive opens streams with the library alone, on a plain connection.
func naive(b *testing.B, p *profiles.Profile) opener {
	text, err := os.ReadFile(p.Identities[0])
	if err != nil {
		b.Fatal(err)
	}
	key, err := ssh.ParsePrivateKey(text)
	if err != nil {
		b.Fatal(err)
	}
	client, err := ssh.Dial("tcp", net.JoinHostPort(p.Host, fmt.Sprint(p.Port)), &ssh.ClientConfig{
		User: p.User, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { client.Close() })
	return func(b *testing.B, dst net.Addr) halfCloser {
		c, err := client.Dial("tcp", dst.String())
		if err != nil {
			b.Fatal(err)
		}
		return c.(halfCloser)
	}
}

// eachKind runs a benchmark for both kinds and adds the CPU time of this process,
// the ends of the flow included, which tells more than the clock on a busy machine.
func eachKind(b *testing.B, run func(b *testing.B, open opener)) {
	p := tuntest.StartOpenSSH(b).Profile
	for name, kind := range map[string]func(*testing.B, *profiles.Profile) opener{"ours": ours, "naive": naive} {
		b.Run(name, func(b *testing.B) {
			open := kind(b, p)
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

func BenchmarkUp(b *testing.B) {
	eachKind(b, func(b *testing.B, open opener) {
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

func BenchmarkDown(b *testing.B) {
	eachKind(b, func(b *testing.B, open opener) {
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

func BenchmarkEcho(b *testing.B) {
	eachKind(b, func(b *testing.B, open opener) {
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

// BenchmarkConnect opens a stream, waits for the first byte and closes.
func BenchmarkConnect(b *testing.B) {
	eachKind(b, func(b *testing.B, open opener) {
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
