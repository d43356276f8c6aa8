package cgroup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sshbroker/capture/cgroup/view"
)

func TestMake(t *testing.T) {
	tr := tree(t)
	umask := syscall.Umask(0o077)
	l := newLeaf(t, tr, user)
	syscall.Umask(umask)
	for _, dir := range []string{l.Path, filepath.Dir(l.Path)} {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if s := info.Sys().(*syscall.Stat_t); info.Mode().Perm() != 0o755 || s.Uid != 0 || s.Gid != 0 {
			t.Errorf("%s: %v of %d:%d", dir, info.Mode(), s.Uid, s.Gid)
		}
	}
	if l.UID != user || l.Path != filepath.Join(tr.Mount, "ssh-capture", uid(user)+"-"+l.ID) || l.Level != 2 {
		t.Errorf("made %+v", l)
	}
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, l.Path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if id := binary.NativeEndian.Uint64(h.Bytes()); l.CgroupID != id {
		t.Errorf("id %d, its file handle has %d", l.CgroupID, id)
	}
	if populatedNow(t, l) {
		t.Error("a new leaf has processes")
	}
	if _, err := tr.Make(t.Context(), user, l.ID); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made twice: %v", err)
	}
	for _, id := range []string{"", "a/b", "..", "a.b", "-a", "a\n", "\u00e4", strings.Repeat("a", 65)} {
		if l, err := tr.Make(t.Context(), user, id); err == nil {
			t.Errorf("id %q makes %s", id, l.Path)
		}
	}

	if err := l.Remove(); err != nil {
		t.Fatal(err)
	}
	again, err := tr.Make(t.Context(), user, l.ID)
	if err != nil {
		t.Fatal(err)
	}
	if again.CgroupID == l.CgroupID {
		t.Errorf("made again with the same id %d", l.CgroupID)
	}
}

// TestLevel has the kernel count: a rule with a leaf's id and level sees the packets of
// a process in the leaf, one with another level does not.
func TestLevel(t *testing.T) {
	tr := tree(t)
	l := newLeaf(t, tr, user)
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends, and its network namespace with it
		errs <- connectFrom(t, l)
	}()
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
}

func connectFrom(t *testing.T, l *Leaf) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	if err := exec.Command("ip", "link", "set", "lo", "up").Run(); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer ln.Close()

	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Name: "t", Family: nftables.TableFamilyINet})
	chain := c.AddChain(&nftables.Chain{Name: "c", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter})
	for _, level := range []uint32{l.Level - 1, l.Level, l.Level + 1} {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: level, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint64(nil, l.CgroupID)},
			&expr.Counter{},
		}})
	}
	if err := c.Flush(); err != nil {
		return err
	}

	p := start(t, user, "/bin/bash", "-c", "read _; exec 3<>/dev/tcp/127.0.0.1/"+strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)+" && echo connected")
	if err := l.Enter(p.pidfd, user); err != nil {
		return err
	}
	fmt.Fprintln(p.stdin)
	if got, err := p.out.ReadString('\n'); got != "connected\n" {
		return fmt.Errorf("program says %q: %w", got, err)
	}
	rules, err := c.GetRules(table, chain)
	if err != nil || len(rules) != 3 {
		return fmt.Errorf("%d rules: %w", len(rules), err)
	}
	for i, r := range rules {
		packets := r.Exprs[len(r.Exprs)-1].(*expr.Counter).Packets
		if (packets > 0) != (i == 1) {
			t.Errorf("level %d of %d counts %d packets", int(l.Level)-1+i, l.Level, packets)
		}
	}
	return nil
}

