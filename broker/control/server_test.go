package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func TestCall(t *testing.T) {
	type args struct {
		Count int `json:"count"`
	}
	address := serve(t, func(s *Server) {
		s.Handle("count", func(_ context.Context, c *Call) error {
			var a args
			if err := c.Decode(&a); err != nil {
				return err
			}
			for i := range a.Count {
				if err := c.Send(i); err != nil {
					return err
				}
			}
			return nil
		})
		s.Handle("fail", func(context.Context, *Call) error { return errors.New("disk full") })
		s.Handle("fail-well", func(context.Context, *Call) error {
			return fmt.Errorf("reload: %w", &Error{Message: "a.xml:1:2: bad", Code: CodeConfig, Hint: "look at it"})
		})
		s.Handle("pid", func(_ context.Context, c *Call) error { return c.Send([]int{c.PeerPID(), c.PeerUID()}) })
	})
	c := dial(t, address)
	if c.PID != os.Getpid() || c.Version != Version() {
		t.Errorf("broker: pid %d version %q", c.PID, c.Version)
	}

	var got []string
	collect := func(row json.RawMessage) error { got = append(got, string(row)); return nil }
	if err := c.Call(t.Context(), "count", args{1000}, nil, collect, nil); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1000 || got[0] != "0" || got[999] != "999" {
		t.Errorf("%d rows", len(got))
	}
	if err := c.Call(t.Context(), "count", args{10}, nil, nil, nil); err != nil {
		t.Errorf("rows that nobody wants: %v", err)
	}

	for _, tc := range []struct {
		op   string
		args any
		want Error
	}{
		{"fail", nil, Error{Message: "disk full", Code: CodeFailed}},
		{"fail-well", nil, Error{Message: "reload: a.xml:1:2: bad", Code: CodeConfig, Hint: "look at it"}},
		{"count", map[string]int{"count": 1, "allow_direct": 1}, Error{Code: CodeBadRequest}},
		{"count", "text", Error{Code: CodeBadRequest}},
		{"teleport", nil, Error{Code: CodeUnknownOp}},
	} {
		err := c.Call(t.Context(), tc.op, tc.args, nil, nil, nil)
		var e *Error
		if !errors.As(err, &e) || e.Code != tc.want.Code {
			t.Errorf("%s: %v", tc.op, err)
			continue
		}
		if tc.want.Message != "" && *e != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.op, *e, tc.want)
		}
		if tc.op == "teleport" && e.Hint == "" {
			t.Error("an unknown operation comes without a hint")
		}
	}

	got = nil
	if err := c.Call(t.Context(), "pid", nil, nil, collect, nil); err != nil {
		t.Errorf("after errors: %v", err)
	}
	if want := fmt.Sprintf("[%d,%d]", os.Getpid(), os.Geteuid()); len(got) != 1 || got[0] != want {
		t.Errorf("credentials %v, want %s", got, want)
	}
}

func TestRowErrorEndsCall(t *testing.T) {
	ended := make(chan error, 1)
	address := serve(t, func(s *Server) {
		s.Handle("endless", func(ctx context.Context, c *Call) error {
			for {
				if err := c.Send("row"); err != nil {
					<-ctx.Done()
					ended <- context.Cause(ctx)
					return err
				}
			}
		})
	})
	c := dial(t, address)
	full := errors.New("output full")
	if err := c.Call(t.Context(), "endless", nil, nil, func(json.RawMessage) error { return full }, nil); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
	if err := within(t, ended); !errors.Is(err, ErrClientGone) {
		t.Errorf("handler's cause: %v", err)
	}
	if err := c.Call(t.Context(), "endless", nil, nil, nil, nil); err == nil {
		t.Error("the client still works")
	}
}

