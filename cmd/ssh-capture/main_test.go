package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/broker/control"
	"sshbroker/capture/cgroup"
	"sshbroker/capture/cgroup/view"
	"sshbroker/capture/message"
	"sshbroker/capture/service"
)

// playEnv has the test's executable be ssh-capture.
const playEnv = "SSH_CAPTURE_TEST_PLAY"

const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(playEnv) != "" {
		main()
	}
	os.Exit(m.Run())
}

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root, and CI=true allows no skip")
	}
	t.Skip("needs root: ssh-captured is root's")
}

// fakeCaptured is as much of ssh-captured as ssh-capture talks to: it makes real
// cgroups, and no rules.
type fakeCaptured struct {
	t    *testing.T
	path string

	mu      sync.Mutex
	refused map[service.Op]*service.Error
	ops     []service.Op
	leaves  map[string]*cgroup.Leaf
}

// refuse has it answer op with an error from now on.
func (f *fakeCaptured) refuse(op service.Op, with *service.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused[op] = with
}

// newCaptured serves until the test ends. What is in its cgroups then is an error.
func newCaptured(t *testing.T) *fakeCaptured {
	requireRoot(t)
	tree, err := cgroup.Find()
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeCaptured{t: t, path: filepath.Join(t.TempDir(), "socket"), refused: map[service.Op]*service.Error{}, leaves: map[string]*cgroup.Leaf{}}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: f.path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	var clients sync.WaitGroup
	clients.Go(func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			file, err := c.File()
			c.Close()
			if err != nil {
				t.Error(err)
				return
			}
			conn, err := message.New(file)
			if err != nil {
				t.Error(err)
				return
			}
			stop := context.AfterFunc(t.Context(), func() { conn.Close() })
			clients.Go(func() {
				defer stop()
				defer conn.Close()
				f.serve(tree, conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		clients.Wait()
		for id, leaf := range f.leaves {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			if err := view.WaitEmpty(ctx, leaf.Path); err != nil {
				t.Errorf("capture %s: %v", id, err)
			}
			cancel()
			if err := leaf.Remove(); err != nil {
				t.Error(err)
			}
		}
	})
	return f
}

func (f *fakeCaptured) serve(tree *cgroup.Tree, conn *message.Conn) {
	for {
		var m service.Message
		files, err := conn.Receive(&m)
		if err != nil {
			return
		}
		answer := f.answer(tree, &m, files)
		message.CloseAll(files)
		if conn.Send(answer) != nil {
			return
		}
	}
}

func (f *fakeCaptured) answer(tree *cgroup.Tree, m *service.Message, files []*os.File) service.Message {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops = append(f.ops, m.Op)
	answer := service.Message{Op: service.OpAnswer, Seq: m.Seq, Error: f.refused[m.Op]}
	switch {
	case m.Op == service.OpHello:
		answer.Op, answer.Hello = service.OpHello, &service.Hello{Version: service.Version, Program: "fake"}
	case answer.Error != nil:
	case m.Op == service.OpMake:
		leaf, err := tree.Make(context.Background(), uint32(os.Getuid()), m.Capture)
		if err != nil {
			f.t.Error(err)
			break
		}
		f.leaves[m.Capture] = leaf
		answer.Made = &service.Made{Cgroup: leaf.Path, Held: true}
	case m.Op == service.OpEnter:
		if err := f.leaves[m.Capture].Enter(files[0], uint32(os.Getuid())); err != nil {
			answer.Error = &service.Error{Code: service.CodeNotFound, Message: err.Error()}
		}
	}
	return answer
}

func (f *fakeCaptured) seen() []service.Op {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ops)
}

// fakeBroker serves every capture that it is offered.
type fakeBroker struct {
	address string
	offered chan control.CaptureArgs
	fail    atomic.Pointer[control.Error] // what it says instead of serving
}

func newBroker(t *testing.T) *fakeBroker {
	l, err := control.Listen(filepath.Join(t.TempDir(), "broker"))
	if err != nil {
		t.Fatal(err)
	}
	b := &fakeBroker{address: l.Address(), offered: make(chan control.CaptureArgs, 16)}
	s := control.NewServer(slog.New(slog.DiscardHandler))
	s.Handle(control.OpCapture, func(ctx context.Context, c *control.Call) error {
		var args control.CaptureArgs
		if err := c.Decode(&args); err != nil {
			return err
		}
		for _, f := range c.Files() {
			f.Close()
		}
		b.offered <- args
		if err := b.fail.Load(); err != nil {
			return err
		}
		if err := c.Send(control.CaptureRow{Serving: true, Held: true}); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	})
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return b
}

// outcome is what became of one run of ssh-capture.
type outcome struct {
	code           int
	stdout, stderr string
}

// play runs ssh-capture against the two.
func play(t *testing.T, captured string, b *fakeBroker, args ...string) outcome {
	t.Helper()
	cmd := player(t, captured, b, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return outcome{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

func player(t *testing.T, captured string, b *fakeBroker, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), playEnv+"=1", service.EnvSocket+"="+captured, control.EnvAddress+"="+b.address)
	return cmd
}

func (o outcome) want(t *testing.T, code int, stdout string, stderr ...string) {
	t.Helper()
	if o.code != code || o.stdout != stdout {
		t.Errorf("exit code %d, want %d; standard output %q, want %q\n%s", o.code, code, o.stdout, stdout, o.stderr)
	}
	for _, text := range stderr {
		if !strings.Contains(o.stderr, text) {
			t.Errorf("standard error lacks %q:\n%s", text, o.stderr)
		}
	}
}

// TestByCgroup: the command runs in the cgroup, is the one that is released, and its
// end is told as without a capture.
func TestByCgroup(t *testing.T) {
	for _, backend := range []string{backendAuto, backendCgroup} {
		t.Run(backend, func(t *testing.T) {
			f, b := newCaptured(t), newBroker(t)
			o := play(t, f.path, b, "--backend", backend, "sh", "-c", `echo "$SSH_CAPTURE"; sed -n 's/^0:://p' /proc/self/cgroup; exit 7`)
			args := <-b.offered
			o.want(t, 7, fmt.Sprintf("%s\n/ssh-capture/%d-%s\n", args.ID, os.Getuid(), args.ID))
			if args.Backend != control.BackendCgroup || len(args.Manifest) > 0 || args.Takeover {
				t.Errorf("offered: %+v", args)
			}
			want := []service.Op{service.OpHello, service.OpMake, service.OpEnter}
			if got := f.seen(); !slices.Equal(got, want) {
				t.Errorf("said to ssh-captured: %v, want %v", got, want)
			}
		})
	}
}

func TestCgroupExitCodes(t *testing.T) {
	f, b := newCaptured(t), newBroker(t)
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	play(t, f.path, b, "sh", "-c", "kill -TERM $$").want(t, 143, "")
	play(t, f.path, b, bad).want(t, 127, "", "or the interpreter that it names, is missing")
	play(t, f.path, b, "no-such-command").want(t, 127, "", "command not found")
}

// TestCgroupInherits: what a command has from whoever starts it, with and without.
func TestCgroupInherits(t *testing.T) {
	f, b := newCaptured(t), newBroker(t)
	script := `readlink /proc/$$/fd/7; pwd; umask; sed -n "/^SigIgn/p" /proc/$$/status; for fd in /proc/$$/fd/*; do echo "${fd##*/}"; done`
	with := player(t, f.path, b, "sh", "-c", script)
	without := exec.Command("sh", "-c", script)
	var outputs [2]string
	for i, cmd := range []*exec.Cmd{with, without} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		null, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		cmd.ExtraFiles = []*os.File{nil, nil, nil, nil, null} // number 7
		cmd.Dir, cmd.Stdout = "/usr", w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		null.Close()
		out, err := io.ReadAll(r)
		r.Close()
		if err := errors.Join(err, cmd.Wait()); err != nil {
			t.Fatal(err)
		}
		outputs[i] = string(out)
	}
	if outputs[0] != outputs[1] {
		t.Errorf("in a capture\n%s\nwithout\n%s", outputs[0], outputs[1])
	}
}

// TestCgroupKeeper: what the command leaves behind has a keeper until it ends.
func TestCgroupKeeper(t *testing.T) {
	f, b := newCaptured(t), newBroker(t)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	play(t, f.path, b, "sh", "-c", "(read go <"+fifo+") >/dev/null 2>&1 & exit 3").want(t, 3, "")
	first, keeper := <-b.offered, <-b.offered
	if !keeper.Takeover || keeper.ID != first.ID || keeper.Backend != control.BackendCgroup {
		t.Errorf("the keeper offers %+v", keeper)
	}
	pid := one(t, keepArg)
	if err := os.WriteFile(fifo, []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	waitExit(t, pid)
}

// one is the only process of this user's whose first argument is arg.
func one(t *testing.T, arg string) int {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		var found []int
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, dir := range dirs {
			line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
			environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
			words := bytes.Split(line, []byte{0})
			if len(words) > 1 && string(words[1]) == arg && bytes.Contains(environ, []byte(playEnv)) {
				pid, _ := strconv.Atoi(filepath.Base(dir))
				found = append(found, pid)
			}
		}
		if len(found) == 1 {
			return found[0]
		}
	}
	t.Fatalf("not one process %s", arg)
	return 0
}

func waitExit(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds())); n != 1 {
		t.Errorf("process %d has not ended: %v", pid, err)
	}
}