func TestEnter(t *testing.T) {
	tr := tree(t)
	l, other := newLeaf(t, tr, user), newLeaf(t, tr, user)
	p, bystander := waiting(t, user), waiting(t, user)
	home := in(t, tr, p.pid())
	if err := l.Enter(p.pidfd, user); err != nil {
		t.Fatal(err)
	}
	expectIn(t, l, p, true)
	expectIn(t, l, bystander, false)
	if !populatedNow(t, l) || populatedNow(t, other) {
		t.Error("the wrong leaf is populated")
	}
	if path, err := OfProcess(p.pid()); err != nil || path != strings.TrimPrefix(l.Path, tr.Mount) {
		t.Errorf("it is in %q (%v)", path, err)
	}
	// A capture inside a capture.
	if err := other.Enter(p.pidfd, user); err != nil {
		t.Fatal(err)
	}
	expectIn(t, other, p, true)
	// Not even at root's request: its sockets would not be root's.
	if err := l.Enter(bystander.pidfd, 0); !errors.Is(err, ErrNotYours) {
		t.Errorf("another's process for root: %v", err)
	}
	expectIn(t, l, bystander, false)
	if err := other.Remove(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("removed with a process in it: %v", err)
	}
	expectIn(t, other, p, true)
	if home == l.Path || home == other.Path {
		t.Errorf("the test's own processes are in %s", home)
	}
}

// TestEnterThreads moves a process of many threads through one that is not the first.
func TestEnterThreads(t *testing.T) {
	tr := tree(t)
	l := newLeaf(t, tr, user)
	p := startCmd(t, user, startRole(t, user, "captured", "threads"))
	if got := p.line(t); got != "ready" {
		t.Fatal(got)
	}
	if err := l.Enter(p.pidfd, user); err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.pid()))
	if err != nil {
		t.Fatal(err)
	}
	if len(threads) < 9 {
		t.Errorf("only %d threads", len(threads))
	}
	for _, th := range threads {
		path, err := cgroupOf(fmt.Sprintf("%d/task/%s", p.pid(), th.Name()))
		if err != nil || tr.Mount+path != l.Path {
			t.Errorf("thread %s is in %s (%v)", th.Name(), path, err)
		}
	}
}

func captured() error {
	for range 8 {
		go func() { runtime.LockOSThread(); select {} }()
	}
	// Each goroutine has a thread once it has run.
	for {
		if threads, err := os.ReadDir("/proc/self/task"); err != nil || len(threads) > 8 {
			fmt.Println("ready")
			_, err := io.Copy(io.Discard, os.Stdin)
			return err
		}
		runtime.Gosched()
	}
}

func TestEnterRefuses(t *testing.T) {
	tr := tree(t)
	l := newLeaf(t, tr, user)

	theirs, roots := waiting(t, user+1), waiting(t, 0)
	for _, p := range []*program{theirs, roots} {
		if err := l.Enter(p.pidfd, user); !errors.Is(err, ErrNotYours) {
			t.Errorf("another's process: %v", err)
		}
		expectIn(t, l, p, false)
	}

	// A set-uid program: only the real uid is its user's.
	dir, err := os.MkdirTemp("/tmp", "cgroup-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cat, err := os.ReadFile("/bin/cat")
	if err != nil {
		t.Fatal(err)
	}
	setuid := filepath.Join(dir, "cat")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(setuid, cat, 0o755), os.Chmod(setuid, 0o755|fs.ModeSetuid)); err != nil {
		t.Fatal(err)
	}
	p := start(t, user, setuid)
	fmt.Fprintln(p.stdin)
	p.line(t) // it runs
	uids, err := field(fmt.Sprintf("/proc/%d/status", p.pid()), "Uid")
	if err != nil || !slices.Equal(uids, []string{uid(user), "0", "0", "0"}) {
		t.Fatalf("set-uid program has uids %q (%v)", uids, err)
	}
	if err := l.Enter(p.pidfd, user); !errors.Is(err, ErrNotYours) {
		t.Errorf("set-uid program: %v", err)
	}
	expectIn(t, l, p, false)

	zombie := waiting(t, user)
	zombie.stdin.Close()
	if err := waitPidfd(zombie.pidfd); err != nil {
		t.Fatal(err)
	}
	if err := l.Enter(zombie.pidfd, user); !errors.Is(err, ErrGone) {
		t.Errorf("ended, not waited for: %v", err)
	}
	zombie.end(t)
	if err := l.Enter(zombie.pidfd, user); !errors.Is(err, ErrGone) {
		t.Errorf("ended and waited for: %v", err)
	}

	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := l.Enter(r, user); err == nil {
		t.Error("a pipe is a process")
	}
	if populatedNow(t, l) {
		t.Error("something is in the leaf")
	}

	gone, alive := newLeaf(t, tr, user), waiting(t, user)
	if err := gone.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := gone.Enter(alive.pidfd, user); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a leaf that is gone: %v", err)
	}
}