func TestFiles(t *testing.T) {
	before := openFiles(t)
	type result struct {
		text    string
		cloexec bool
	}
	results := make(chan result, MaxFiles)
	address := serve(t, func(s *Server) {
		s.Handle("read", func(_ context.Context, c *Call) error {
			for _, f := range c.Files() {
				defer f.Close()
				b, err := io.ReadAll(f)
				if err != nil {
					return err
				}
				flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
				if err != nil {
					return err
				}
				results <- result{string(b), flags&unix.FD_CLOEXEC != 0}
			}
			if c.Files() != nil {
				return errors.New("handed over twice")
			}
			return nil
		})
		s.Handle("ignore", func(context.Context, *Call) error { return nil })
	})
	pipe := func(text string) *os.File {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteString(text); err != nil {
			t.Fatal(err)
		}
		w.Close()
		return r
	}
	func() {
		c, err := Dial(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		var files []*os.File
		for i := range MaxFiles {
			files = append(files, pipe(fmt.Sprint(i)))
		}
		if err := c.Call(t.Context(), "read", nil, files, nil, nil); err != nil {
			t.Fatal(err)
		}
		for i := range MaxFiles {
			if r := <-results; r.text != fmt.Sprint(i) || !r.cloexec {
				t.Errorf("descriptor %d: %+v", i, r)
			}
		}
		for range 100 {
			if err := c.Call(t.Context(), "ignore", nil, files, nil, nil); err != nil {
				t.Fatal(err)
			}
			if err := c.Call(t.Context(), "unknown", nil, files, nil, nil); err == nil {
				t.Fatal("unknown operation done")
			}
		}
		if err := c.Call(t.Context(), "ignore", nil, append(files, files[0]), nil, nil); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%d descriptors: %v", MaxFiles+1, err)
		}
		if err := c.Call(t.Context(), "ignore", nil, nil, nil, nil); err != nil {
			t.Errorf("after one that was too large: %v", err)
		}
		closeAll(files)
		if err := c.Call(t.Context(), "ignore", nil, files[:1], nil, nil); err == nil {
			t.Error("a closed file was sent")
		}
	}()
	sameFiles(t, before+5) // the server's: listener, lock, directory; the poller's own
}

func TestPrompt(t *testing.T) {
	address := serve(t, func(s *Server) {
		s.Handle("ask", func(ctx context.Context, c *Call) error {
			a, err := c.Ask(ctx, Prompt{Text: "passphrase?", Secret: true})
			if err != nil {
				return err
			}
			b, err := c.Ask(ctx, Prompt{Text: "sure?", YesNo: true})
			if err != nil {
				return err
			}
			return c.Send(a + "," + b)
		})
		s.Handle("ask-many", func(ctx context.Context, c *Call) error {
			var wg sync.WaitGroup
			for i := range 20 {
				wg.Go(func() {
					if got, err := c.Ask(ctx, Prompt{Text: fmt.Sprint(i)}); err != nil || got != fmt.Sprint(i) {
						t.Errorf("question %d: %q, %v", i, got, err)
					}
				})
			}
			wg.Wait()
			return nil
		})
		s.Handle("ask-briefly", func(ctx context.Context, c *Call) error {
			ctx, cancel := context.WithCancelCause(ctx)
			cancel(errors.New("nobody waits"))
			_, err := c.Ask(ctx, Prompt{Text: "?"})
			return err
		})
	})
	c := dial(t, address)
	var asked []Prompt
	var got string
	err := c.Call(t.Context(), "ask", nil, nil, func(row json.RawMessage) error { return json.Unmarshal(row, &got) },
		func(p Prompt) (string, error) { asked = append(asked, p); return fmt.Sprint("a", len(asked)), nil })
	if err != nil || got != "a1,a2" {
		t.Errorf("%q, %v", got, err)
	}
	if want := []Prompt{{Text: "passphrase?", Secret: true}, {Text: "sure?", YesNo: true}}; !slices.Equal(asked, want) {
		t.Errorf("asked %+v", asked)
	}

	open := 0
	if err := c.Call(t.Context(), "ask-many", nil, nil, nil, func(p Prompt) (string, error) {
		if open++; open > 1 {
			t.Error("two questions at once")
		}
		defer func() { open-- }()
		return p.Text, nil
	}); err != nil {
		t.Error(err)
	}

	if err := c.Call(t.Context(), "ask", nil, nil, nil, nil); err == nil || !strings.Contains(err.Error(), ErrNoPrompt.Error()) {
		t.Errorf("nobody to ask: %v", err)
	}
	if err := c.Call(t.Context(), "ask", nil, nil, nil, func(Prompt) (string, error) { return "", errors.New("no thanks") }); err == nil || !strings.Contains(err.Error(), "no thanks") {
		t.Errorf("declined: %v", err)
	}
	long := strings.Repeat("x", MaxMessage)
	if err := c.Call(t.Context(), "ask", nil, nil, nil, func(Prompt) (string, error) { return long, nil }); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("long answer: %v", err)
	}

	// The broker gives up: the call ends although the person has not answered.
	release := make(chan struct{})
	if err := c.Call(t.Context(), "ask-briefly", nil, nil, nil, func(Prompt) (string, error) { <-release; return "late", nil }); err == nil || !strings.Contains(err.Error(), "nobody waits") {
		t.Errorf("given up: %v", err)
	}
	close(release)
	if err := c.Call(t.Context(), "ask-many", nil, nil, nil, func(p Prompt) (string, error) { return p.Text, nil }); err != nil {
		t.Errorf("after a late answer: %v", err)
	}
}