// TestCgroupRefused: what cannot be captured by cgroup is, with auto and where the
// kernel is the reason, captured in a namespace, and else does not run.
func TestCgroupRefused(t *testing.T) {
	kernel := &service.Error{Code: service.CodeKernel, Message: "no cgroup2 here", Hint: "mount it"}
	forbidden := &service.Error{Code: service.CodeForbidden, Message: "not yours"}
	for _, op := range []service.Op{service.OpMake, service.OpEnter} {
		t.Run(string(op), func(t *testing.T) {
			f, b := newCaptured(t), newBroker(t)
			f.refuse(op, kernel)
			play(t, f.path, b, "--backend=cgroup", "true").want(t, 125, "", "no cgroup2 here", "hint: mount it")
			o := play(t, f.path, b, "-D", "3", "readlink", "/proc/self/ns/net")
			if ours, _ := os.Readlink("/proc/self/ns/net"); o.code != 0 || o.stdout == ours+"\n" {
				t.Errorf("with auto: %+v", o)
			}
			o.want(t, 0, o.stdout, "warning: captured in a namespace, as not by cgroup", "no cgroup2 here")
			if args := <-b.offered; args.Backend != "" || len(args.Manifest) == 0 {
				t.Errorf("offered: %+v", args)
			}
			f.refuse(op, forbidden)
			for _, backend := range []string{backendAuto, backendCgroup} {
				play(t, f.path, b, "--backend", backend, "true").want(t, 125, "", "capture by cgroup", "not yours", "hint: --backend=namespace")
			}
			if len(b.offered) != 0 {
				t.Error("a broker was to serve it")
			}
		})
	}
}