func waitPidfd(pidfd *os.File) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		for {
			if _, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); err != unix.EINTR {
				return
			}
		}
	})
	return errors.Join(cerr, err)
}

// TestReusedNumber gives the number of a process that has ended to another one.
func TestReusedNumber(t *testing.T) {
	tr := tree(t)
	l := newLeaf(t, tr, user)
	old := waiting(t, user)
	pid := strconv.Itoa(old.pid())
	old.end(t)
	next := []byte(strconv.Itoa(old.pid() - 1))
	var reused *program
	for range 200 { // others on this machine start processes too
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", next, 0); err != nil {
			t.Fatal(err)
		}
		p := waiting(t, user)
		if p.pid() == old.pid() {
			reused = p
			break
		}
		p.end(t)
	}
	if reused == nil {
		t.Fatal("the number was not given again")
	}
	if err := l.Enter(old.pidfd, user); !errors.Is(err, ErrGone) {
		t.Errorf("the old process: %v", err)
	}
	expectIn(t, l, reused, false)
	// Its number was read while it lived.
	raw, err := old.pidfd.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = l.enter(int(fd), pid, user) }); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, ErrGone) {
		t.Errorf("the old process by its number: %v", err)
	}
	expectIn(t, l, reused, false)
	// It ended between the last look and the move.
	home := in(t, tr, reused.pid())
	if err := move(pid, l.Path); err != nil {
		t.Fatal(err)
	}
	expectIn(t, l, reused, true)
	l.putBack(pid)
	if got := in(t, tr, reused.pid()); got != home {
		t.Errorf("put back into %s, was in %s", got, home)
	}
	if err := l.Enter(reused.pidfd, user); err != nil {
		t.Errorf("the new process: %v", err)
	}
	expectIn(t, l, reused, true)
}

// TestForeignNamespace has a process that cannot see another one try to move it.
func TestForeignNamespace(t *testing.T) {
	tr := tree(t)
	l := newLeaf(t, tr, user)
	p := waiting(t, user)
	cmd := startRole(t, 0, "foreign", l.Path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	cmd.ExtraFiles = []*os.File{p.pidfd}
	if got := startCmd(t, 0, cmd).line(t); got != "true: enter cgroup: "+ErrForeignNamespace.Error() {
		t.Error(got)
	}
	expectIn(t, l, p, false)

	// From outside, one in a namespace of its own is like any other.
	inner := exec.Command("/bin/sh", "-c", "read _")
	inner.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	q := startCmd(t, user, inner)
	if err := l.Enter(q.pidfd, user); err != nil {
		t.Fatal(err)
	}
	expectIn(t, l, q, true)
}

func foreign() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	l := &Leaf{Path: os.Args[1], settled: func() {}}
	err := l.Enter(os.NewFile(3, "pidfd"), user)
	fmt.Printf("%t: %v\n", errors.Is(err, ErrForeignNamespace), err)
	return nil
}