func TestClientGoneEndsCall(t *testing.T) {
	for name, leave := range map[string]func(c *Client, cancel func()){
		"close":  func(c *Client, _ func()) { c.Close() },
		"cancel": func(_ *Client, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			started, ended := make(chan struct{}, 3), make(chan error, 3)
			wait := func(wait func(context.Context, *Call) error) Handler {
				return func(ctx context.Context, c *Call) error {
					started <- struct{}{}
					err := wait(ctx, c)
					ended <- err
					return err
				}
			}
			address := serve(t, func(s *Server) {
				s.Handle("wait", wait(func(ctx context.Context, c *Call) error { <-ctx.Done(); return context.Cause(ctx) }))
				s.Handle("recv", wait(func(ctx context.Context, c *Call) error { _, _, err := c.Recv(ctx); return err }))
				s.Handle("ask", wait(func(ctx context.Context, c *Call) error {
					_, err := c.Ask(ctx, Prompt{Text: "?"})
					return err
				}))
			})
			for _, op := range []string{"wait", "recv", "ask"} {
				c := dial(t, address)
				ctx, cancel := context.WithCancel(t.Context())
				release := make(chan struct{})
				returned := make(chan error, 1)
				go func() {
					returned <- c.Call(ctx, op, nil, nil, nil, func(Prompt) (string, error) { <-release; return "", nil })
				}()
				within(t, started)
				leave(c, cancel)
				want := context.Canceled
				if name == "close" {
					want = net.ErrClosed
				}
				if err := within(t, returned); !errors.Is(err, want) {
					t.Errorf("%s: the call ended with %v, want %v", op, err, want)
				}
				if err := within(t, ended); !errors.Is(err, ErrClientGone) {
					t.Errorf("%s: handler ended with %v", op, err)
				}
				close(release)
				cancel()
			}
		})
	}
}

func TestNotes(t *testing.T) {
	address := serve(t, func(s *Server) {
		s.Handle("echo", func(ctx context.Context, c *Call) error {
			for {
				body, files, err := c.Recv(ctx)
				if err != nil {
					return err
				}
				n := len(files)
				closeAll(files)
				if string(body) == `"end"` {
					return nil
				}
				if err := c.Send(fmt.Sprintf("%s+%d", body, n)); err != nil {
					return err
				}
			}
		})
	})
	before := openFiles(t)
	c := dial(t, address)
	got := make(chan string, 10)
	returned := make(chan error, 1)
	go func() {
		returned <- c.Call(t.Context(), "echo", nil, nil, func(row json.RawMessage) error {
			var s string
			err := json.Unmarshal(row, &s)
			got <- s
			return err
		}, nil)
	}()
	// A note may overtake the call that another goroutine makes and is dropped
	// then; so go on until the first has come back.
	for ready := false; !ready; {
		if err := c.Send("hello"); err != nil {
			t.Fatal(err)
		}
		select {
		case s := <-got:
			ready = s == `"hello"+0`
		case <-time.After(10 * time.Millisecond):
		}
	}
	if err := c.Send("files", os.Stdin, os.Stdin); err != nil {
		t.Fatal(err)
	}
	for s := within(t, got); s != `"files"+2`; s = within(t, got) {
		if s != `"hello"+0` {
			t.Errorf("got %s", s)
		}
	}
	if err := c.Send("end"); err != nil {
		t.Fatal(err)
	}
	if err := within(t, returned); err != nil {
		t.Error(err)
	}
	if err := c.Send("too late", os.Stdin); err != nil {
		t.Errorf("a note between calls: %v", err)
	}
	c.Close()
	sameFiles(t, before)
}

