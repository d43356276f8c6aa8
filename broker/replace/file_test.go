package replace

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// writeLimit is set for a copy of the test that may write only so many bytes a file.
const writeLimit = "REPLACE_TEST_WRITE"

func TestMain(m *testing.M) {
	if name := os.Getenv(writeLimit); name != "" {
		fmt.Print(writeOnFullDisk(name), makeOnFullDisk(name+"2"))
		return
	}
	os.Exit(m.Run())
}

func place(t *testing.T, mode fs.FileMode) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "c.xml")
	if err := errors.Join(os.WriteFile(name, []byte("old"), 0o600), os.Chmod(name, mode)); err != nil {
		t.Fatal(err)
	}
	return name
}

func mustOpen(t *testing.T, name string, create bool) *File {
	t.Helper()
	f, err := Open(name, Options{Most: 1 << 20, Create: create, Empty: []byte("empty")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// holds fails unless a file has that content and nothing is left beside it.
func holds(t *testing.T, name, want string, others ...string) {
	t.Helper()
	if got, err := os.ReadFile(name); err != nil || string(got) != want {
		t.Errorf("%s holds %q, %v", name, got, err)
	}
	list, err := os.ReadDir(filepath.Dir(name))
	if err != nil || len(list) != 1+len(others) {
		t.Errorf("in its directory are %v, %v", list, err)
	}
}

func TestWrite(t *testing.T) {
	for _, mode := range []fs.FileMode{0o600, 0o640, 0o444} {
		name := place(t, mode)
		before, _ := os.Stat(name)
		f := mustOpen(t, name, false)
		if string(f.Data()) != "old" || f.New() {
			t.Errorf("%q, new %t", f.Data(), f.New())
		}
		if err := errors.Join(f.Write([]byte("new")), f.Close()); err != nil {
			t.Fatal(err)
		}
		holds(t, name, "new")
		after, _ := os.Stat(name)
		if os.SameFile(before, after) || after.Mode() != mode {
			t.Errorf("%v: mode %v, the same inode %t", mode, after.Mode(), os.SameFile(before, after))
		}
	}
}

func TestOwnerIsKept(t *testing.T) {
	if os.Geteuid() != 0 {
		skip(t, "needs root, to edit the file of another")
	}
	name := place(t, 0o640)
	if err := os.Chown(name, 12345, 23456); err != nil {
		t.Fatal(err)
	}
	f := mustOpen(t, name, false)
	if err := f.Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	info, _ := os.Stat(name)
	if s := info.Sys().(*syscall.Stat_t); s.Uid != 12345 || s.Gid != 23456 || info.Mode() != 0o640 {
		t.Errorf("uid %d, gid %d, %v", s.Uid, s.Gid, info.Mode())
	}
}

func TestAccessListIsKept(t *testing.T) {
	name := place(t, 0o600)
	acl := []byte{2, 0, 0, 0, // POSIX_ACL_XATTR_VERSION
		1, 0, 6, 0, 255, 255, 255, 255, // user::rw-
		2, 0, 4, 0, 57, 48, 0, 0, // user:12345:r--
		4, 0, 0, 0, 255, 255, 255, 255, // group::---
		16, 0, 4, 0, 255, 255, 255, 255, // mask::r--
		32, 0, 0, 0, 255, 255, 255, 255} // other::---
	if err := unix.Setxattr(name, aclName, acl, 0); errors.Is(err, unix.ENOTSUP) {
		skip(t, "needs a file system with access lists")
	} else if err != nil {
		t.Fatal(err)
	}
	if err := mustOpen(t, name, false).Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100)
	n, err := unix.Getxattr(name, aclName, got)
	if err != nil || !bytes.Equal(got[:n], acl) {
		t.Errorf("%v, %v", got[:n], err)
	}
}

// What the directory gives to new files is nothing that the old one had.
func TestAccessListOfTheDirectory(t *testing.T) {
	name := place(t, 0o640)
	byDefault := []byte{2, 0, 0, 0, // POSIX_ACL_XATTR_VERSION
		1, 0, 7, 0, 255, 255, 255, 255, // user::rwx
		2, 0, 6, 0, 57, 48, 0, 0, // user:12345:rw-
		4, 0, 0, 0, 255, 255, 255, 255, // group::---
		16, 0, 6, 0, 255, 255, 255, 255, // mask::rw-
		32, 0, 0, 0, 255, 255, 255, 255} // other::---
	if err := unix.Setxattr(filepath.Dir(name), "system.posix_acl_default", byDefault, 0); errors.Is(err, unix.ENOTSUP) {
		skip(t, "needs a file system with access lists")
	} else if err != nil {
		t.Fatal(err)
	}
	if err := mustOpen(t, name, false).Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100)
	if n, err := unix.Getxattr(name, aclName, got); !errors.Is(err, unix.ENODATA) {
		t.Errorf("an access list: %v, %v", got[:max(n, 0)], err)
	}
	if st, err := os.Stat(name); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

func skip(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s, and CI=true allows no skip", reason)
	}
	t.Skip(reason)
}

func TestSecondEditor(t *testing.T) {
	name := place(t, 0o600)
	f := mustOpen(t, name, false)
	if _, err := Open(name, Options{Most: 99}); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), name) {
		t.Errorf("a second editor: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	holds(t, name, "old")
	f = mustOpen(t, name, false)
	if err := f.Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	if f = mustOpen(t, name, false); string(f.Data()) != "new" {
		t.Errorf("the third has %q", f.Data())
	}
}

// An editor that opened the lock before it ended must not go on with the file that the
// lock has become.
func TestStaleLock(t *testing.T) {
	name := place(t, 0o600)
	f := mustOpen(t, name, false)
	late, err := os.OpenFile(f.nextName(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if err := f.Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	if err := claim(late, f.nextName()); !errors.Is(err, errStale) {
		t.Errorf("%v", err)
	}
	holds(t, name, "new")
}

// What a killed editor left behind is taken over; what is not ours is left alone.
func TestLeftBehind(t *testing.T) {
	name := place(t, 0o600)
	next := (&File{path: name}).nextName()
	if err := os.WriteFile(next, []byte("half of a longer content"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := mustOpen(t, name, false).Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	holds(t, name, "new")

	precious := filepath.Join(t.TempDir(), "precious")
	for what, trap := range map[string]func() error{
		"a symbolic link": func() error { return os.Symlink(precious, next) },
		"a hard link":     func() error { return os.Link(precious, next) },
		"a pipe":          func() error { return unix.Mkfifo(next, 0o600) },
	} {
		if err := errors.Join(os.WriteFile(precious, []byte("precious"), 0o600), trap()); err != nil {
			t.Fatal(err)
		}
		if f, err := Open(name, Options{Most: 99}); err == nil {
			t.Errorf("%s was taken", what)
			f.Close()
		}
		if got, _ := os.ReadFile(precious); string(got) != "precious" {
			t.Errorf("%s: %q", what, got)
		}
		os.Remove(next)
	}
}

func TestChangedMeanwhile(t *testing.T) {
	for what, change := range map[string]func(name string) error{
		"written":  func(name string) error { return os.WriteFile(name, []byte("odd"), 0o600) },
		"replaced": func(name string) error { return errors.Join(os.Remove(name), os.WriteFile(name, []byte("old"), 0o600)) },
	} {
		name := place(t, 0o600)
		f := mustOpen(t, name, false)
		if what == "replaced" { // a file of its own, not the number of the old one again
			keep, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer keep.Close()
		}
		if err := change(name); err != nil {
			t.Fatal(err)
		}
		want, _ := os.ReadFile(name)
		if err := f.Write([]byte("new")); !errors.Is(err, ErrChanged) {
			t.Errorf("%s: %v", what, err)
		}
		f.Close()
		holds(t, name, string(want))
	}
	name := filepath.Join(t.TempDir(), "c.xml")
	f := mustOpen(t, name, true)
	if err := os.WriteFile(name, []byte("odd"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Write([]byte("new")); !errors.Is(err, ErrChanged) {
		t.Errorf("made meanwhile: %v", err)
	}
	f.Close()
	holds(t, name, "odd")
}

func TestLinks(t *testing.T) {
	name := place(t, 0o600)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	f := mustOpen(t, link, false)
	if f.Path() != name {
		t.Errorf("path %s", f.Path())
	}
	if err := f.Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	holds(t, name, "new")
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != fs.ModeSymlink {
		t.Errorf("the link is %v, %v", info, err)
	}

	dangling := filepath.Join(t.TempDir(), "link")
	if err := errors.Join(os.Symlink("nowhere", dangling), os.Link(name, name+"2")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dangling, Options{Most: 99, Create: true}); err == nil || !strings.Contains(err.Error(), "symbolic link to a file that does not exist") {
		t.Errorf("a link to nowhere: %v", err)
	}
	if _, err := Open(name, Options{Most: 99}); err == nil || !strings.Contains(err.Error(), "2 names (hard links)") {
		t.Errorf("a hard link: %v", err)
	}
	if _, err := Open(t.TempDir(), Options{Most: 99}); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %v", err)
	}
}

func TestNewFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "c.xml")
	if _, err := Open(name, Options{Most: 99}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("not there: %v", err)
	}
	f := mustOpen(t, name, true)
	if !f.New() || !bytes.Equal(f.Data(), []byte("empty")) {
		t.Errorf("new %t, %q", f.New(), f.Data())
	}
	if err := f.Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	holds(t, name, "new")
	if info, _ := os.Stat(name); info.Mode() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
}

// A disk that gets full leaves the old file, and nothing else.
func TestDiskFull(t *testing.T) {
	name := place(t, 0o600)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writeLimit+"="+name)
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), "write "+name+": ") || !strings.Contains(string(out), "write "+name+"2: ") ||
		strings.Count(string(out), "file too large") != 2 {
		t.Errorf("%v: %s", err, out)
	}
	holds(t, name, "old") // and nothing beside it
}

// writeOnFullDisk writes more than the process may, which fails as a full disk does.
func writeOnFullDisk(name string) error {
	signal.Ignore(syscall.SIGXFSZ)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 4096, Max: 4096}); err != nil {
		return err
	}
	f, err := Open(name, Options{Most: 99})
	if err != nil {
		return err
	}
	err = f.Write(make([]byte, 8192))
	return errors.Join(err, f.Close())
}