// TestNoWayOut shows that the owner of a captured process cannot move it, nor another
// one of his, nor make cgroups in it.
func TestNoWayOut(t *testing.T) {
	tr := tree(t)
	l, other := newLeaf(t, tr, user), newLeaf(t, tr, user)
	outside := waiting(t, user)
	p := start(t, user, "/bin/sh", "-c", `read _
		try() { if (eval "$1") 2>/dev/null; then echo "$1 worked"; fi; }
		try 'echo $$ > `+tr.Mount+`/cgroup.procs'
		try 'echo $$ > `+other.Path+`/cgroup.procs'
		try 'echo `+strconv.Itoa(outside.pid())+` > `+l.Path+`/cgroup.procs'
		try 'echo $$ > `+l.Path+`/cgroup.threads'
		try 'mkdir `+l.Path+`/mine'
		try 'echo 1 > `+l.Path+`/cgroup.kill'
		try 'cat `+l.Path+`/cgroup.events >/dev/null'
		echo end; read _`)
	if err := l.Enter(p.pidfd, user); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(p.stdin)
	for _, want := range []string{"cat " + l.Path + "/cgroup.events >/dev/null worked", "end"} {
		if got := p.line(t); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	expectIn(t, l, p, true)
	expectIn(t, l, outside, false)
	if err := move(strconv.Itoa(p.pid()), other.Path); err != nil {
		t.Errorf("root cannot: %v", err)
	}
	expectIn(t, other, p, true)
}

// family enters l with a program that leaves a grandchild behind, which lives until
// the pipe is closed.
func family(t *testing.T, l *Leaf) (lives *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	cmd := exec.Command("/bin/sh", "-c", "read _; (cat <&3 >/dev/null 2>&1 &)")
	cmd.ExtraFiles = []*os.File{r}
	p := startCmd(t, user, cmd)
	r.Close()
	if err := l.Enter(p.pidfd, user); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(p.stdin)
	p.end(t)
	return w
}

func TestWaitEmpty(t *testing.T) {
	tr := tree(t)
	l := newLeaf(t, tr, user)
	if err := view.WaitEmpty(t.Context(), l.Path); err != nil {
		t.Fatal(err)
	}
	lives := family(t, l)
	if !populatedNow(t, l) {
		t.Fatal("there is no grandchild")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := view.WaitEmpty(ctx, l.Path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("did not wait: %v", err)
	}

	keeper := startCmd(t, user, startRole(t, user, "keeper", l.Path))
	if got := keeper.line(t); got != "waits" {
		t.Fatal(got)
	}
	// More than a user may have inotify instances.
	var wg sync.WaitGroup
	for range 300 {
		wg.Go(func() {
			if err := view.WaitEmpty(t.Context(), l.Path); err != nil {
				t.Error(err)
			}
		})
	}
	lives.Close()
	wg.Wait()
	if got := keeper.line(t); got != "empty" {
		t.Error(got)
	}
	// What it says is enough for Remove.
	if err := l.Remove(); err != nil {
		t.Error(err)
	}
	if err := errors.Join(view.WaitEmpty(t.Context(), l.Path), view.WaitEmpty(t.Context(), "/sys/fs/cgroup/there/is/none"), l.Remove()); err != nil {
		t.Errorf("of a leaf that is gone: %v", err)
	}
	if populatedNow(t, l) {
		t.Error("a leaf that is gone is populated")
	}
}

// keeper is ssh-capture's, an ordinary user who knows the directory only.
func keeper() error {
	b, err := os.ReadFile(filepath.Join(os.Args[1], "cgroup.events"))
	if err != nil || !strings.Contains(string(b), "populated 1\n") {
		return fmt.Errorf("as uid %d: %q %v", os.Getuid(), b, err)
	}
	fmt.Println("waits")
	if err := view.WaitEmpty(context.Background(), os.Args[1]); err != nil {
		return err
	}
	fmt.Println("empty")
	return nil
}

// TestRemoveAtOnce removes a hundred leaves in the moment in which each becomes empty.
func TestRemoveAtOnce(t *testing.T) {
	tr := tree(t)
	for range 100 {
		l := newLeaf(t, tr, user)
		p := waiting(t, user)
		if err := l.Enter(p.pidfd, user); err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- errors.Join(view.WaitEmpty(t.Context(), l.Path), l.Remove()) }()
		p.stdin.Close()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// TestRemovedUnwatched removes a leaf before the kernel has told its end, which it does
// 10 ms after what it told last.
func TestRemovedUnwatched(t *testing.T) {
	tr := tree(t)
	for range 50 {
		l := newLeaf(t, tr, user)
		p := waiting(t, user)
		if err := l.Enter(p.pidfd, user); err != nil {
			t.Fatal(err)
		}
		begun, done := make(chan struct{}), make(chan error, 1)
		go func() { close(begun); done <- view.WaitEmpty(t.Context(), l.Path) }()
		<-begun
		p.stdin.Close()
		for populatedNow(t, l) {
			runtime.Gosched()
		}
		if err := l.Remove(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("still waits for the end of a leaf that is gone")
		}
	}
}

func TestRemoveWithCgroupsInside(t *testing.T) {
	tr := tree(t)
	l := newLeaf(t, tr, user)
	inner := filepath.Join(l.Path, "a", "b")
	if err := os.MkdirAll(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	p := waiting(t, user)
	if err := move(strconv.Itoa(p.pid()), inner); err != nil {
		t.Fatal(err)
	}
	if !populatedNow(t, l) {
		t.Error("a process below does not count")
	}
	if err := l.Remove(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("removed with a process below: %v", err)
	}
	p.stdin.Close()
	if err := errors.Join(view.WaitEmpty(t.Context(), l.Path), l.Remove()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(l.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

// Names that no leaf has.
var notOurs = []string{"test-a", "1000", "1000-", "1000--a", "01000-a", "4294967296-a", "1000-a.b", "1000-a.scope", "ssh-capture-1000-a", "1000-a b"}

// TestLeaves finds what a process left that is dead, and ends it.
func TestLeaves(t *testing.T) {
	tr := tree(t)
	l, empty := newLeaf(t, tr, user), newLeaf(t, tr, 0)
	p := waiting(t, user)
	if err := l.Enter(p.pidfd, user); err != nil {
		t.Fatal(err)
	}
	notOurs := append(notOurs, uid(user)+"-"+l.ID+".scope", "ssh-capture-"+uid(user)+"-"+l.ID)
	for _, name := range notOurs {
		dir := filepath.Join(tr.Mount, "ssh-capture", name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Rmdir(dir) })
	}
	next, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	leaves, err := next.Leaves()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []*Leaf{l, empty} {
		i := slices.IndexFunc(leaves, func(got *Leaf) bool { return got.ID == want.ID })
		if i < 0 {
			t.Fatalf("%s is not found", want.Path)
		}
		got := leaves[i]
		leaves = slices.Delete(leaves, i, i+1)
		if got.UID != want.UID || got.Path != want.Path || got.CgroupID != want.CgroupID || got.Level != want.Level {
			t.Errorf("found %+v, made %+v", got, want)
		}
		if want == l {
			l = got
		}
	}
	for _, more := range leaves { // another test's, at most
		if slices.Contains(notOurs, filepath.Base(more.Path)) || more.ID == l.ID {
			t.Errorf("found %s", more.Path)
		}
	}
	if !populatedNow(t, l) {
		t.Error("what was found has no process")
	}
	p.stdin.Close()
	if err := errors.Join(view.WaitEmpty(t.Context(), l.Path), l.Remove()); err != nil {
		t.Fatal(err)
	}
}

// TestNothingLeft shows that the last leaf takes the directory above with it.
func TestNothingLeft(t *testing.T) {
	tr := tree(t)
	l := newLeaf(t, tr, user)
	if err := l.Remove(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Join(tr.Mount, "ssh-capture"))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	others := slices.ContainsFunc(left, func(e fs.DirEntry) bool { return e.IsDir() })
	if err != nil || !others {
		t.Errorf("it is left with %d entries (%v)", len(left), err)
	}
}