func TestCgroupBrokerRefuses(t *testing.T) {
	f, b := newCaptured(t), newBroker(t)
	b.fail.Store(&control.Error{Code: control.CodeConfig, Message: "no rules", Hint: "write some"})
	play(t, f.path, b, "--backend=cgroup", "echo", "ran").want(t, 125, "", "no rules", "hint: write some")
}

// TestOtherNetwork: ssh-captured's socket can be reached from another network
// namespace, where it can capture nothing.
func TestOtherNetwork(t *testing.T) {
	f, b := newCaptured(t), newBroker(t)
	unshare := func(args ...string) outcome {
		cmd := player(t, f.path, b, args...)
		cmd.Args = append([]string{"unshare", "--net", cmd.Path}, cmd.Args[1:]...)
		path, err := exec.LookPath("unshare")
		if err != nil {
			t.Fatal(err)
		}
		cmd.Path = path
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		_ = cmd.Run()
		return outcome{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
	}
	unshare("--backend=cgroup", "echo", "ran").want(t, 125, "", "another network namespace", "hint: --backend=namespace")
	unshare("-D", "3", "echo", "ran").want(t, 0, "ran\n", "captured in a namespace: ssh-captured runs in another network namespace")
	if args := <-b.offered; args.Backend != "" {
		t.Errorf("offered: %+v", args)
	}
}

// TestRunningProcess: --pid captures it, and what it starts from then on, until it ends.
func TestRunningProcess(t *testing.T) {
	f, b := newCaptured(t), newBroker(t)
	shell := exec.Command("sh", "-c", "sleep 1001 & while read line; do eval \"$line\"; done; kill $!; wait")
	in, err := shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := shell.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	ask := func(line string) string {
		t.Helper()
		fmt.Fprintln(in, line)
		text := make([]byte, 200)
		n, err := out.Read(text)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text[:n]))
	}
	child := ask("echo $!")
	o := play(t, f.path, b, "--pid", strconv.Itoa(shell.Process.Pid))
	first := <-b.offered
	o.want(t, 0, first.ID+"\n", fmt.Sprintf("processes that %d has started before are not captured: %s\n", shell.Process.Pid, child))
	if first.Takeover || first.Backend != control.BackendCgroup || len(first.Command) != 3 || first.Command[0] != "sh" {
		t.Errorf("offered: %+v", first)
	}
	if keeper := <-b.offered; !keeper.Takeover || keeper.ID != first.ID {
		t.Errorf("the keeper offers %+v", keeper)
	}
	want := fmt.Sprintf("/ssh-capture/%d-%s", os.Getuid(), first.ID)
	if got := ask("sed -n 's/^0:://p' /proc/self/cgroup"); got != want {
		t.Errorf("its children are in %s, want %s", got, want)
	}
	if path, err := cgroup.OfProcess(atoi(t, child)); err != nil || path == want {
		t.Errorf("its child of before is in %s, %v", path, err)
	}
	// There no broker is started, though nothing in the environment tells.
	self, _ := os.Executable()
	nobody := filepath.Join(t.TempDir(), "nobody")
	if said := ask(fmt.Sprintf("%s=1 %s=%s %s=%s %s true 2>&1 | head -n1", playEnv, service.EnvSocket, f.path, control.EnvAddress, nobody, self)); !strings.Contains(said, "none is started inside a capture") {
		t.Errorf("a capture inside says %q", said)
	}
	pid := one(t, keepArg)
	in.Close()
	if err := shell.Wait(); err != nil {
		t.Error(err)
	}
	waitExit(t, pid)
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRunningProcessRefused: nothing is done by halves.
func TestRunningProcessRefused(t *testing.T) {
	f, b := newCaptured(t), newBroker(t)
	play(t, filepath.Join(t.TempDir(), "none"), b, "--pid", "1").want(t, 125, "", "ssh-captured is not running", "hint: as root: systemctl start ssh-captured")
	play(t, f.path, b, "--pid", "99999999").want(t, 125, "", "process 99999999: no such process")
	play(t, f.path, b, "--pid", strconv.Itoa(os.Getpid())).want(t, 125, "", "is the broker that would carry its connections")
	if len(b.offered) > 0 {
		t.Errorf("offered: %+v", <-b.offered)
	}
	sleep := exec.Command("sleep", "1002")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sleep.Process.Kill(); _ = sleep.Wait() }()
	f.refuse(service.OpEnter, &service.Error{Code: service.CodeForbidden, Message: "not yours"})
	play(t, f.path, b, "--pid", strconv.Itoa(sleep.Process.Pid)).want(t, 125, "", "not yours")
	<-b.offered
	if len(b.offered) > 0 {
		t.Error("it has a keeper")
	}
	b.fail.Store(&control.Error{Message: "no rules"})
	before := len(f.seen())
	play(t, f.path, b, "--pid", strconv.Itoa(sleep.Process.Pid)).want(t, 125, "", "no rules")
	if slices.Contains(f.seen()[before:], service.OpEnter) {
		t.Error("it was put into a capture that nobody serves")
	}
}

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string // "" for none
	}{
		{[]string{"--backend", "cgroup", "x"}, ""},
		{[]string{"--backend", "namespace", "x"}, ""},
		{[]string{"--backend", "cgroups", "x"}, `--backend "cgroups": it is auto, cgroup or namespace`},
		{[]string{"--pid", "5"}, ""},
		{[]string{"--pid", "5", "--via", "me@host", "-l"}, ""},
		{[]string{"--pid", "5", "--backend", "cgroup"}, ""},
		{[]string{"--pid", "5", "x"}, "there is no command with it"},
		{[]string{"--pid", "0"}, "--pid 0: not the number of a process"},
		{[]string{"--pid", "-3"}, "--pid -3: not the number of a process"},
		{[]string{"--pid", "x"}, "invalid argument"},
		{[]string{"--pid", "5", "--backend", "namespace"}, "only into a cgroup"},
		{[]string{"--pid", "5", "-F"}, "-F has no meaning"},
		{[]string{}, "no command to run"},
	} {
		var o options
		ran := false
		cmd := newCommand(&o, func() { ran = true })
		cmd.SetArgs(c.args)
		err := cmd.Execute()
		if c.want == "" && (err != nil || !ran) || c.want != "" && (err == nil || ran || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: ran %t, %v, want %q", c.args, ran, err, c.want)
		}
	}
}

