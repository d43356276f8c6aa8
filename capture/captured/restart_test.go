package captured

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/service"
)

// startKept runs a server of its own process, with a keeper.
func startKept(t *testing.T, o Options) *server {
	t.Helper()
	o.Failpoint = nil
	b, err := json.Marshal(struct {
		Socket, StateDir, Program string
		Admins                    int
		NoBPF                     bool
	}{o.Socket, o.StateDir, o.Program, o.Admins, o.NoBPF})
	if err != nil {
		t.Fatal(err)
	}
	s := &server{opts: o, log: &logBuffer{}}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), role+"=server", "CAPTURED_TEST_OPTIONS="+string(b), "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = s.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("server: %v", err)
		}
		if t.Failed() {
			t.Log(s.log)
		}
	})
	s.awaitUp(t)
	return s
}

func (s *server) awaitUp(t *testing.T) {
	t.Helper()
	poll(t, "the server", func() bool {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		return unix.Connect(fd, &unix.SockaddrUnix{Name: s.opts.Socket}) == nil
	})
}

// TestRestart kills the server while attempts wait, and are with a broker.
func TestRestart(t *testing.T) {
	s, direct := startKept(t, newOptions(t)), listenDirect(t)
	c := s.client(t, alice)
	id, p := c.capture(t, alice)
	c.serve(id, judge())
	given := p.dial(direct)
	a := c.attempt()
	worker := s.status(t).PID
	_ = syscall.Kill(worker, syscall.SIGSTOP)
	waits := p.dial(direct)
	_ = syscall.Kill(worker, syscall.SIGKILL)
	c.ended()

	c = s.client(t, alice)
	c.serve(id, judge())
	b, d := c.attempt(), c.attempt()
	if b.Attempt.Key != a.Attempt.Key {
		b, d = d, b
	}
	if b.Attempt.Key != a.Attempt.Key {
		t.Errorf("%v and %v came, want %v", b.Attempt.Key, d.Attempt.Key, a.Attempt.Key)
	}
	c.admit(b, "first")
	c.pass(d)
	expect(t, given, "first")
	expect(t, waits, "direct")
	if now := s.status(t).PID; now == worker {
		t.Errorf("process %d is the same", now)
	}

	// Nobody else may claim what was admitted, and a claim of nothing ends.
	key := b.Attempt.Key
	s.client(t, bob).fails(service.CodeAbandoned, service.Message{Op: service.OpAdmit, Key: &key})
	how := p.dial(direct)
	held := c.attempt()
	s.client(t, bob).fails(service.CodeNotFound, service.Message{Op: service.OpAdmit, Key: &held.Attempt.Key})
	c.admit(held, "tunnel")
	expect(t, how, "tunnel")

	p.kill()
	poll(t, "the cgroup to be gone", func() bool { return len(leaves()) == 0 })
}

// TestClaim: a connection that was admitted by a process which is dead.
func TestClaim(t *testing.T) {
	o := newOptions(t)
	s, direct := startKept(t, o), listenDirect(t)
	c := s.client(t, alice)
	id, p := c.capture(t, alice)
	c.serve(id, judge())
	how := p.dial(direct)
	a := c.attempt()
	worker := s.status(t).PID
	// It may die before the verdict, so that the SYN comes again; after it, so that the
	// connection is there to be claimed; or not before the answer.
	admitted := c.ask(service.Message{Op: service.OpAdmit, ID: a.ID})
	_ = syscall.Kill(worker, syscall.SIGKILL)
	c.ended()
	if r, ok := <-admitted; ok { // it was faster
		c.greet(r, "tunnel")
		expect(t, how, "tunnel")
		s.status(t) // the next one is up
		return
	}
	c = s.client(t, alice)
	c.serve(id, judge())
	claim := c.ask(service.Message{Op: service.OpAdmit, Key: &a.Attempt.Key})
	r := await(t, "claim", claim)
	if r.Error == nil {
		c.greet(r, "tunnel")
	} else {
		select {
		case again := <-c.attempts:
			c.admit(again, "tunnel")
		case got := <-how: // it had been accepted, and died with the process
			if got != "ECONNRESET" {
				t.Errorf("the program: %s", got)
			}
			return
		case <-time.After(patience):
			t.Fatalf("neither an attempt nor a connection: %v", r.Error)
		}
	}
	expect(t, how, "tunnel")
}