// Notes that nobody reads must not grow without bound.
func TestUnreadNotesEndTheClient(t *testing.T) {
	cause := make(chan error, 1)
	started := make(chan struct{})
	address := serve(t, func(s *Server) {
		s.Handle("deaf", func(ctx context.Context, c *Call) error {
			close(started)
			<-ctx.Done()
			cause <- context.Cause(ctx)
			return nil
		})
	})
	before := openFiles(t)
	c := dial(t, address)
	returned := make(chan error, 1)
	go func() { returned <- c.Call(t.Context(), "deaf", nil, nil, nil, nil) }()
	within(t, started)
	for c.Send("x", os.Stdin) == nil {
	}
	within(t, cause)
	if err := within(t, returned); err == nil || !strings.Contains(err.Error(), "unread") {
		t.Errorf("got %v", err)
	}
	c.Close()
	sameFiles(t, before)
}

func TestTooLarge(t *testing.T) {
	address := serve(t, func(s *Server) {
		s.Handle("large-row", func(_ context.Context, c *Call) error {
			err := c.Send(strings.Repeat("x", MaxMessage))
			if !errors.Is(err, ErrTooLarge) {
				t.Errorf("a large row: %v", err)
			}
			return c.Send("small")
		})
		s.Handle("large-error", func(context.Context, *Call) error {
			return errors.New(strings.Repeat("a.xml:1:1: \x01\"<>&\xff\n", 20000))
		})
	})
	c := dial(t, address)
	if err := c.Call(t.Context(), "large-row", strings.Repeat("x", MaxMessage), nil, nil, nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large arguments: %v", err)
	}
	if err := c.Call(t.Context(), "large-row", nil, nil, nil, nil); err != nil {
		t.Errorf("large row: %v", err)
	}
	err := c.Call(t.Context(), "large-error", nil, nil, nil, nil)
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeFailed || !strings.HasSuffix(e.Message, "\n...") {
		t.Errorf("a large error: %.80v", err)
	}
	// And from a peer that does not keep to it:
	raw := rawDial(t, address)
	raw.hello(t)
	raw.send(t, []byte(`{"kind":"call","op":"`+strings.Repeat("x", MaxMessage)+`"}`))
	if got := raw.last(t); got.Code != CodeBadRequest || !strings.Contains(got.Error, "too large") {
		t.Errorf("%+v", got)
	}
}

// raw is a client that need not keep to the protocol.
type raw struct{ *conn }

func rawDial(t testing.TB, address string) raw {
	t.Helper()
	uc, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: address, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { uc.Close() })
	return raw{newConn(uc, 10*time.Second)}
}

func (r raw) hello(t testing.TB) {
	t.Helper()
	if err := r.write(message{Kind: kindHello, Protocol: protocol}); err != nil {
		t.Fatal(err)
	}
	if m, _, err := r.read(); err != nil || m.Kind != kindHello {
		t.Fatalf("%+v, %v", m, err)
	}
}

func (r raw) send(t testing.TB, b []byte, fds ...int) {
	t.Helper()
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := r.WriteMsgUnix(b, rights, nil); err != nil {
		t.Fatal(err)
	}
}

// last returns the last message before the server closes.
func (r raw) last(t testing.TB) (last message) {
	t.Helper()
	_ = r.SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		m, _, err := r.read()
		if errors.Is(err, io.EOF) {
			return last
		}
		if err != nil {
			t.Fatal(err)
		}
		last = m
	}
}

