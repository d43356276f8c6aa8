package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
)

// envStarved makes the test binary the broker that runs out of descriptors; it is where
// the fake listens.
const envStarved = "CLIENT_TEST_STARVED"

// TestNoDescriptors runs a broker with as few descriptors as can be.
func TestNoDescriptors(t *testing.T) {
	f := newFake(t).start()
	for n := range 4 {
		f.arrive(attemptOf(n))
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), envStarved+"="+f.path)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "done" {
		t.Fatalf("the child says: %v\n%s", err, out)
	}
}

// starved is the child.
func starved() {
	defer func() {
		if p := recover(); p != nil {
			fmt.Println(p)
			os.Exit(1)
		}
	}()
	check := func(ok bool, format string, args ...any) {
		if !ok {
			panic(fmt.Sprintf(format, args...))
		}
	}
	ctx := context.Background()
	s, err := Serve(ctx, Options{
		Dialer: Dialer{Path: os.Getenv(envStarved), AnyOwner: true}, Capture: "c1", Log: slog.New(slog.DiscardHandler),
	})
	check(err == nil, "serve: %v", err)
	var as []*attempt
	for range 4 {
		a, err := s.Next(ctx)
		check(err == nil, "next: %v", err)
		as = append(as, a.(*attempt))
	}
	// Next to nothing is free.
	check(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: 64}) == nil, "rlimit")
	var hoard []int
	for {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err == unix.EMFILE {
			break
		}
		check(err == nil, "eventfd: %v", err)
		hoard = append(hoard, fd)
	}
	release := func() {
		unix.Close(hoard[len(hoard)-1])
		hoard = hoard[:len(hoard)-1]
	}

	// None is left to be reserved: nothing is asked, and it can be refused still.
	_, err = as[0].Admit(ctx)
	check(errors.Is(err, capture.ErrNoDescriptors) && errors.Is(err, unix.EMFILE), "with none: %v", err)
	s.mu.Lock()
	check(!as[0].ended, "it is decided")
	s.mu.Unlock()
	as[0].Refuse(capture.Refused)

	// One is enough, although a connection has two for a moment.
	release()
	c, err := as[1].Admit(ctx)
	check(err == nil, "with one: %v", err)
	_, err = as[2].Admit(ctx)
	check(errors.Is(err, capture.ErrNoDescriptors), "with none again: %v", err)
	c.Close()
	c, err = as[2].Admit(ctx)
	check(err == nil, "when one is free again: %v", err)

	// What was reserved is taken by somebody else: the connection is lost, and we hear of it.
	s.room.mu.Lock()
	for len(s.room.fds) > 0 {
		s.room.fds = s.room.fds[1:] // they stay open, and nobody has them
	}
	s.room.mu.Unlock()
	c.Close()
	s.mu.Lock()
	sess := s.session
	s.mu.Unlock()
	stolen, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	check(err == nil, "steal: %v", err)
	defer unix.Close(stolen)
	ans, err := as[3].admit(ctx)
	check(err == nil && len(ans.files) == 0, "a descriptor came from nowhere: %v %v", ans.files, err)
	check(sess.alive(), "the connection to ssh-captured broke")
	s.Close()
	fmt.Println("done")
}