func TestSavedState(t *testing.T) {
	o := newOptions(t)
	file := filepath.Join(o.StateDir, configFile)
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, garbage := range []string{"", "x", `{"captures":7}`, `{"captures":{"system":{"spec":{"pools":["no"]}}}}`} {
		write(garbage)
		if s, err := startErr(t, o); err == nil {
			t.Errorf("started with state %q", garbage)
			_ = s.stop()
		}
	}
	// Of another boot, with fields of another version.
	write(`{"future":1,"icmp_unlimited":true,"captures":{"gone1234":{"owner":54321,"queue":21000,"spec":{}},
		"system":{"owner":0,"queue":21005,"spec":{"local":true,"users":[{"lo":54321,"hi":54321}],"other":2}}}}`)
	s, direct := start(t, o), listenDirect(t)
	if st := s.status(t); len(st.Captures) != 0 || st.Enabled {
		t.Errorf("status %+v", st)
	}
	root, p := s.client(t, 0), start1(t, alice)
	before := readRatemask()
	root.must(service.Message{Op: service.OpConnector, Enable: new(true)}) // the rules are there
	if st := s.status(t); len(st.Captures) != 1 || st.Captures[0].ID != service.System || !st.Enabled || st.Serving {
		t.Errorf("status %+v", st)
	}
	if icmpLimited() {
		t.Error("refusals are limited")
	}
	p.dial(direct)
	poll(t, "it to wait", func() bool { return s.status(t).Captures[0].Waiting == 1 })
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	s = start(t, o) // without a keeper: the SYN comes again
	system := s.client(t, 0)
	if st := s.status(t); !st.Enabled {
		t.Error("not enabled any more")
	}
	system.serve(service.System, &capture.Spec{Local: true, Users: []capture.UIDRange{{Lo: alice, Hi: alice}}})
	how := p.dial(direct)
	for got := 0; got < 2; got++ {
		system.pass(system.attempt())
	}
	expect(t, how, "direct")
	system.must(service.Message{Op: service.OpConnector, Enable: new(false)})
	if readRatemask() != before {
		t.Errorf("icmp_ratemask %d, was %d", readRatemask(), before)
	}
}

// TestReleaseOfTheDead removes what a process left that was killed with its keeper.
func TestReleaseOfTheDead(t *testing.T) {
	o := newOptions(t)
	s, direct := start(t, o), listenDirect(t)
	c := s.client(t, alice)
	id, p := c.capture(t, alice)
	c.serve(id, judge())
	how := p.dial(direct)
	c.attempt()
	if err := s.stop(); err != nil { // what is captured stays captured
		t.Fatal(err)
	}
	if got := <-p.connect(direct, 100*time.Millisecond); got != "timeout" {
		t.Errorf("the program: %s, want timeout", got)
	}
	if icmpLimited() {
		t.Error("refusals are limited")
	}
	if err := Release(o); err != nil {
		t.Fatal(err)
	}
	expect(t, p.dial(direct), "direct")
	expect(t, how, "direct") // its SYN comes again
	if !icmpLimited() {
		t.Error("refusals are not limited")
	}
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil || len(out) != 0 {
		t.Errorf("left: %v %s", err, out)
	}
	s = start(t, o)
	expect(t, p.dial(direct), "direct")
	if n := len(s.status(t).Captures); n != 0 {
		t.Errorf("%d captures", n)
	}
}

// TestFailures: what cannot be saved, or loaded, leaves things as they were.
func TestFailures(t *testing.T) {
	o := newOptions(t)
	if err := unix.Mount("none", o.StateDir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(o.StateDir, unix.MNT_DETACH)
	s, direct := start(t, o), listenDirect(t)
	c := s.client(t, alice)
	id, p := c.capture(t, alice)
	c.serve(id, &capture.Spec{Local: true, Rest: capture.Reset})
	expect(t, p.dial(direct), "ECONNREFUSED")

	full := filepath.Join(o.StateDir, "full")
	_ = os.WriteFile(full, make([]byte, 1<<20), 0o600)
	c.fails(service.CodeKernel, service.Message{Op: service.OpSpec, Capture: id, Spec: &capture.Spec{Rest: capture.Pass}})
	c.fails(service.CodeKernel, service.Message{Op: service.OpMake, Capture: "another"})
	expect(t, p.dial(direct), "ECONNREFUSED")
	if n := len(leaves()); n != 1 {
		t.Errorf("%d cgroups", n)
	}
	os.Remove(full)

	// A descriptor that is none has the rules of the old config loaded again.
	s.changing.Lock()
	s.table.Close()
	s.changing.Unlock()
	c.fails(service.CodeKernel, service.Message{Op: service.OpSpec, Capture: id, Spec: &capture.Spec{Rest: capture.Pass}})
	expect(t, p.dial(direct), "ECONNREFUSED")
	saved, _, err := (&Server{Options: o}).load()
	if err != nil || saved.Captures[id].Spec.Rest != capture.Reset {
		t.Errorf("saved: %+v, %v", saved, err)
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	if len(s.captures) != 1 || len(s.config.Captures) != 1 || len(s.queues) != 1 {
		t.Errorf("captures %v, queues %v", s.captures, s.queues)
	}
}

// TestNoDescriptors: without any, requests fail alone, and what waits is not lost.
func TestNoDescriptors(t *testing.T) {
	s, direct := start(t, newOptions(t)), listenDirect(t)
	c := s.client(t, alice)
	id, p := c.capture(t, alice)
	c.serve(id, judge())
	how := p.dial(direct)
	a := c.attempt()
	second := s.client(t, alice)

	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	probe, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(probe)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(probe), Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	restore := func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old) }
	defer restore()
	c.fails(service.CodeNoFiles, service.Message{Op: service.OpAdmit, ID: a.ID})
	second.fails(service.CodeKernel, service.Message{Op: service.OpMake, Capture: "other"})
	second.must(service.Message{Op: service.OpStatus})
	restore()
	c.admit(a, "tunnel")
	expect(t, how, "tunnel")
	second.must(service.Message{Op: service.OpMake, Capture: "other"})
}

