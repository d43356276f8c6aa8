package relay

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

func eachFar(t *testing.T, test func(t *testing.T, r *Relay, kind string)) {
	for _, kind := range farKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := new(Relay)
			t.Cleanup(func() { r.Close() })
			test(t, r, kind)
		})
	}
}

func TestHalfClose(t *testing.T) {
	eachFar(t, func(t *testing.T, r *Relay, kind string) {
		for _, tc := range []struct {
			name  string
			first func(j *joined) (closer, other *net.TCPConn)
		}{
			{"program first", func(j *joined) (c, o *net.TCPConn) { return j.app, j.server }},
			{"far first", func(j *joined) (c, o *net.TCPConn) { return j.server, j.app }},
		} {
			t.Run(tc.name, func(t *testing.T) {
				j := join(t, r, kind)
				closer, other := tc.first(j)
				send(t, closer, "request")
				shut(t, closer)
				receive(t, other, "request")
				receiveEOF(t, other)
				// Late data, in several pieces, after the other half is closed.
				for i := range 50 {
					s := fmt.Sprintf("late %d", i)
					send(t, other, s)
					receive(t, closer, s)
				}
				shut(t, other)
				receiveEOF(t, closer)
				res := j.want(EOF, EOF)
				if res.Up.Err != nil || res.Down.Err != nil {
					t.Errorf("errors %v, %v", res.Up.Err, res.Down.Err)
				}
			})
		}
		t.Run("both at once", func(t *testing.T) {
			for range 200 {
				j := join(t, r, kind)
				send(t, j.app, "up")
				send(t, j.server, "down")
				go j.app.CloseWrite()
				go j.server.CloseWrite()
				receive(t, j.server, "up")
				receiveEOF(t, j.server)
				receive(t, j.app, "down")
				receiveEOF(t, j.app)
				if res := j.want(EOF, EOF); res.Up.Bytes != 2 || res.Down.Bytes != 4 {
					t.Fatalf("bytes %d, %d; want 2, 4", res.Up.Bytes, res.Down.Bytes)
				}
			}
		})
		t.Run("empty", func(t *testing.T) {
			j := join(t, r, kind)
			shut(t, j.app)
			receiveEOF(t, j.server)
			shut(t, j.server)
			receiveEOF(t, j.app)
			j.want(EOF, EOF)
		})
	})
}

// errnoOf reads until the connection fails and returns its errno, or io.EOF.
func errnoOf(c *net.TCPConn) error {
	_, err := io.Copy(io.Discard, struct{ io.Reader }{c})
	if err == nil {
		return io.EOF
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// resetSeenBy is errnoOf for a connection that may have had its EOF already; the
// kernel then tells of the reset only on a write, as EPIPE.
func resetSeenBy(c *net.TCPConn, hadEOF bool) error {
	if !hadEOF {
		return errnoOf(c)
	}
	if err := writeUntilError(c); !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		return err
	}
	return syscall.ECONNRESET
}

func TestProgramReset(t *testing.T) {
	for _, tc := range []struct {
		name   string
		before func(t *testing.T, j *joined)
		up     End
	}{
		{"at once", func(t *testing.T, j *joined) {}, ResetByProgram},
		{"after data", func(t *testing.T, j *joined) {
			send(t, j.app, "x")
			receive(t, j.server, "x")
		}, ResetByProgram},
		{"after its own EOF", func(t *testing.T, j *joined) {
			shut(t, j.app)
			receiveEOF(t, j.server)
		}, EOF},
	} {
		t.Run(tc.name, func(t *testing.T) {
			eachFar(t, func(t *testing.T, r *Relay, kind string) {
				j := join(t, r, kind)
				tc.before(t, j)
				resetTCP(j.app)
				if got := resetSeenBy(j.server, tc.up == EOF); got != syscall.ECONNRESET {
					t.Errorf("the far end saw %v, want ECONNRESET without EOF", got)
				}
				j.want(tc.up, ResetByProgram)
			})
		})
	}
}

func TestFarReset(t *testing.T) {
	for _, tc := range []struct {
		name   string
		before func(t *testing.T, j *joined)
		up     End
	}{
		{"at once", func(t *testing.T, j *joined) {}, ResetByFar},
		{"after data", func(t *testing.T, j *joined) {
			send(t, j.server, "x")
			receive(t, j.app, "x")
		}, ResetByFar},
		{"after the program's EOF", func(t *testing.T, j *joined) {
			shut(t, j.app)
			receiveEOF(t, j.server)
		}, EOF},
	} {
		t.Run(tc.name, func(t *testing.T) {
			eachFar(t, func(t *testing.T, r *Relay, kind string) {
				j := join(t, r, kind)
				tc.before(t, j)
				resetTCP(j.server)
				if got := errnoOf(j.app); got != syscall.ECONNRESET {
					t.Errorf("the program saw %v, want ECONNRESET without EOF", got)
				}
				j.want(tc.up, ResetByFar)
			})
		})
	}
}

// What came before the reset reaches a program that reads, also what its kernel had
// no room for when the reset came. One that does not read keeps no flow alive.
func TestFarResetDeliversFirst(t *testing.T) {
	eachFar(t, func(t *testing.T, r *Relay, kind string) {
		const size = 1 << 20 // no more than our socket's buffer takes
		fill := func() *joined {
			j := join(t, r, kind)
			if err := j.app.SetReadBuffer(128 << 10); err != nil {
				t.Fatal(err)
			}
			if _, err := j.server.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			for j.count.Down.Load() < size { // all is in the sockets of the program
				time.Sleep(time.Millisecond)
			}
			resetTCP(j.server)
			return j
		}
		j := fill()
		n, err := io.Copy(io.Discard, struct{ io.Reader }{j.app})
		if n != size || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the program got %d bytes of %d, then %v", n, size, err)
		}
		j.want(ResetByFar, ResetByFar)

		fill().want(ResetByFar, ResetByFar)
	})
}