func TestMisuse(t *testing.T) {
	address := serve(t, func(s *Server) {
		s.Handle("wait", func(ctx context.Context, _ *Call) error { <-ctx.Done(); return ctx.Err() })
	})
	before := openFiles(t)
	const call = `{"kind":"call","op":"wait"}`
	for name, tc := range map[string]struct {
		hello bool
		send  []string
		want  Code
		text  string
	}{
		"garbage":              {true, []string{"\x00\xff{"}, CodeBadRequest, "malformed"},
		"not an object":        {true, []string{`[1,2]`}, CodeBadRequest, "malformed"},
		"two objects":          {true, []string{call + call}, CodeBadRequest, "malformed"},
		"wrong type":           {true, []string{`{"kind":7}`}, CodeBadRequest, "malformed"},
		"unknown kind":         {true, []string{`{"kind":"dance"}`}, CodeBadRequest, "unexpected"},
		"no kind":              {true, []string{`{}`}, CodeBadRequest, "unexpected"},
		"second hello":         {true, []string{`{"kind":"hello","protocol":1}`}, CodeBadRequest, "unexpected"},
		"two calls":            {true, []string{call, call}, CodeBadRequest, "not done"},
		"garbage in a call":    {true, []string{call, "{"}, CodeBadRequest, "malformed"},
		"call before hello":    {false, []string{call}, CodeBadRequest, "before the hello"},
		"garbage before hello": {false, []string{"GET / HTTP/1.1\r\n"}, CodeBadRequest, "malformed"},
		"other protocol":       {false, []string{`{"kind":"hello","protocol":99,"version":"9.9"}`}, CodeVersion, "protocol 99"[:8]},
		"empty":                {true, []string{""}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := rawDial(t, address)
			if tc.hello {
				r.hello(t)
			}
			for _, s := range tc.send {
				r.send(t, []byte(s), 0, 0, 0) // descriptors on everything: none may stay
			}
			if tc.want == "" {
				r.Close()
				return
			}
			if got := r.last(t); got.Kind != kindDone || got.Code != tc.want || !strings.Contains(got.Error, tc.text) {
				t.Errorf("%+v", got)
			}
			r.Close()
		})
	}
	t.Run("too many descriptors", func(t *testing.T) {
		r := rawDial(t, address)
		r.hello(t)
		r.send(t, []byte(call), make([]int, 200)...)
		if got := r.last(t); got.Code != CodeBadRequest || !strings.Contains(got.Error, "descriptors lost") {
			t.Errorf("%+v", got)
		}
		r.Close()
	})
	sameFiles(t, before)
	if err := dial(t, address).Call(t.Context(), "unknown", nil, nil, nil, nil); err == nil || !strings.Contains(err.Error(), "does not know") {
		t.Errorf("the server, afterwards: %v", err)
	}
}

// The client of a wrong broker: whatever comes, Call ends with an error.
func TestHostileBroker(t *testing.T) {
	path := socketPath(t)
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	before := openFiles(t)
	for _, tc := range []struct {
		answers []string
		want    string
	}{
		{[]string{"{"}, "malformed"},
		{[]string{`{"kind":"row"}`}, "not a broker"},
		{[]string{`{"kind":"hello","protocol":2}`}, "protocol"},
		{[]string{`{"kind":"done","error":"go away","code":"forbidden"}`}, "go away"},
		{[]string{`{"kind":"hello","protocol":1}`, `{"kind":"hello"}`}, "unexpected"},
		{[]string{`{"kind":"hello","protocol":1}`, `{"kind":"ask"}`}, "unexpected"},
		{[]string{`{"kind":"hello","protocol":1}`, `nonsense`}, "malformed"},
		{[]string{`{"kind":"hello","protocol":1}`, ``}, ErrBrokerGone.Error()},
	} {
		go func() {
			uc, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			defer uc.Close()
			b := make([]byte, MaxMessage)
			for _, a := range tc.answers {
				_, _ = uc.Read(b)
				if a != "" {
					_, _ = uc.Write([]byte(a))
				}
			}
		}()
		c, err := Dial(t.Context(), path)
		if err == nil {
			err = c.Call(t.Context(), "status", nil, nil, nil, nil)
			c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: %v, want %q", tc.answers, err, tc.want)
		}
	}
	// Descriptors are never taken from a broker.
	go func() {
		uc, err := ln.AcceptUnix()
		if err != nil {
			return
		}
		_, _, _ = uc.WriteMsgUnix([]byte(`{"kind":"hello","protocol":1}`), unix.UnixRights(0, 0), nil)
		_, _ = io.Copy(io.Discard, uc)
		uc.Close()
	}()
	if _, err := Dial(t.Context(), path); err == nil || !strings.Contains(err.Error(), "descriptors on") {
		t.Errorf("descriptors from a broker: %v", err)
	}
	sameFiles(t, before)
}