// TestInsideTravels: a keeper knows where the processes are.
func TestInsideTravels(t *testing.T) {
	b, err := json.Marshal(inside{Cgroup: "/sys/fs/cgroup/x"})
	if err != nil {
		t.Fatal(err)
	}
	var i inside
	if err := json.Unmarshal(b, &i); err != nil || i.Namespace != nil || i.Cgroup != "/sys/fs/cgroup/x" {
		t.Errorf("%s: %+v, %v", b, i, err)
	}
	// What is gone has no processes.
	if empty, err := i.empty(); !empty || err != nil {
		t.Errorf("empty: %t, %v", empty, err)
	}
	if err := i.waitEmpty(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCgroupOfCapture(t *testing.T) {
	for path, want := range map[string]bool{
		"/ssh-capture/1000-abcde12345":                               true,
		"/ssh-capture/1000-abcde12345/below":                         true,
		"/user.slice/user-1000.slice/ssh-capture-1000-abcde12.scope": true,
		"/user.slice/user-1000.slice/session-3.scope":                false,
		"/system.slice/ssh-captured.service":                         false,
		"/ssh-capture":                                               false,
		"/":                                                          false,
	} {
		if got := ofCapture.MatchString(path); got != want {
			t.Errorf("%s: %t", path, got)
		}
	}
}