// A plain far end that sent everything and closed answers late data with RST; so
// does the program's side, once it has all the data.
func TestFarGoneInBothDirections(t *testing.T) {
	eachFar(t, func(t *testing.T, r *Relay, kind string) {
		j := join(t, r, kind)
		send(t, j.server, "all there is")
		j.server.Close()
		receive(t, j.app, "all there is")
		receiveEOF(t, j.app)
		if s, ok := j.far.(interface{ takeNoMore() }); ok {
			s.takeNoMore()
		}
		send(t, j.app, "too late")
		if err := writeUntilError(j.app); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("the program saw %v, want a reset", err)
		}
		j.want(ResetByFar, EOF)
	})
}

// The reset must not overtake data that the program has not read yet.
func TestFarClosedDeliversFirst(t *testing.T) {
	for _, kind := range []string{"stream", "writer-to", "carrier"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const size = 24 << 20 // more than the socket buffers hold
			j := join(t, new(Relay), kind)
			wrote := make(chan error, 1)
			go func() {
				_, err := j.server.Write(make([]byte, size))
				j.server.CloseWrite()
				wrote <- err
			}()
			j.far.(interface{ takeNoMore() }).takeNoMore()
			send(t, j.app, "the far end is closed already")
			if n, err := io.Copy(io.Discard, struct{ io.Reader }{io.LimitReader(j.app, size)}); n != size || err != nil {
				t.Fatalf("got %d bytes of %d, %v", n, size, err)
			}
			receiveEOF(t, j.app)
			if err := <-wrote; err != nil {
				t.Error(err)
			}
			if err := writeUntilError(j.app); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
				t.Errorf("the program saw %v, want a reset", err)
			}
			res := j.want(ResetByFar, EOF)
			if res.Down.Bytes != size || res.Up.Bytes != 0 {
				t.Errorf("bytes up %d down %d, want 0 and %d", res.Up.Bytes, res.Down.Bytes, size)
			}
		})
	}
}

// A program that never writes again keeps its half-open connection.
func TestFarClosedIdleProgram(t *testing.T) {
	for _, kind := range []string{"stream", "writer-to", "carrier"} {
		t.Run(kind, func(t *testing.T) {
			j := join(t, new(Relay), kind)
			shut(t, j.server)
			j.far.(interface{ takeNoMore() }).takeNoMore()
			receiveEOF(t, j.app)
			select {
			case r := <-j.done:
				t.Fatalf("Pipe returned %+v with the program's side open", r)
			default:
			}
			shut(t, j.app)
			j.want(EOF, EOF)
		})
	}
}

func writeUntilError(c *net.TCPConn) error {
	for {
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		time.Sleep(time.Millisecond) // the reset has no other sign
	}
}

func TestCancel(t *testing.T) {
	eachFar(t, func(t *testing.T, r *Relay, kind string) {
		for _, state := range []string{"idle", "both stalled", "half closed", "before start"} {
			t.Run(state, func(t *testing.T) {
				reason := errors.New("drained")
				var j *joined
				if state == "before start" {
					j = &joined{t: t, done: make(chan Result, 1)}
					var prog, inner *net.TCPConn
					j.app, prog = tcpPair(t)
					inner, j.server = tcpPair(t)
					ctx, cancel := context.WithCancelCause(context.Background())
					cancel(reason)
					go func() { j.done <- r.Pipe(ctx, prog, newFar(kind, inner), &j.count) }()
				} else {
					j = join(t, r, kind)
				}
				up := Cancelled
				switch state {
				case "both stalled":
					fillUp(t, j.app, &j.count.Up)
					fillUp(t, j.server, &j.count.Down)
				case "half closed":
					shut(t, j.app)
					receiveEOF(t, j.server)
					up = EOF
				}
				if j.cancel != nil {
					j.cancel(reason)
				}
				res := j.want(up, Cancelled)
				if !errors.Is(res.Down.Err, reason) {
					t.Errorf("error %v, want the cause", res.Down.Err)
				}
				if got := errnoOf(j.app); got != syscall.ECONNRESET {
					t.Errorf("the program saw %v", got)
				}
				if got := resetSeenBy(j.server, up == EOF); got != syscall.ECONNRESET {
					t.Errorf("the far end saw %v", got)
				}
			})
		}
	})
}

