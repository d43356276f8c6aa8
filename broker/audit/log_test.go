package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const diskChild = "AUDIT_TEST_DISK"

func TestMain(m *testing.M) {
	if dir := os.Getenv(diskChild); dir != "" {
		os.Exit(runDiskChild(dir))
	}
	goleak.VerifyTestMain(m)
}

const patience = 20 * time.Second

// events is a slog handler that hands every line over a channel.
type events chan string

func (e events) Enabled(context.Context, slog.Level) bool { return true }
func (e events) WithAttrs([]slog.Attr) slog.Handler       { return e }
func (e events) WithGroup(string) slog.Handler            { return e }
func (e events) Handle(_ context.Context, r slog.Record) error {
	text := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	e <- text
	return nil
}

func (e events) next(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-e:
		if !strings.Contains(got, want) {
			t.Fatalf("logged %q, want %q", got, want)
		}
	case <-time.After(patience):
		t.Fatalf("nothing logged, want %q", want)
	}
}

func (e events) none(t *testing.T) {
	t.Helper()
	select {
	case got := <-e:
		t.Errorf("logged %q", got)
	default:
	}
}

func open(t *testing.T, o Options) (*Log, events) {
	t.Helper()
	e := make(events, 1000)
	o.Logger = slog.New(e)
	if o.RetryEvery == 0 {
		o.RetryEvery = 5 * time.Millisecond
	}
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, e
}

func record(n int) Record { return Record{Flow: uint64(n), Reason: Carried, Name: "host.example"} }

// flows reads files in order and returns the flow numbers of their records; anything
// that is no whole record fails the test.
func flows(t *testing.T, paths ...string) []int {
	t.Helper()
	var all []int
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(text) > 0 && text[len(text)-1] != '\n' {
			t.Fatalf("%s ends in a partial line", path)
		}
		sc := bufio.NewScanner(bytes.NewReader(text))
		for sc.Scan() {
			var r struct{ V, Flow int }
			if err := json.Unmarshal(sc.Bytes(), &r); err != nil || r.V != Version {
				t.Fatalf("%s: line %q: %v", path, sc.Text(), err)
			}
			all = append(all, r.Flow)
		}
	}
	return all
}

func oneTo(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i + 1
	}
	return all
}

func TestCloseFlushes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	l, e := open(t, Options{Path: path, Required: true})
	for i := range 1000 {
		l.Record(record(i + 1))
	}
	if err := l.Ready(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := flows(t, path); !slices.Equal(got, oneTo(1000)) {
		t.Errorf("%d records, or not in order", len(got))
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	l.Record(record(1))
	if s := l.Stats(); s.Written != 1000 || s.Lost != 1 || s.Pending != 0 {
		t.Errorf("%+v", s)
	}
	if err := l.Ready(); !errors.Is(err, ErrClosed) {
		t.Errorf("ready after Close: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	e.none(t)
}

func TestConcurrentRecords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	l, _ := open(t, Options{Path: path, MaxSize: 100 << 10, Keep: 50})
	var wg sync.WaitGroup
	for w := range 32 {
		wg.Go(func() {
			for i := range 500 {
				l.Record(record(w*500 + i + 1))
			}
		})
	}
	wg.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(path + "*")
	got := flows(t, files...)
	slices.Sort(got)
	if !slices.Equal(got, oneTo(16000)) {
		t.Errorf("%d records in %d files", len(got), len(files))
	}
}

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	one, _ := record(100).AppendLine(nil)
	f := file{path: path, maxSize: int64(10 * len(one)), keep: 3}
	defer f.close()
	for i := range 100 {
		text, _ := record(i + 100).AppendLine(nil)
		if n, err := f.write(text); n != len(text) || err != nil {
			t.Fatal(n, err)
		}
	}
	f.close()
	got := flows(t, path+".3", path+".2", path+".1", path)
	if len(got) != 40 || got[0] != 160 || got[39] != 199 || !slices.IsSorted(got) {
		t.Errorf("kept %v", got)
	}
	if _, err := os.Stat(path + ".4"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a fourth file: %v", err)
	}
	for _, p := range []string{path, path + ".1"} {
		if info, err := os.Stat(p); err != nil || info.Size() > f.maxSize || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", p, info, err)
		}
	}
}

func TestRotationKeepsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	f := file{path: path, maxSize: 1000}
	defer f.close()
	for i := range 100 {
		text, _ := record(i).AppendLine(nil)
		if _, err := f.write(text); err != nil {
			t.Fatal(err)
		}
	}
	if got := flows(t, path); len(got) == 0 || got[len(got)-1] != 99 {
		t.Errorf("kept %v", got)
	}
}

// A rotation that fails loses no record.
func TestRotationFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	if err := os.MkdirAll(filepath.Join(path+".1", "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, e := open(t, Options{Path: path, MaxSize: 500, Keep: 1, Required: true})
	for i := range 50 {
		l.Record(record(i + 1))
		for l.Stats().Written != uint64(i+1) {
			time.Sleep(50 * time.Microsecond) // one batch each, so that every one wants to rotate
		}
	}
	e.next(t, "cannot be written or rotated")
	if err := l.Ready(); err != nil {
		t.Errorf("not ready although records are written: %v", err)
	}
	l.Close()
	e.none(t)
	if got := flows(t, path); !slices.Equal(got, oneTo(50)) {
		t.Errorf("%v", got)
	}
}

func TestFullDevice(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		skip(t, "no /dev/full")
	}
	for _, required := range []bool{false, true} {
		t.Run(fmt.Sprintf("required=%v", required), func(t *testing.T) {
			l, e := open(t, Options{Path: "/dev/full", Required: required, RetryEvery: time.Millisecond})
			if err := l.Ready(); err != nil {
				t.Errorf("not ready before the first write: %v", err)
			}
			for i := range 100 {
				l.Record(record(i))
			}
			e.next(t, "no space left on device")
			for l.Stats().Failures < 5 { // it tries again
				time.Sleep(time.Millisecond)
			}
			err := l.Ready()
			if required && (!errors.Is(err, ErrCannotWrite) || !errors.Is(err, syscall.ENOSPC)) || !required && err != nil {
				t.Errorf("ready: %v", err)
			}
			if err := l.Close(); !errors.Is(err, ErrCannotWrite) || !strings.Contains(err.Error(), "100 records lost") {
				t.Errorf("close: %v", err)
			}
			e.none(t) // one report an interval
			if s := l.Stats(); s.Lost != 100 || s.Written != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// Memory is bounded while nothing can be written, and what was kept is written later.
func TestRecovery(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not there yet")
	path := filepath.Join(dir, "audit")
	l, e := open(t, Options{Path: path, Required: true})
	if err := l.Ready(); !errors.Is(err, ErrCannotWrite) {
		t.Errorf("ready: %v", err)
	}
	e.next(t, "no such file")
	r := record(0)
	r.Error = strings.Repeat("x", maxText)
	n := 0
	for ; l.Stats().Lost == 0; n++ {
		r.Flow = uint64(n + 1)
		l.Record(r)
	}
	if s := l.Stats(); s.Pending != n-1 || s.Pending > maxPending/maxText {
		t.Errorf("%+v", s)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	e.next(t, "can be written again")
	if err := l.Ready(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if got := flows(t, path); !slices.Equal(got, oneTo(n-1)) {
		t.Errorf("%d records, want %d", len(got), n-1)
	}
}

func TestFileMoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	f := file{path: path, maxSize: -1}
	defer f.close()
	put := func(n int) {
		t.Helper()
		text, _ := record(n).AppendLine(nil)
		if _, err := f.write(text); err != nil {
			t.Fatal(err)
		}
	}
	put(1)
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	put(2)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	put(3)
	if got := flows(t, path+".old", path); !slices.Equal(got, []int{1, 3}) {
		t.Errorf("%v", got)
	}
}

func TestPartialTail(t *testing.T) {
	whole, _ := record(1).AppendLine(nil)
	for _, tc := range []struct{ name, before, want string }{
		{"empty", "", ""},
		{"whole", string(whole), string(whole)},
		{"torn record", string(whole) + `{"v":1,"time":"20`, string(whole)},
		{"torn at its start", string(whole) + `{"`, string(whole)},
		{"only a torn record", `{"v":1,"ti`, ""},
		{"somebody else's text", "precious", "precious\n"},
		{"somebody else's long text", strings.Repeat("p", 100<<10), strings.Repeat("p", 100<<10) + "\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit")
			if err := os.WriteFile(path, []byte(tc.before), 0o644); err != nil {
				t.Fatal(err)
			}
			l, _ := open(t, Options{Path: path})
			l.Record(record(2))
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			line, _ := record(2).AppendLine(nil)
			if got, _ := os.ReadFile(path); string(got) != tc.want+string(line) {
				t.Errorf("got %q", got)
			}
			if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
				t.Errorf("mode %v", info.Mode())
			}
		})
	}
}

func TestRefusedFiles(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, want string
		make       func(path string) error
	}{
		{"symbolic link", "too many levels", func(p string) error { return os.Symlink(target, p) }},
		{"hard link", "2 links", func(p string) error { return os.Link(target, p) }},
		{"fifo", "is not a file", func(p string) error { return syscall.Mkfifo(p, 0o600) }},
		{"directory", "is a directory", func(p string) error { return os.Mkdir(p, 0o700) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(dir, tc.name)
			if err := tc.make(path); err != nil {
				t.Fatal(err)
			}
			l, e := open(t, Options{Path: path, Required: true})
			e.next(t, tc.want)
			l.Record(record(1))
			if err := l.Ready(); !errors.Is(err, ErrCannotWrite) {
				t.Errorf("ready: %v", err)
			}
		})
	}
	if text, _ := os.ReadFile(target); len(text) != 0 {
		t.Errorf("the target was written: %q", text)
	}
}

func TestUnsetReason(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	l, e := open(t, Options{Path: path})
	l.Record(Record{Flow: 9})
	e.next(t, "audit record without a reason flow=9")
	l.Close()
	text, _ := os.ReadFile(path)
	if !strings.Contains(string(text), `"reason":"internal","error":"no reason was recorded"`) || l.Stats().Unset != 1 {
		t.Errorf("%s %+v", text, l.Stats())
	}

	l, _ = open(t, Options{Path: path, Strict: true})
	defer func() {
		if recover() == nil {
			t.Error("a record without a reason passed in strict mode")
		}
	}()
	l.Record(Record{Flow: 9})
}

func TestOptions(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	for _, o := range []Options{{}, {Path: "x"}, {Logger: logger}, {Path: "x", Logger: logger, Keep: -1}} {
		if l, err := Open(o); err == nil {
			l.Close()
			t.Errorf("%+v was taken", o)
		}
	}
}

// A disk of 64 KiB runs full in the middle of a line, and is freed again.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), diskChild+"="+dir)
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		child.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		child.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		child.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	out, err := child.CombinedOutput()
	if child.ProcessState == nil {
		skip(t, "no mount namespace: "+err.Error())
	}
	if child.ProcessState.ExitCode() == 77 {
		skip(t, string(out))
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func skip(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// runDiskChild is the main function of the process that has a private tmpfs.
func runDiskChild(dir string) int {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		fmt.Println("mount namespace:", err)
		return 77
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		fmt.Println("tmpfs:", err)
		return 77
	}
	fail := func(format string, args ...any) int { fmt.Printf(format+"\n", args...); return 1 }
	path := filepath.Join(dir, "audit")
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 40<<10), 0o600); err != nil {
		return fail("%v", err)
	}
	e := make(events, 100)
	l, err := Open(Options{Path: path, Required: true, MaxSize: -1, Logger: slog.New(e), RetryEvery: time.Millisecond})
	if err != nil {
		return fail("%v", err)
	}
	whole := func() (int, error) {
		text, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		n := 0
		for line := range bytes.Lines(text) {
			n++
			var r struct{ Flow int }
			if err := json.Unmarshal(line, &r); err != nil || r.Flow != n || line[len(line)-1] != '\n' {
				return n, fmt.Errorf("line %d is %q: %v", n, line, err)
			}
		}
		return n, nil
	}
	const total = 200 // about 50 KiB
	for i := range total {
		l.Record(record(i + 1))
	}
	select {
	case text := <-e:
		if !strings.Contains(text, "no space left") {
			return fail("logged %q", text)
		}
	case <-time.After(patience):
		return fail("the disk did not run full")
	}
	if err := l.Ready(); !errors.Is(err, syscall.ENOSPC) {
		return fail("ready: %v", err)
	}
	n, err := whole()
	if err != nil || n == 0 || n == total {
		return fail("full disk: %d lines, %v", n, err)
	}
	if err := os.Remove(filler); err != nil {
		return fail("%v", err)
	}
	select {
	case text := <-e:
		if !strings.Contains(text, "again") {
			return fail("logged %q", text)
		}
	case <-time.After(patience):
		return fail("no recovery")
	}
	if err := l.Close(); err != nil {
		return fail("%v", err)
	}
	if n, err := whole(); err != nil || n != total {
		return fail("freed disk: %d lines, %v", n, err)
	}
	return 0
}
