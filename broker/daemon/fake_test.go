package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sshbroker/broker/audit"
	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/capture"
	"sshbroker/capture/capturetest"
	"sshbroker/capture/service"
	"sshbroker/capture/service/client"
	"sshbroker/profiles"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeSource is a capture of a fakeCaptured.
type fakeSource struct {
	*capturetest.Source
	options client.Options
	specs   chan capture.Spec // after the first

	mu      sync.Mutex
	served  service.Served
	failure error
	specErr error
}

func (s *fakeSource) Next(ctx context.Context) (capture.Attempt, error) {
	a, err := s.Source.Next(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(err, capture.ErrClosed) && s.failure != nil {
		err = errors.Join(err, s.failure)
	}
	return a, err
}

func (s *fakeSource) Served() service.Served {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.served
}

func (s *fakeSource) SetSpec(_ context.Context, spec capture.Spec) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.specErr != nil {
		return s.specErr
	}
	s.specs <- spec
	return nil
}

func (s *fakeSource) Close() error { s.Source.Close(); return nil }

// end ends the source as ssh-captured would.
func (s *fakeSource) end(code service.Code) {
	s.mu.Lock()
	s.failure = &service.Error{Code: code, Message: string(code)}
	s.mu.Unlock()
	s.Source.Close()
}

// fakeCaptured is an ssh-captured, which may be absent.
type fakeCaptured struct {
	mu      sync.Mutex
	absent  bool
	served  service.Served
	known   []service.Capture
	sources chan *fakeSource // that were asked for, those that carry as well
	tries   chan string      // ids that were asked for in vain
}

func newFakeCaptured() *fakeCaptured {
	return &fakeCaptured{served: service.Served{Held: true, Owner: uint32(os.Getuid()), Origins: true},
		sources: make(chan *fakeSource, 16), tries: make(chan string, 64)}
}

func (f *fakeCaptured) set(absent bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.absent = absent
}

func (f *fakeCaptured) captured() captured {
	open := func(o client.Options) (capturedSource, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.absent {
			select {
			case f.tries <- o.Capture:
			default:
			}
			return nil, client.ErrNotRunning
		}
		s := &fakeSource{Source: capturetest.NewSource(), options: o, specs: make(chan capture.Spec, 16), served: f.served}
		f.sources <- s
		return s, nil
	}
	return captured{
		serve: func(_ context.Context, o client.Options) (capturedSource, error) { return open(o) },
		carry: func(_ context.Context, o client.Options) (capturedSource, error) {
			o.Capture = "carried"
			return open(o)
		},
		status: func(context.Context) (service.Status, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.absent {
				return service.Status{}, client.ErrNotRunning
			}
			return service.Status{Enabled: true, Held: true, Origins: "bpf", Policy: "closed", Captures: f.known}, nil
		},
	}
}

// source waits for the capture of that id to be asked for, past others.
func (f *fakeCaptured) source(t *testing.T, id string) *fakeSource {
	t.Helper()
	for {
		if s := within(t, f.sources); s.options.Capture == id {
			return s
		}
	}
}

// connector makes transports whose every stream is an echo, unless it fails.
type connector struct {
	mu   sync.Mutex
	err  error
	seen []*profiles.Profile
}

func (c *connector) Connect(_ context.Context, p *profiles.Profile, _ profiles.DialFunc, _ profiles.Prompter) (profiles.Transport, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = append(c.seen, p)
	if c.err != nil {
		return nil, c.err
	}
	return &transport{done: make(chan struct{})}, nil
}

type transport struct {
	done chan struct{}
	once sync.Once
}

func (t *transport) Done() <-chan struct{} { return t.done }
func (t *transport) Err() error            { return profiles.ErrLost }
func (t *transport) Close() error          { t.once.Do(func() { close(t.done) }); return nil }
func (t *transport) Open(context.Context, profiles.Destination) (profiles.Stream, error) {
	near, far := pair()
	go func() {
		_, _ = io.Copy(far, far)
		far.Close()
	}()
	return stream{near}, nil
}

type stream struct{ *net.TCPConn }

func (s stream) Reset() error {
	_ = s.SetLinger(0)
	return s.Close()
}

func pair() (a, b *net.TCPConn) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		panic(err)
	}
	defer l.Close()
	if a, err = net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr)); err != nil {
		panic(err)
	}
	if b, err = l.AcceptTCP(); err != nil {
		panic(err)
	}
	return a, b
}

// bench is a daemon with everything around it made up but its control socket.
type bench struct {
	*Daemon
	t        *testing.T
	captured *fakeCaptured
	tunnels  *connector
	dir      string
	file     string // the rules
}

const engine = `<secsh-broker><profiles><profile id="gw" host="192.0.2.10" user="tunnel"/><profile id="plain" host="192.0.2.11"/></profiles>
<filter-engine %ATTRS%>%RULES%</filter-engine></secsh-broker>`

// rules writes the configuration.
func (b *bench) rules(attrs, rules string) {
	b.t.Helper()
	text := strings.NewReplacer("%ATTRS%", attrs, "%RULES%", rules).Replace(engine)
	if err := os.WriteFile(b.file, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// prepare makes a directory with rules in it.
func prepare(t *testing.T, attrs, rules string) *bench {
	t.Helper()
	dir, err := os.MkdirTemp("", "daemon") // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &bench{t: t, dir: dir, file: filepath.Join(dir, "rules.xml"), captured: newFakeCaptured(), tunnels: &connector{}}
	b.rules(attrs, rules)
	return b
}

// start runs the daemon; change may change its options.
func (b *bench) start(change func(*Options)) error {
	b.t.Helper()
	log := slog.New(slog.DiscardHandler)
	l, err := control.Listen(filepath.Join(b.dir, "broker"))
	if err != nil {
		b.t.Fatal(err)
	}
	o := Options{Listener: l, AuditPath: filepath.Join(b.dir, "audit.jsonl"), Tunnels: b.tunnels, Log: log, StateDir: b.dir, Home: b.dir, MaxFlows: 100,
		Config: config.Options{File: b.file, Env: config.Env{Home: b.dir, User: "me", UID: os.Getuid()}}}
	required := false
	if change != nil {
		change(&o)
		required = o.AuditPath == ""
	}
	if o.Audit, err = audit.Open(audit.Options{Path: filepath.Join(b.dir, "audit.jsonl"), Logger: log, Required: required}); err != nil {
		b.t.Fatal(err)
	}
	b.Daemon, err = New(o)
	if err != nil {
		l.Close()
		o.Audit.Close()
		return err
	}
	b.Daemon.captured = b.captured.captured()
	b.Daemon.watch = func(ctx context.Context, _ func(place)) { <-ctx.Done() } // tests move the host
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- b.Run(ctx) }()
	b.t.Cleanup(func() {
		cancel()
		if err := within(b.t, ran); err != nil {
			b.t.Errorf("Run: %v", err)
		}
	})
	return nil
}

func begin(t *testing.T, attrs, rules string, change func(*Options)) *bench {
	t.Helper()
	b := prepare(t, attrs, rules)
	if err := b.start(change); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) dial() *control.Client {
	b.t.Helper()
	c, err := control.Dial(b.t.Context(), b.Listener.Address())
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// one makes a call with one row as its answer.
func one[T any](b *bench, op string, args any) (row T, err error) {
	c := b.dial()
	defer c.Close()
	err = c.Call(b.t.Context(), op, args, nil, func(m json.RawMessage) error { return json.Unmarshal(m, &row) }, nil)
	return row, err
}

// client is a client of a capture, as ssh-capture is one.
type captureClient struct {
	rows chan control.CaptureRow
	done chan error
	conn *control.Client
}

func (b *bench) capture(args control.CaptureArgs) *captureClient {
	c := &captureClient{rows: make(chan control.CaptureRow, 64), done: make(chan error, 1), conn: b.dial()}
	go func() {
		c.done <- c.conn.Call(context.Background(), control.OpCapture, args, nil, func(m json.RawMessage) error {
			var row control.CaptureRow
			if err := json.Unmarshal(m, &row); err != nil {
				return err
			}
			c.rows <- row
			return nil
		}, nil)
	}()
	b.t.Cleanup(func() { c.conn.Close() })
	return c
}

// records reads the audit record, waiting for n lines.
func (b *bench) records(n int) []map[string]any {
	b.t.Helper()
	var list []map[string]any
	eventually(b.t, "records", func() bool {
		text, err := os.ReadFile(filepath.Join(b.dir, "audit.jsonl"))
		if err != nil {
			return false
		}
		list = nil
		for line := range strings.Lines(string(text)) {
			var r map[string]any
			if json.Unmarshal([]byte(line), &r) == nil {
				list = append(list, r)
			}
		}
		return len(list) >= n
	})
	return list
}

func within[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("nothing happened within 20 s")
		panic("unreachable")
	}
}

// eventually polls what no event tells.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// talk sends through an admitted attempt and expects the echo.
func talk(t *testing.T, a *capturetest.Attempt) {
	t.Helper()
	c := a.Program()
	defer c.Close()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
		t.Errorf("echo %q, %v", got, err)
	}
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}