// A client that does not read costs its own connection and nothing else.
func TestStuckClient(t *testing.T) {
	failed := make(chan error, 1)
	address := serve(t, func(s *Server) {
		s.WriteTimeout = 50 * time.Millisecond
		s.Handle("flood", func(_ context.Context, c *Call) error {
			row := strings.Repeat("x", 10000)
			for {
				if err := c.Send(row); err != nil {
					failed <- err
					return err
				}
			}
		})
		s.Handle("quick", func(context.Context, *Call) error { return nil })
	})
	stuck := rawDial(t, address)
	stuck.hello(t)
	stuck.send(t, []byte(`{"kind":"call","op":"flood"}`))
	if err := dial(t, address).Call(t.Context(), "quick", nil, nil, nil, nil); err != nil {
		t.Errorf("another client meanwhile: %v", err)
	}
	if err := within(t, failed); !errors.Is(err, os.ErrDeadlineExceeded) || !errors.Is(err, ErrClientGone) {
		t.Errorf("got %v", err)
	}
}

func TestTooManyClients(t *testing.T) {
	counts := make(chan int, 100)
	address := serve(t, func(s *Server) {
		s.MaxClients = 2
		s.OnClients = func(n int) { counts <- n }
	})
	a, b := dial(t, address), dial(t, address)
	for range 20 {
		_, err := Dial(t.Context(), address)
		var e *Error
		if !errors.As(err, &e) || e.Code != CodeBusy || e.Hint == "" {
			t.Fatalf("a third client: %v", err)
		}
	}
	a.Close()
	if got := []int{within(t, counts), within(t, counts), within(t, counts)}; !slices.Equal(got, []int{1, 2, 1}) {
		t.Errorf("counted %v", got)
	}
	dial(t, address)
	b.Close()
}

func TestAcceptBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(slog.New(slog.DiscardHandler))
		var at []time.Duration
		begin := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		err := s.accept(ctx, func() (*net.UnixConn, error) {
			at = append(at, time.Since(begin))
			if len(at) == 12 {
				cancel()
			}
			return nil, &net.OpError{Op: "accept", Err: unix.EMFILE}
		})
		if err != nil {
			t.Error(err)
		}
		if last := at[11] - at[10]; last != time.Second || at[1]-at[0] != 5*time.Millisecond {
			t.Errorf("tries at %v", at)
		}
	})
}

// TestClientWithoutDescriptors: one client is accepted when there is no descriptor left, and
// the next one when that one has gone.
func TestClientWithoutDescriptors(t *testing.T) {
	ln, err := Listen(socketPath(t))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var clients []net.Conn
	for range 3 { // which wait to be accepted
		c, err := net.Dial("unixpacket", ln.Address())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients = append(clients, c)
	}
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	free, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(free)
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(free), Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	for range clients {
		c, err := ln.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ln.AcceptUnix(); !errors.Is(err, unix.EMFILE) {
			t.Errorf("one more: %v", err)
		}
		c.Close()
	}
}

