package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The test binary plays other processes when this is set.
const envRole = "CONTROL_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(envRole) {
	case "":
		goleak.VerifyTestMain(m)
	case "broker":
		os.Exit(playBroker(os.Args[1:]))
	case "mute":
		fmt.Fprintln(os.Stderr, "loading: cannot allocate memory")
		os.Exit(3)
	case "sleeper":
		// Never becomes ready; ends on SIGTERM.
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		<-ctx.Done()
	case "foreign-client":
		os.Exit(playForeignClient(os.Args[1]))
	case "foreign-admin":
		os.Exit(playForeignAdmin(os.Args[1]))
	case "foreign-broker":
		os.Exit(playForeignBroker(os.Args[1]))
	}
}

// playBroker is an ssh-broker as far as this package goes.
func playBroker(args []string) int {
	ready, address, config := -1, "", ""
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case strings.HasPrefix(a, ReadyOption+"="):
			ready, _ = strconv.Atoi(strings.TrimPrefix(a, ReadyOption+"="))
		case a == "-a" && i+1 < len(args):
			i++
			address = args[i]
		case a == "-f" && i+1 < len(args):
			i++
			config = args[i]
		}
	}
	fail := func(err error) int {
		_ = NotifyFailed(ready, err)
		return 1
	}
	if err := CloseInherited(ready); err != nil {
		return fail(err)
	}
	if config != "" {
		return fail(fmt.Errorf("%s:3:7: rule: no such action\nhint: tunnel", config))
	}
	ln, err := Listen(address)
	if err != nil {
		return fail(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := NewServer(slog.New(slog.DiscardHandler))
	s.Handle(OpStatus, func(_ context.Context, c *Call) error {
		return c.Send(StatusRow{PID: os.Getpid(), Address: address})
	})
	s.Handle(OpStop, func(context.Context, *Call) error { cancel(); return nil })
	if err := NotifyReady(ready); err != nil {
		return 1
	}
	if err := s.Serve(ctx, ln); err != nil {
		return 1
	}
	return 0
}

func playForeignClient(address string) int {
	_, err := Dial(context.Background(), address)
	fmt.Println(err)
	return 0
}

func playForeignBroker(address string) int {
	ln, err := Listen(address)
	if err != nil {
		fmt.Println("listen:", err)
		return 1
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); cancel() }()
	s := NewServer(slog.New(slog.DiscardHandler))
	s.Handle(OpStatus, func(_ context.Context, c *Call) error { return c.Send(StatusRow{PID: os.Getpid()}) })
	fmt.Println("ready")
	if err := s.Serve(ctx, ln); err != nil {
		return 1
	}
	return 0
}

const foreignUID = 54321

// foreign is the test binary in another role, run by another user. Through
// /proc/self/exe, as that user cannot search the directory of the test binary.
func foreign(t *testing.T, role string, args ...string) *exec.Cmd {
	t.Helper()
	needRoot(t)
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), envRole+"="+role)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: foreignUID, Gid: foreignUID}}
	return cmd
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root, to run a process as another user")
	}
	t.Skip("needs root, to run a process as another user")
}

// openDirFor is a directory that another user can reach, unlike t.TempDir's.
func openDirFor(t *testing.T, uid int, mode os.FileMode) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "control-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := errors.Join(os.Chown(dir, uid, uid), os.Chmod(dir, mode)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctl") // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "broker")
}

// serve runs a server with what setup puts into it, and returns its address.
func serve(t *testing.T, setup func(*Server)) string {
	t.Helper()
	ln, err := Listen(socketPath(t))
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(slog.New(slog.DiscardHandler))
	if setup != nil {
		setup(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := within(t, served); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return ln.Address()
}

func dial(t *testing.T, address string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
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

func openFiles(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// sameFiles fails when more descriptors are open than want, once those that are
// being closed are.
func sameFiles(t *testing.T, want int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for openFiles(t) > want {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors open, %d before", openFiles(t), want)
		}
		time.Sleep(5 * time.Millisecond) // no event tells of a closed descriptor
	}
}