// fillUp writes to c until the whole path is full.
func fillUp(t *testing.T, c *net.TCPConn, moved interface{ Load() int64 }) {
	t.Helper()
	defer c.SetWriteDeadline(time.Now().Add(patience))
	block := make([]byte, 256<<10)
	for quietRounds := 0; quietRounds < 3; {
		before := moved.Load()
		c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		n, err := c.Write(block)
		if n > 0 || moved.Load() != before {
			quietRounds = 0
		} else {
			quietRounds++
		}
		if err != nil && !isTimeout(err) {
			t.Fatal(err)
		}
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// The far end takes nothing, so nobody reads the program; its reset must still get
// through.
func TestProgramResetWhileFarStalls(t *testing.T) {
	eachFar(t, func(t *testing.T, r *Relay, kind string) {
		j := join(t, r, kind)
		fillUp(t, j.app, &j.count.Up)
		resetTCP(j.app)
		res := j.want(ResetByProgram, ResetByProgram)
		if !errors.Is(res.Up.Err, syscall.ECONNRESET) {
			t.Errorf("error %v", res.Up.Err)
		}
	})
}

func TestStallResumes(t *testing.T) {
	eachFar(t, func(t *testing.T, r *Relay, kind string) {
		j := join(t, r, kind)
		slow := make(chan struct{})
		var wg sync.WaitGroup
		const size = 32 << 20
		for _, c := range []struct{ from, to *net.TCPConn }{{j.app, j.server}, {j.server, j.app}} {
			wg.Go(func() {
				if _, err := c.from.Write(make([]byte, size)); err != nil {
					t.Error(err)
				}
				c.from.CloseWrite()
			})
			wg.Go(func() {
				<-slow
				if n, err := io.Copy(io.Discard, struct{ io.Reader }{c.to}); n != size || err != nil {
					t.Errorf("got %d bytes, %v", n, err)
				}
			})
		}
		// Other flows through the same Relay go on meanwhile.
		for range 20 {
			k := join(t, r, kind)
			send(t, k.app, "ping")
			receive(t, k.server, "ping")
			send(t, k.server, "pong")
			receive(t, k.app, "pong")
			k.app.Close()
			k.server.Close()
			k.result()
		}
		close(slow)
		wg.Wait()
		if res := j.want(EOF, EOF); res.Up.Bytes != size || res.Down.Bytes != size {
			t.Errorf("bytes %d, %d", res.Up.Bytes, res.Down.Bytes)
		}
	})
}

func TestChecksumsBothWays(t *testing.T) {
	const size = 64 << 20
	eachFar(t, func(t *testing.T, r *Relay, kind string) {
		j := join(t, r, kind)
		var wg sync.WaitGroup
		for i, c := range []struct{ from, to *net.TCPConn }{{j.app, j.server}, {j.server, j.app}} {
			sent, got := sha256.New(), sha256.New()
			wg.Go(func() {
				rng := rand.NewChaCha8([32]byte{byte(i)})
				if _, err := io.Copy(io.MultiWriter(c.from, sent), io.LimitReader(rng, size)); err != nil {
					t.Error(err)
				}
				c.from.CloseWrite()
			})
			wg.Go(func() {
				if _, err := io.Copy(got, c.to); err != nil {
					t.Error(err)
				}
			})
			defer func() {
				if string(sent.Sum(nil)) != string(got.Sum(nil)) {
					t.Errorf("direction %d: checksums differ", i)
				}
			}()
		}
		wg.Wait()
		if res := j.want(EOF, EOF); res.Up.Bytes != size || res.Down.Bytes != size {
			t.Errorf("bytes %d, %d; want %d", res.Up.Bytes, res.Down.Bytes, size)
		}
	})
}

// Counters must be right while the flow runs, not only at its end.
func TestLiveCounters(t *testing.T) {
	eachFar(t, func(t *testing.T, r *Relay, kind string) {
		j := join(t, r, kind)
		var total int64
		for i := range 30 {
			s := fmt.Sprintf("message %d", i)
			total += int64(len(s))
			send(t, j.app, s)
			receive(t, j.server, s)
			send(t, j.server, s)
			receive(t, j.app, s)
			// What has arrived is counted as soon as the writing call has returned.
			for end := time.Now().Add(patience); j.count.Up.Load() != total || j.count.Down.Load() != total; {
				if time.Now().After(end) {
					t.Fatalf("counters %d, %d; want %d", j.count.Up.Load(), j.count.Down.Load(), total)
				}
				time.Sleep(time.Microsecond)
			}
		}
		j.app.Close()
		j.server.Close()
		j.result()
	})
}

// 10,000 short flows, some of them reset; goleak looks for what they leave.
func TestManyShortFlows(t *testing.T) {
	total := 10_000
	if testing.Short() {
		total = 1000
	}
	r := new(Relay)
	defer r.Close()
	before := openDescriptors(t)
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex // a pair is made by one worker at a time, so that its ends belong together
	pair := func() (client, server *net.TCPConn) {
		mu.Lock()
		defer mu.Unlock()
		c, err := net.DialTCP("tcp", nil, listener.Addr().(*net.TCPAddr))
		if err != nil {
			t.Error(err)
			return nil, nil
		}
		s, err := listener.AcceptTCP()
		if err != nil {
			t.Error(err)
			c.Close()
			return nil, nil
		}
		return c, s
	}
	var wg sync.WaitGroup
	for w := range 32 {
		wg.Go(func() {
			for i := w; i < total; i += 32 {
				app, prog := pair()
				inner, server := pair()
				if app == nil || inner == nil {
					return
				}
				done := make(chan Result, 1)
				go func() {
					done <- r.Pipe(context.Background(), prog, newFar(farKinds[i%len(farKinds)], inner), nil)
				}()
				app.Write([]byte("hello"))
				buf := make([]byte, 5)
				if _, err := io.ReadFull(server, buf); err != nil {
					t.Errorf("flow %d: %v", i, err)
				}
				switch i % 4 {
				case 0:
					resetTCP(app)
				case 1:
					resetTCP(server)
				default:
					app.Close()
					server.Close()
				}
				res := <-done
				if res.Up.Bytes != 5 || res.Up.End == Unfinished || res.Down.End == Unfinished {
					t.Errorf("flow %d: %+v", i, res)
				}
				app.Close()
				server.Close()
			}
		})
	}
	wg.Wait()
	listener.Close()
	r.Close()
	if after := openDescriptors(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestEndString(t *testing.T) {
	for e, want := range map[End]string{
		Unfinished: "unfinished", EOF: "eof", ResetByProgram: "reset-by-program",
		ResetByFar: "reset-by-far", Cancelled: "cancelled", Failed: "failed", 99: "end(99)",
	} {
		if got := e.String(); got != want {
			t.Errorf("%d: %q, want %q", e, got, want)
		}
	}
}