// What a handler returns as the server stops still reaches the client.
func TestStop(t *testing.T) {
	ln, err := Listen(socketPath(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s := NewServer(slog.New(slog.DiscardHandler))
	waiting := make(chan struct{})
	s.Handle(OpStop, func(context.Context, *Call) error { cancel(); return nil })
	s.Handle("wait", func(ctx context.Context, _ *Call) error { close(waiting); <-ctx.Done(); return ctx.Err() })
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()

	idle := dial(t, ln.Address())
	busy := dial(t, ln.Address())
	returned := make(chan error, 1)
	go func() { returned <- busy.Call(t.Context(), "wait", nil, nil, nil, nil) }()
	within(t, waiting)
	if err := dial(t, ln.Address()).Call(t.Context(), OpStop, StopArgs{}, nil, nil, nil); err != nil {
		t.Errorf("stop: %v", err)
	}
	var e *Error
	if err := within(t, returned); !errors.As(err, &e) || e.Code != CodeStopping {
		t.Errorf("a call meanwhile: %v", err)
	}
	if err := within(t, served); err != nil {
		t.Error(err)
	}
	if err := idle.Call(t.Context(), "wait", nil, nil, nil, nil); !errors.Is(err, ErrBrokerGone) {
		t.Errorf("a call afterwards: %v", err)
	}
	if _, err := Dial(t.Context(), ln.Address()); !errors.Is(err, ErrNoBroker) {
		t.Errorf("a client afterwards: %v", err)
	}
}

func TestNoBroker(t *testing.T) {
	path := socketPath(t)
	if _, err := Dial(t.Context(), path); !errors.Is(err, ErrNoBroker) {
		t.Errorf("no socket: %v", err)
	}
	old, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	if _, err := Dial(t.Context(), path); !errors.Is(err, ErrNoBroker) {
		t.Errorf("a dead broker's socket: %v", err)
	}
	os.Remove(path)
	stream, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if _, err := Dial(t.Context(), path); err == nil || errors.Is(err, ErrNoBroker) {
		t.Errorf("another kind of socket: %v", err)
	}
}

// Many at once, with calls of all kinds, under the race detector.
func TestManyClients(t *testing.T) {
	address := serve(t, func(s *Server) {
		s.Handle("rows", func(_ context.Context, c *Call) error {
			closeAll(c.Files())
			for i := range 50 {
				if err := c.Send(i); err != nil {
					return err
				}
			}
			return nil
		})
	})
	before := openFiles(t)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			c, err := Dial(t.Context(), address)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for range 10 {
				n := 0
				if err := c.Call(t.Context(), "rows", nil, []*os.File{os.Stdin}, func(json.RawMessage) error { n++; return nil }, nil); err != nil || n != 50 {
					t.Errorf("%d rows, %v", n, err)
				}
			}
		})
	}
	wg.Wait()
	sameFiles(t, before)
}

func TestAnotherUserRefused(t *testing.T) {
	needRoot(t)
	dir := openDirFor(t, os.Geteuid(), 0o755)
	ln, err := Listen(dir + "/broker")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- NewServer(slog.New(slog.DiscardHandler)).Serve(ctx, ln) }()
	defer func() { cancel(); within(t, served) }()

	say := func() string {
		out, err := foreign(t, "foreign-client", ln.Address()).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if got := say(); !strings.Contains(got, "permission denied") {
		t.Errorf("at the socket: %s", got)
	}
	if err := os.Chmod(ln.Address(), 0o666); err != nil { // were the mode ever lost
		t.Fatal(err)
	}
	if got := say(); !strings.Contains(got, "this broker belongs to user root") {
		t.Errorf("at the broker: %s", got)
	}
}

func TestBrokerOfAnotherUser(t *testing.T) {
	needRoot(t)
	address := openDirFor(t, foreignUID, 0o755) + "/broker"
	cmd := foreign(t, "foreign-broker", address)
	stdin, stdout := pipes(t, cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stdin.Close(); _ = cmd.Wait() }()
	line := make([]byte, 200)
	n, _ := stdout.Read(line)
	if got := string(line[:n]); got != "ready\n" {
		t.Fatalf("the broker says %q", got)
	}
	if _, err := Dial(t.Context(), address); err == nil || !strings.Contains(err.Error(), "uid 54321") {
		t.Errorf("root without -a: %v", err)
	}
	c, err := Dialer{Address: address, AnyOwner: true}.Dial(t.Context())
	if err != nil {
		t.Fatalf("root with -a: %v", err)
	}
	defer c.Close()
	if err := c.Call(t.Context(), OpStatus, nil, nil, nil, nil); err != nil {
		t.Errorf("root's call: %v", err)
	}
}

func pipes(t *testing.T, cmd *exec.Cmd) (io.WriteCloser, io.ReadCloser) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	return in, out
}