func TestMake(t *testing.T) {
	name := filepath.Join(t.TempDir(), "key")
	if err := Make(name, []byte("one"), 0o600, false); err != nil {
		t.Fatal(err)
	}
	holds(t, name, "one")
	if err := Make(name, []byte("two"), 0o600, false); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), name) {
		t.Errorf("over what is there: %v", err)
	}
	holds(t, name, "one")
	if err := os.Chmod(name, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := Make(name, []byte("two"), 0o640, true); err != nil {
		t.Fatal(err)
	}
	holds(t, name, "two")
	if info, _ := os.Stat(name); info.Mode() != 0o640 {
		t.Errorf("mode %v", info.Mode())
	}

	// A link is replaced, not what it leads to.
	link := filepath.Join(t.TempDir(), "link")
	if err := errors.Join(os.Symlink(name, link), Make(link, []byte("three"), 0o600, true)); err != nil {
		t.Fatal(err)
	}
	holds(t, link, "three")
	holds(t, name, "two")

	other, err := lock((&File{path: name}).nextName())
	if err != nil {
		t.Fatal(err)
	}
	if err := Make(name, []byte("four"), 0o600, true); !errors.Is(err, ErrBusy) {
		t.Errorf("beside another: %v", err)
	}
	other.Close()
	if err := Make(filepath.Join(name, "below"), nil, 0o600, true); err == nil {
		t.Error("below a file")
	}
}

// makeOnFullDisk does so with a new file, in a process that has the limit already.
func makeOnFullDisk(name string) error { return Make(name, make([]byte, 8192), 0o600, false) }
