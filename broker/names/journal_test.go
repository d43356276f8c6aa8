package names

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func ask(t testing.TB, n *Names, name string, typ dnsmessage.Type) string {
	t.Helper()
	return show(unpack(t, n.handle(t.Context(), question(t, name, typ), false)))
}

// Every pseudo address that was answered is in the file by then, and a successor has
// it again.
func TestJournalOutlivesTheProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "names")
	n := newNames(t, Config{Journal: path})
	given := map[string]string{}
	for i := range 50 {
		name := fmt.Sprintf("host%d.far", i)
		answer := ask(t, n, name+".", dnsmessage.TypeA)
		given[name] = strings.TrimPrefix(answer, "Success ")
		text, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(text, formatLine(addr(given[name]), name)) {
			t.Fatalf("%s was answered, but the file is %q, %v", name, text, err)
		}
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if _, err := New(Config{AllPseudo: true, Journal: path, Logger: slog.New(slog.DiscardHandler)}); err == nil ||
		!strings.Contains(err.Error(), "another process has it locked") {
		t.Errorf("a second owner: %v", err)
	}

	n.Close() // the lock alone counts: nothing is written by it
	if answer := ask(t, n, "late.far.", dnsmessage.TypeA); answer != "ServerFailure" {
		t.Errorf("after Close: %s", answer)
	}
	if a, ok := JournalAddress(path); !ok || !DefaultPool4.Contains(a) {
		t.Errorf("the journal has address %v, %t", a, ok)
	}
	if a, ok := JournalAddress(filepath.Dir(path)); ok {
		t.Errorf("a directory has address %v", a)
	}
	next := newNames(t, Config{Journal: path})
	for name, a := range given {
		if got := next.Lookup(addr(a)); len(got) != 1 || got[0] != name {
			t.Errorf("%s is %v, want %s", a, got, name)
		}
		if got := ask(t, next, name+".", dnsmessage.TypeA); got != "Success "+a {
			t.Errorf("%s: %s, want %s", name, got, a)
		}
	}
	if got := ask(t, next, "new.far.", dnsmessage.TypeA); got != "Success 198.18.0.51" {
		t.Errorf("a new name: %s", got)
	}
}

// journalChild makes this test binary a process that answers pseudo names, one after
// the other, and prints what it has answered.
const journalChild = "NAMES_TEST_JOURNAL"

func runJournalChild(path string) {
	n, err := New(Config{AllPseudo: true, Journal: path, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Println(err)
		return
	}
	for i := 0; ; i++ {
		name := fmt.Sprintf("host%d.far", i)
		msg, _ := (&dnsmessage.Message{Questions: []dnsmessage.Question{{
			Name: dnsmessage.MustNewName(name + "."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
		}}}).Pack()
		var answer dnsmessage.Message
		if err := answer.Unpack(n.handle(context.Background(), msg, false)); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(name, strings.TrimPrefix(show(answer), "Success "))
	}
}

// The process is killed at any moment: what it had answered is known to the next one.
func TestJournalAfterKill(t *testing.T) {
	for round := range 5 {
		path := filepath.Join(t.TempDir(), "names")
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), journalChild+"="+path)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		answered := map[string]string{}
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			name, a, ok := strings.Cut(lines.Text(), " ")
			if _, err := netip.ParseAddr(a); !ok || err != nil {
				t.Fatalf("the child said %q", lines.Text())
			}
			answered[name] = a
			if len(answered) == 100*round+1 {
				child.Process.Kill() // what it had printed by then is read as well
			}
		}
		child.Wait()
		n := newNames(t, Config{Journal: path})
		for name, a := range answered {
			if got := n.Lookup(addr(a)); len(got) != 1 || got[0] != name {
				t.Errorf("%s was answered for %s and is %v", a, name, got)
			}
		}
	}
}

func TestJournalDamage(t *testing.T) {
	good := string(formatLine(addr("198.18.0.7"), "good.far"))
	for _, tc := range []struct {
		name, text string
		names      []string // of 198.18.0.7, 198.18.0.8
	}{
		{"empty", "", []string{"", ""}},
		{"good", good, []string{"good.far", ""}},
		{"torn", good + string(formatLine(addr("198.18.0.8"), "x.far"))[:20], []string{"good.far", ""}},
		{"newline missing", good + strings.TrimSpace(string(formatLine(addr("198.18.0.8"), "x.far"))), []string{"good.far", ""}},
		{"wrong sum", good + "1 198.18.0.8 x.far 00000000\n", []string{"good.far", ""}},
		{"outside the pool", good + string(formatLine(addr("10.0.0.1"), "x.far")), []string{"good.far", ""}},
		{"network address", good + string(formatLine(addr("198.18.0.0"), "x.far")), []string{"good.far", ""}},
		{"binary", "\x00\xff\n\n\n" + good + strings.Repeat("\x01", 200_000), []string{"good.far", ""}},
		{"bad name", "1 198.18.0.8 -x 00000000\n" + good, []string{"good.far", ""}},
		{"later wins", good + string(formatLine(addr("198.18.0.7"), "later.far")), []string{"later.far", ""}},
		{"one name twice", good + string(formatLine(addr("198.18.0.8"), "good.far")), []string{"good.far", "good.far"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "names")
			if err := os.WriteFile(path, []byte(tc.text), 0o644); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			n := newNames(t, Config{Journal: path, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			for i, want := range tc.names {
				got := strings.Join(n.Lookup(addr(fmt.Sprintf("198.18.0.%d", 7+i))), ",")
				if got != want {
					t.Errorf("198.18.0.%d is %q, want %q", 7+i, got, want)
				}
			}
			damaged := tc.name != "empty" && tc.name != "good" && tc.name != "later wins" && tc.name != "one name twice"
			if lines := strings.Count(log.String(), "\n"); damaged != (lines == 1) || lines > 1 {
				t.Errorf("logged %q", log.String())
			}
			// What comes next is read back whatever stood before it.
			fresh := strings.TrimPrefix(ask(t, n, "fresh.far.", dnsmessage.TypeA), "Success ")
			n.Close()
			n = newNames(t, Config{Journal: path})
			if got := n.Lookup(addr(fresh)); len(got) != 1 || got[0] != "fresh.far" {
				t.Errorf("after a restart %s is %v", fresh, got)
			}
			if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
				t.Errorf("mode %v", info.Mode())
			}
		})
	}
}

// A name is not answered when its mapping cannot be saved, and is once it can again.
func TestJournalCannotBeWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "names")
	n := newNames(t, Config{Journal: path})
	ask(t, n, "before.far.", dnsmessage.TypeA)
	good := n.pool.journal.f
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	n.pool.journal.f = full
	if got := ask(t, n, "x.far.", dnsmessage.TypeA); got != "ServerFailure" {
		t.Errorf("with a full disk: %s", got)
	}
	if got := ask(t, n, "before.far.", dnsmessage.TypeA); got != "Success 198.18.0.1" {
		t.Errorf("a saved name with a full disk: %s", got)
	}
	if s := n.Stats(); s.Unsaved != 1 || s.Assigned != 1 {
		t.Errorf("%+v", s)
	}
	n.pool.journal.f = good
	if got := ask(t, n, "x.far.", dnsmessage.TypeA); got != "Success 198.18.0.2" {
		t.Errorf("with room again: %s", got)
	}
}

func TestJournalIsShortened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "names")
	var text []byte
	for i := range 5000 {
		text = append(text, formatLine(addr("198.18.0.7"), fmt.Sprintf("n%d.far", i))...)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	n := newNames(t, Config{Journal: path})
	got, err := os.ReadFile(path)
	if err != nil || string(got) != string(formatLine(addr("198.18.0.7"), "n4999.far")) {
		t.Errorf("%d bytes are left, %v", len(got), err)
	}
	if _, err := New(Config{AllPseudo: true, Journal: path, Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("the new file is not locked")
	}
	ask(t, n, "after.far.", dnsmessage.TypeA)
	n.Close()
	n = newNames(t, Config{Journal: path})
	if n.Stats().Assigned != 2 {
		t.Errorf("%+v", n.Stats())
	}
	if files, _ := os.ReadDir(filepath.Dir(path)); len(files) != 1 {
		t.Errorf("left behind: %v", files)
	}
}

func TestJournalRefusedFiles(t *testing.T) {
	dir := t.TempDir()
	for name, make := range map[string]func(p string) error{
		"link":      func(p string) error { return os.Symlink(filepath.Join(dir, "target"), p) },
		"fifo":      func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"directory": func(p string) error { return os.Mkdir(p, 0o700) },
	} {
		path := filepath.Join(dir, name)
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if j, err := openJournal(path); err == nil {
			j.close()
			t.Errorf("%s was taken", name)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "target")); err == nil {
		t.Error("the link's target was made")
	}
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte("1 198.18.0.1 db.example 0f3c9a41\n"))
	f.Add(formatLine(netip.MustParseAddr("198.18.0.1"), "db.example"))
	f.Add([]byte("\n\n1  \x00"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(dir, fmt.Sprint(os.Getpid()))
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := openJournal(path)
		if err != nil {
			t.Fatal(err)
		}
		defer j.close()
		taken := 0
		lines, bad, err := j.load(func(a netip.Addr, name string) bool {
			taken++
			if got, err := Normalize(name); err != nil || got != name || !a.Is4() {
				t.Fatalf("took %v %q", a, name)
			}
			return true
		})
		if err != nil || lines != bad+taken {
			t.Fatalf("%d lines, %d bad, %d taken, %v", lines, bad, taken, err)
		}
		if err := j.add(addr("198.18.0.9"), "appended"); err != nil {
			t.Fatal(err)
		}
		last := ""
		j.load(func(_ netip.Addr, name string) bool { last = name; return true })
		if last != "appended" {
			t.Fatalf("what was added after %q is lost", text)
		}
	})
}
