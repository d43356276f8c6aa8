package privilege

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const envRole = "PRIVILEGE_TEST_ROLE"

var four = []Capability{NetAdmin, SysPtrace, DACOverride, BPF}

func TestMain(m *testing.M) {
	switch os.Getenv(envRole) {
	case "":
		os.Exit(m.Run())
	case "reduce":
		reduceAndReport()
	case "missing":
		answer(report{Missing: Missing(four...)})
	}
}

// report is what a child says of itself.
type report struct {
	Error   string
	Missing []string
	Comm    string
	PID     int
	Args    []string
	Pipe    string   // read from descriptor 3
	Threads []string // one line each
}

func answer(r report) { _ = json.NewEncoder(os.Stdout).Encode(r) }

func reduceAndReport() {
	if err := Reduce(four...); err != nil {
		answer(report{Error: err.Error()})
		return
	}
	if err := Reduce(four...); err != nil { // has nothing to do
		answer(report{Error: "again: " + err.Error()})
		return
	}
	// Threads of the runtime are there already; these are more.
	var stop []chan struct{}
	for range 4 {
		ready, c := make(chan struct{}), make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(ready)
			<-c
		}()
		<-ready
		stop = append(stop, c)
	}
	r := report{PID: os.Getpid(), Args: os.Args[1:]}
	tasks, _ := filepath.Glob("/proc/self/task/*/status")
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			continue // a thread may end
		}
		var line []string
		for field := range strings.Lines(string(b)) {
			for _, name := range []string{"CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "NoNewPrivs:"} {
				if strings.HasPrefix(field, name) {
					line = append(line, strings.Join(strings.Fields(field), ""))
				}
			}
		}
		r.Threads = append(r.Threads, strings.Join(line, " "))
	}
	comm, _ := os.ReadFile("/proc/self/comm")
	r.Comm = strings.TrimSpace(string(comm))
	kept, _ := io.ReadAll(os.NewFile(3, "pipe"))
	r.Pipe = string(kept)
	for _, c := range stop {
		close(c)
	}
	answer(r)
}

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root, and CI=true allows no skip")
	}
	t.Skip("needs root")
}

// program is a copy of the test binary that every uid can execute.
func program(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "privilege")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.ReadFile("/proc/self/exe")
	path := filepath.Join(dir, "priv-test")
	if err := errors.Join(err, os.Chmod(dir, 0o755), os.WriteFile(path, self, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

const uid = 64123 // of nobody

// start describes a child.
type start struct {
	role     string
	uid      uint32
	ambient  []Capability
	bounding []Capability // nil: as it is
}

// run runs a child, from a thread of its own, as the bounding set is the thread's.
func (s start) run(t *testing.T, path string) (r report) {
	t.Helper()
	pipe, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	fmt.Fprint(w, "kept")
	w.Close()
	cmd := exec.Command(path, "--some", "arguments of its own")
	cmd.Env = append(os.Environ(), envRole+"="+s.role)
	cmd.ExtraFiles = []*os.File{pipe}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if s.uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: s.uid, Gid: s.uid}
	}
	for _, c := range s.ambient {
		cmd.SysProcAttr.AmbientCaps = append(cmd.SysProcAttr.AmbientCaps, uintptr(c))
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends here
		for c := range uintptr(64) {
			if s.bounding != nil && !slices.Contains(s.bounding, Capability(c)) {
				if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL {
					done <- err
					return
				}
			}
		}
		done <- cmd.Run()
	}()
	if err := <-done; err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatalf("%v\n%s%s", err, stdout.String(), stderr.String())
	}
	return r
}

// status is a thread's line in a report.
func status(inheritable, ambient []Capability, nnp int) string {
	set := func(list []Capability) (bits uint64) {
		for _, c := range list {
			bits |= 1 << c
		}
		return bits
	}
	all := set(four)
	return fmt.Sprintf("CapInh:%016x CapPrm:%016x CapEff:%016x CapBnd:%016x CapAmb:%016x NoNewPrivs:%d",
		set(inheritable), all, all, all, set(ambient), nnp)
}

func TestReduce(t *testing.T) {
	requireRoot(t)
	path := program(t)
	setpcap := Capability(unix.CAP_SETPCAP)
	for _, c := range []struct {
		name string
		start
		want string
		comm string
	}{
		{"root", start{}, status(nil, nil, 1), "priv-test"},
		{"root in a container that took some away", start{bounding: append([]Capability{setpcap, 0, 21}, four...)}, status(nil, nil, 1), "priv-test"},
		{"root with the right bounding set alone", start{bounding: four}, status(nil, nil, 1), "priv-test"},
		{"another uid that may reduce the bounding set", start{uid: uid, ambient: append([]Capability{setpcap}, four...)}, status(four, four, 1), "priv-test"},
		{"another uid as a unit makes it", start{uid: uid, ambient: four, bounding: four}, status(four, four, 1), "priv-test"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.role = "reduce"
			r := c.run(t, path)
			if r.Error != "" {
				t.Fatal(r.Error)
			}
			if len(r.Threads) < 5 {
				t.Errorf("%d threads", len(r.Threads))
			}
			for _, thread := range r.Threads {
				if thread != c.want {
					t.Errorf("a thread has\n%s, want\n%s", thread, c.want)
				}
			}
			if !slices.Equal(r.Args, []string{"--some", "arguments of its own"}) || r.Pipe != "kept" || r.Comm != c.comm {
				t.Errorf("arguments %q, pipe %q, command name %q", r.Args, r.Pipe, r.Comm)
			}
		})
	}
}

// TestReduceFails shows that there is no half way: each of these ends in an error that
// says what to do.
func TestReduceFails(t *testing.T) {
	requireRoot(t)
	path := program(t)
	three := []Capability{NetAdmin, SysPtrace, DACOverride}
	for _, c := range []struct {
		name string
		start
		want []string
	}{
		{"no privilege", start{uid: uid}, []string{"CAP_NET_ADMIN is missing", "start as root", "AmbientCapabilities="}},
		{"one is missing", start{uid: uid, ambient: three}, []string{"CAP_BPF is missing"}},
		{"one was taken away", start{bounding: append([]Capability{unix.CAP_SETPCAP}, three...)}, []string{"CAP_BPF was taken away", "--cap-add"}},
		{"the bounding set cannot be reduced", start{uid: uid, ambient: four}, []string{"bounding set", "CapabilityBoundingSet="}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.role = "reduce"
			r := c.run(t, path)
			for _, want := range c.want {
				if !strings.Contains(r.Error, want) {
					t.Errorf("error %q, want %q in it", r.Error, want)
				}
			}
		})
	}
}

func TestMissing(t *testing.T) {
	requireRoot(t)
	path := program(t)
	if r := (start{role: "missing"}).run(t, path); len(r.Missing) != 0 {
		t.Errorf("root misses %q", r.Missing)
	}
	r := start{role: "missing", uid: uid, ambient: []Capability{NetAdmin, BPF}}.run(t, path)
	if len(r.Missing) != 2 || !strings.HasPrefix(r.Missing[0], "CAP_SYS_PTRACE ") || !strings.HasPrefix(r.Missing[1], "CAP_DAC_OVERRIDE ") {
		t.Errorf("missing: %q", r.Missing)
	}
	if m := Missing(63); len(m) != 1 || !strings.HasPrefix(m[0], "63 is not known") {
		t.Errorf("missing: %q", m)
	}
}