// TestStop: programs that are being admitted get in, and what is asked is answered.
func TestStop(t *testing.T) {
	s, direct := start(t, newOptions(t)), listenDirect(t)
	before := runtime.NumGoroutine()
	c := s.client(t, alice)
	id, p := c.capture(t, alice)
	c.serve(id, judge())
	var hows []<-chan string
	var admits []<-chan reply
	for range 20 {
		hows = append(hows, p.dial(direct))
	}
	for range hows {
		admits = append(admits, c.ask(service.Message{Op: service.OpAdmit, ID: c.attempt().ID}))
	}
	stopped := make(chan error, 1)
	go func() { stopped <- s.stop() }()
	in := 0
	for _, ch := range admits {
		if r, ok := <-ch; ok && r.Error == nil {
			c.greet(r, "tunnel")
			in++
		}
	}
	if err := await(t, "the server to end", stopped); err != nil {
		t.Error(err)
	}
	got := 0
	for _, how := range hows {
		select {
		case word := <-how:
			if word != "tunnel" {
				t.Errorf("a program: %s", word)
			}
			got++
		case <-time.After(10 * time.Millisecond): // held still
		}
	}
	if got != in {
		t.Errorf("%d were admitted, %d programs got in", in, got)
	}
	c.close()
	p.kill()
	poll(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
}

// FuzzHandle: no message of a client's brings the server down.
func FuzzHandle(f *testing.F) {
	if os.Geteuid() != 0 {
		f.Skip("needs root")
	}
	for op := range requests {
		f.Add(fmt.Appendf(nil, `{"op":%q,"seq":1,"capture":"fuzz","id":1,"spec":{"rules":[{}]},"enable":true,"key":{}}`, op), true)
	}
	for _, text := range []string{`{"op":"hello","hello":{"version":1}}`, `{"op":"hello"}`, `{}`, `[]`, `null`, `{"op":"refuse","id":1}`, `{"op":"nothing","seq":1}`, "\x00", `{"op":"pass","id":18446744073709551615}`,
		`{"op":"serve","seq":1,"capture":"fuzz","spec":{"pools":["0.0.0.0/0","::ffff:1.2.3.4/99"],"exempt":["[fe80::1%x]:1",":0"],"rules":[{"ports":[{"lo":9,"hi":1}],"number":-1,"outcome":255}],"users":[{"lo":1}]}}`,
		`{"op":"serve","seq":1,"capture":"system","spec":{"open":true}}`, `{"op":"admit","seq":1,"key":{"src":"1.2.3.4:5","dst":"[::1]:1","isn":1}}`} {
		f.Add([]byte(text), true)
		f.Add([]byte(text), false)
	}
	var s *server
	flagged := func(name string) string { return flag.Lookup("test." + name).Value.String() }
	if flagged("fuzz") == "" || flagged("fuzzworker") == "true" { // who leads the fuzzing needs none
		s = start(f, newOptions(f))
	}
	f.Fuzz(func(t *testing.T, b []byte, asRoot bool) {
		uid := alice
		if asRoot {
			uid = 0
		}
		if len(b) == 0 || len(b) > 100<<10 {
			return
		}
		c := s.dial(t, uid)
		c.send(service.Message{Op: service.OpHello, Hello: &service.Hello{Version: service.Version}})
		c.send(service.Message{Op: service.OpMake, Seq: 1, Capture: "fuzz"})
		raw, _ := c.conn.File().SyscallConn()
		_ = raw.Control(func(fd uintptr) { _ = unix.Send(int(fd), b, 0) })
		_ = c.conn.Send(service.Message{Op: service.OpStatus, Seq: 1 << 60}) // it may be cut off by now
		_ = c.conn.File().SetReadDeadline(time.Now().Add(patience))
		for {
			var m service.Message
			files, err := c.conn.Receive(&m)
			if errors.Is(err, os.ErrClosed) {
				t.Fatal("no answer")
			}
			for _, f := range files {
				f.Close()
			}
			if err != nil || m.Seq == 1<<60 {
				break
			}
		}
		c.conn.Close()
		poll(t, "the connection to be gone", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.clients) == 0
		})
	})
}
