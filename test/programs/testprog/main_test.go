package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func startServe(t *testing.T, args ...string) string {
	t.Helper()
	return startServer(t, "serve", args...)
}

// startServer returns the address of a server that lives as long as the test.
func startServer(t *testing.T, word string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, append(append([]string{word}, args...), "127.0.0.1:0"), nil, w)
		w.CloseWithError(err)
		ended <- err
	}()
	line := make(chan string, 1)
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		b := make([]byte, 256)
		n, _ := r.Read(b)
		line <- string(b[:n])
		io.Copy(io.Discard, r)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", word, err)
		}
		<-drained
	})
	address, ok := strings.CutPrefix(strings.TrimSpace(<-line), "listening ")
	if !ok {
		t.Fatal("the server does not say where it listens")
	}
	return address
}

func TestExchange(t *testing.T) {
	address := startServe(t)
	for _, args := range []string{
		"echo", "delay -ms 20", "sink", "source", "late -ms 20", "early -ms 20", "reset", "talk -n 100",
		"stall -n 100000000 -ms 50", "echo -n 0", "source -n 0", "sink -n 65537",
	} {
		t.Run(args, func(t *testing.T) {
			words := strings.Fields(args)
			var out strings.Builder
			err := run(t.Context(), append(append([]string{"exchange"}, words[1:]...), words[0], address), nil, &out)
			if err != nil || !strings.HasPrefix(out.String(), "ok "+words[0]+" ") {
				t.Errorf("%v, printed %q", err, out.String())
			}
		})
	}
	t.Run("await -nudge", func(t *testing.T) {
		var out strings.Builder
		err := run(t.Context(), []string{"exchange", "-nudge", "await", address}, strings.NewReader("\n"), &out)
		if err != nil || !strings.HasPrefix(out.String(), "established\nanswered\nended after 1 bytes: EOF\n") {
			t.Errorf("%v, printed %q", err, out.String())
		}
	})
	t.Run("greet", func(t *testing.T) {
		if err := run(t.Context(), []string{"exchange", "-greet", "echo", startServe(t, "-greet")}, nil, io.Discard); err != nil {
			t.Error(err)
		}
	})
	t.Run("a missing greeting is noticed", func(t *testing.T) {
		if err := run(t.Context(), []string{"exchange", "-timeout", "50ms", "-greet", "echo", address}, nil, io.Discard); !errors.Is(err, errDiffers) {
			t.Errorf("got %v, want %v", err, errDiffers)
		}
	})
}

func TestFlood(t *testing.T) {
	address := startServe(t)
	for _, sum := range []string{"-sum=true", "-sum=false"} {
		var out strings.Builder
		err := run(t.Context(), []string{"flood", sum, "-up", "1000000", "-down", "2000000", "-streams", "3", address}, nil, &out)
		if err != nil || !strings.Contains(out.String(), "up 3 3000000 ") || !strings.Contains(out.String(), "down 3 6000000 ") {
			t.Errorf("%s: %v, printed %q", sum, err, out.String())
		}
	}
}

func TestConnectEcho(t *testing.T) {
	for _, test := range []struct{ address, want string }{
		{startServe(t), "ok ok"},
		{startServe(t, "-greet"), "ok differs"},
		{"127.0.0.1:1", "ECONNREFUSED -"},
	} {
		var out strings.Builder
		err := run(t.Context(), []string{"connect", "-echo", "some text", test.address}, strings.NewReader(""), &out)
		f := strings.Fields(out.String())
		if err != nil || len(f) != 4 || f[1]+" "+f[3] != test.want {
			t.Errorf("%s: %q, %v; want %s", test.address, out.String(), err, test.want)
		}
	}
}

func TestConnect(t *testing.T) {
	open := startServe(t, "-greet")
	const closed = "127.0.0.1:1"
	for _, test := range []struct {
		args string
		want []string // one for each line
	}{
		{open + " " + closed, []string{"ok", "ECONNREFUSED"}},
		{"-nonblock " + open + " " + closed, []string{"ok", "ECONNREFUSED"}},
		{"-n 3 " + closed, []string{"ECONNREFUSED", "ECONNREFUSED", "ECONNREFUSED"}},
		{"-first-byte " + open, []string{"ok"}},
		{"-nonblock -first-byte " + open, []string{"ok"}},
		{"-hold -n 2 " + open, []string{"ok", "ok"}},
		{"-n 2 -step-address " + closed, []string{"ECONNREFUSED", "ECONNREFUSED"}},
	} {
		var out strings.Builder
		if err := run(t.Context(), append([]string{"connect"}, strings.Fields(test.args)...), strings.NewReader(""), &out); err != nil {
			t.Errorf("%s: %v", test.args, err)
			continue
		}
		var got []string
		for line := range strings.Lines(out.String()) {
			got = append(got, strings.Fields(line)[1])
		}
		if strings.Join(got, " ") != strings.Join(test.want, " ") {
			t.Errorf("%s: got %q, want %v", test.args, out.String(), test.want)
		}
	}
}

// TestConnectCancelled gives attempts no time at all: some end before they are
// looked at, the others are closed, and none is lost.
func TestConnectCancelled(t *testing.T) {
	address := startServe(t)
	var out strings.Builder
	if err := run(t.Context(), []string{"connect", "-n", "200", "-cancel", "1ns", address}, nil, &out); err != nil {
		t.Fatal(err)
	}
	ok, cancelled := strings.Count(out.String(), " ok "), strings.Count(out.String(), " cancelled ")
	if cancelled == 0 || ok+cancelled != 200 {
		t.Errorf("%d ok and %d cancelled of 200:\n%s", ok, cancelled, out.String())
	}
}

func TestPatternIsPositionDependent(t *testing.T) {
	const n = 3*blockSize + 17
	whole, err := io.ReadAll(newPattern(n))
	if err != nil || len(whole) != n {
		t.Fatalf("%d bytes, %v", len(whole), err)
	}
	if bytes.Equal(whole[:blockSize], whole[blockSize:2*blockSize]) {
		t.Error("two blocks are equal: a swap would not be noticed")
	}
	sum := newTally()
	if _, err := io.Copy(sum, iotest.OneByteReader(newPattern(n))); err != nil {
		t.Fatal(err)
	}
	if sum.String() != patternSum(n) {
		t.Error("the checksum depends on how the pattern is read")
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"dance"}, {"connect"}, {"flood", "127.0.0.1:1"}, {"exchange", "echo"}, {"serve", "-x"}} {
		if err := run(t.Context(), args, nil, io.Discard); !errors.Is(err, errUsage) {
			t.Errorf("%q: got %v, want the usage", args, err)
		}
	}
}
