package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asRole makes Start run this test binary in a role.
func asRole(t *testing.T, role string) string {
	t.Helper()
	t.Setenv(envRole, role)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return self
}

func status(t *testing.T, c *Client) (row StatusRow) {
	t.Helper()
	if err := c.Call(t.Context(), OpStatus, nil, nil, func(b json.RawMessage) error { return json.Unmarshal(b, &row) }, nil); err != nil {
		t.Error(err)
	}
	return row
}

// stopBroker ends the broker at address and waits until its socket is gone.
func stopBroker(t *testing.T, address string) {
	t.Helper()
	c, err := Dial(context.Background(), address)
	if err != nil {
		t.Errorf("no broker to stop: %v", err)
		return
	}
	defer c.Close()
	pidfd, err := unix.PidfdOpen(c.PID, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer unix.Close(pidfd)
	if err := c.Call(context.Background(), OpStop, StopArgs{}, nil, nil, nil); err != nil {
		t.Error(err)
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 20000); n != 1 {
		t.Errorf("the broker does not end: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Dir(address)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Twenty programs that need a broker at once get the same one.
func TestEnsureOneBroker(t *testing.T) {
	program := asRole(t, "broker")
	address := socketPath(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var pids []int
	for range 20 {
		wg.Go(func() {
			c, err := Ensure(t.Context(), EnsureOptions{Address: address, Start: StartOptions{Program: program, Address: address}})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			row := status(t, c)
			mu.Lock()
			defer mu.Unlock()
			if !slices.Contains(pids, row.PID) {
				pids = append(pids, row.PID)
			}
		})
	}
	wg.Wait()
	if len(pids) != 1 {
		t.Errorf("brokers %v", pids)
	}
	stopBroker(t, address)
}

func TestStartDetached(t *testing.T) {
	program := asRole(t, "broker")
	address := socketPath(t)
	// A descriptor that the shell left open must not stay open in the broker.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := unix.Dup3(int(w.Fd()), 99, 0); err != nil {
		t.Fatal(err)
	}
	w.Close()
	pid, err := Start(t.Context(), StartOptions{Program: program, Address: address})
	unix.Close(99)
	if err != nil {
		t.Fatal(err)
	}
	defer stopBroker(t, address)
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("session %d of process %d, %v", sid, pid, err)
	}
	for _, fd := range []string{"0", "1", "2"} {
		if to, err := os.Readlink(filepath.Join("/proc", itoa(pid), "fd", fd)); err != nil || to != "/dev/null" {
			t.Errorf("descriptor %s: %s, %v", fd, to, err)
		}
	}
	if dir, err := os.Readlink(filepath.Join("/proc", itoa(pid), "cwd")); err != nil || dir != "/" {
		t.Errorf("runs in %s, %v", dir, err)
	}
	if err := r.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the pipe is still held: %v", err)
	}
	if _, err := Start(t.Context(), StartOptions{Program: program, Address: address}); !errors.Is(err, ErrRunning) {
		t.Errorf("a second one: %v", err)
	}
}

func TestStartFails(t *testing.T) {
	t.Run("its own message", func(t *testing.T) {
		program := asRole(t, "broker")
		_, err := Ensure(t.Context(), EnsureOptions{
			Address: socketPath(t),
			Start:   StartOptions{Program: program, ConfigFile: "some.xml"},
		})
		if err == nil || !strings.Contains(err.Error(), "some.xml:3:7: rule: no such action\nhint: tunnel") {
			t.Errorf("got %v", err)
		}
		if wd, _ := os.Getwd(); err != nil && !strings.Contains(err.Error(), wd) {
			t.Errorf("the file was handed over relative to a directory the broker is not in: %v", err)
		}
	})
	t.Run("last words", func(t *testing.T) {
		_, err := Start(t.Context(), StartOptions{Program: asRole(t, "mute")})
		if err == nil || !strings.Contains(err.Error(), "ended before it was ready: loading: cannot allocate memory") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no program", func(t *testing.T) {
		if _, err := Start(t.Context(), StartOptions{Program: "/nonexistent/ssh-broker"}); err == nil {
			t.Error("started")
		}
		t.Setenv("PATH", t.TempDir())
		if _, err := Start(t.Context(), StartOptions{}); err == nil || !strings.Contains(err.Error(), "neither beside this program nor on PATH") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("given up", func(t *testing.T) {
		program := asRole(t, "sleeper")
		ctx, cancel := context.WithCancelCause(t.Context())
		enough := errors.New("enough")
		cancel(enough)
		if _, err := Start(ctx, StartOptions{Program: program}); !errors.Is(err, enough) {
			t.Errorf("got %v", err)
		} // goleak sees a broker that was not told to end
	})
}

func TestNotifyWritesToPipesOnly(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := NotifyFailed(int(f.Fd()), errors.New("late")); err == nil {
		t.Error("written to a file")
	}
	if st, err := f.Stat(); err != nil || st.Size() != 0 {
		t.Errorf("%v, %v", st, err)
	}
}

func TestEnsureConnects(t *testing.T) {
	address := serve(t, nil)
	c, err := Ensure(t.Context(), EnsureOptions{Address: address, Start: StartOptions{Program: "/nonexistent"}})
	if err != nil {
		t.Fatalf("a broker runs, yet: %v", err)
	}
	c.Close()
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }
