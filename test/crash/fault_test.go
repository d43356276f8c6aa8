package crash

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/message"
	"sshbroker/capture/service"
	"sshbroker/test/netns"
)

// TestStandstill: a daemon stands still for some seconds while programs connect.
func TestStandstill(t *testing.T) {
	w := newWorld(t, "auto", "closed")
	w.up(t, nil, nil)
	w.requireWorks(t, tunneled)
	wire := w.Client.Capture(t, "to-server")
	live := w.lives(t)
	const twoHundred = 200
	for _, c := range []struct {
		name string
		pid  int
	}{
		{"broker", w.SystemBroker().Pid()},
		{"worker", w.Status(t).PID},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := unix.Kill(c.pid, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			defer unix.Kill(c.pid, unix.SIGCONT)
			p := w.connect(t, twoHundred, tunneled)
			w.requireWaits(t, tunneled) // a second and a half
			w.requireWaits(t, asked)
			w.requireWorks(t, compiled)
			if err := unix.Kill(c.pid, unix.SIGCONT); err != nil {
				t.Fatal(err)
			}
			_, slowest := requireThrough(t, p, twoHundred, false)
			t.Logf("the slowest connect() took %v", slowest)
			live.require(t, (*talk).requireLives)
		})
	}
	live.close(t)
	w.requireClosed(t, wire)
	w.down(t)
}

// TestFullDisk: what cannot be written down is not put in force, and said so; what is in
// force stays, also when the worker dies.
func TestFullDisk(t *testing.T) {
	w := newWorld(t, "auto", "closed")
	dir := w.Dir + "/captured"
	w.Client.Output(t, nil, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", dir)
	w.up(t, nil, nil)
	wire := w.Client.Capture(t, "to-server")
	live := w.lives(t)
	w.Client.Run(t, netns.Cmd{Args: []string{"dd", "if=/dev/zero", "of=" + dir + "/filler", "bs=4k"}})

	extra := strings.Replace(w.config, "</filter-engine>", `<rule ip-address=".*" ports="9000" action="BLOCK"/></filter-engine>`, 1)
	w.WriteConfig(t, extra)
	const why = "no space left on device"
	for _, c := range []struct {
		name string
		args []string
		code int
	}{
		{"reload", []string{w.Ctl, "-a", w.Address(), "reload"}, -1},
		{"disable", []string{w.Ctl, "connector", "disable"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := w.Run(t, nil, c.args...)
			if c.code >= 0 && r.Code != c.code || !strings.Contains(r.Stdout+r.Stderr, why) {
				t.Errorf("want it to say %q: %v", why, r)
			}
		})
	}
	t.Run("capture", func(t *testing.T) {
		r := w.Run(t, w.Bob, w.Capture, "--backend=cgroup", "-F", "true")
		if r.Code != 125 || !strings.Contains(r.Stderr, why) {
			t.Errorf("want 125 and %q: %v", why, r)
		}
	})
	if st := w.Status(t); !st.Enabled || len(st.Captures) != 1 {
		t.Errorf("%+v, want it enabled and without another capture", st)
	}
	if left := w.leaves(t); len(left) != 0 {
		t.Errorf("cgroups of captures that were refused: %v", left)
	}
	w.requireWorks(t, tunneled)
	killWorker(t, w)
	for _, port := range []int{tunneled, compiled, asked} {
		w.requireWorks(t, port)
	}
	live.require(t, (*talk).requireLives)
	live.close(t)

	w.Client.Output(t, nil, "rm", dir+"/filler")
	if r := w.Run(t, nil, w.Ctl, "-a", w.Address(), "reload"); r.Code != 0 || strings.Contains(r.Stdout+r.Stderr, why) {
		t.Errorf("reload with room again: %v", r)
	}
	w.requireWorks(t, tunneled)
	w.requireClosed(t, wire)
	w.down(t)
}

// TestNoDescriptors: connects beyond what a daemon has descriptors for are refused, none
// is let through, and with descriptors again everything works.
func TestNoDescriptors(t *testing.T) {
	w := newWorld(t, "auto", "closed")
	w.up(t, nil, nil)
	w.requireWorks(t, tunneled)
	wire := w.Client.Capture(t, "to-server")
	live := w.lives(t)
	for _, c := range []struct {
		name  string
		pid   int
		owner *netns.User
	}{
		{"worker", w.Status(t).PID, nil},
		{"broker", w.SystemBroker().Pid(), w.Service},
	} {
		t.Run(c.name, func(t *testing.T) {
			pid := strconv.Itoa(c.pid)
			// Eight numbers below the limit are free.
			used := strings.Fields(w.Client.Output(t, nil, "ls", "/proc/"+pid+"/fd"))
			little, free := 0, 0
			for ; free < 8; little++ {
				if !slices.Contains(used, strconv.Itoa(little)) {
					free++
				}
			}
			limit := func(to string) {
				t.Helper()
				w.Client.Output(t, c.owner, "prlimit", "--pid", pid, "--nofile="+to)
			}
			limit(strconv.Itoa(little) + ":")
			outcomes := map[string]int{}
			// Held connections keep their descriptors in the broker; in the worker they go on.
			for _, a := range parse(t, w.connect(t, many, tunneled).Wait(t).Stdout) {
				outcomes[a.outcome+" "+a.echoed]++
			}
			t.Logf("%v", outcomes)
			for what := range outcomes {
				if !slices.Contains([]string{"ok ok", "EHOSTUNREACH -", "ok ECONNRESET", "ECONNRESET -"}, what) {
					t.Errorf("%d connects came to %q", outcomes[what], what)
				}
			}
			limit("4096:")
			eventually(t, "flows with descriptors again", func() bool {
				list := parse(t, w.connect(t, 2, tunneled).Wait(t).Stdout)
				return len(list) == 2 && list[0].ok() && list[1].ok()
			})
			live.require(t, (*talk).requireLives)
		})
	}
	live.close(t)
	w.requireClosed(t, wire)
	w.down(t)
}

// asUser runs f with a user's ids, which the kernel notes of a socket at connect(2).
func asUser(u *netns.User, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the ids it has
		for _, call := range [][4]uintptr{
			{unix.SYS_SETGROUPS, 0, 0, 0},
			{unix.SYS_SETRESGID, uintptr(u.GID), uintptr(u.GID), uintptr(u.GID)},
			{unix.SYS_SETRESUID, uintptr(u.UID), uintptr(u.UID), uintptr(u.UID)},
		} {
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				panic(errno)
			}
		}
		f()
	}()
	<-done
}

// dial connects to ssh-captured as a user, without a word. The caller closes it.
func (w *world) dial(t *testing.T, u *netns.User) (f *os.File) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	asUser(u, func() {
		for {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: w.Socket})
			if err != unix.EAGAIN && err != unix.EINTR {
				return
			}
			<-time.After(time.Millisecond) // its backlog is full; there is nothing to poll for
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "connection to ssh-captured")
}

// greet says hello and waits for the answer.
func greet(t *testing.T, f *os.File) *message.Conn {
	t.Helper()
	c, err := message.New(f)
	if err != nil {
		t.Fatal(err)
	}
	var answer service.Message
	err = c.Send(service.Message{Op: service.OpHello, Hello: &service.Hello{Version: service.Version, Program: "test"}})
	if err == nil {
		_, err = c.Receive(&answer)
	}
	if err != nil || answer.Error != nil {
		t.Fatalf("hello: %v, %v", err, answer.Error)
	}
	return c
}

// memory is a process's resident memory in bytes.
func memory(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, _ := strconv.Atoi(strings.Fields(string(b))[1])
	return pages * os.Getpagesize()
}

// TestClientDoesNotRead: a client asks without end and reads nothing. It is cut off, and
// costs little.
func TestClientDoesNotRead(t *testing.T) {
	w := newWorld(t, "auto", "closed")
	w.up(t, nil, nil)
	wire := w.Client.Capture(t, "to-server")
	pid := w.Status(t).PID
	before := memory(t, pid)
	c := greet(t, w.dial(t, w.Carol))
	defer c.Close()
	over := make(chan error, 1)
	go func() {
		for seq := uint64(1); ; seq++ {
			if err := c.Send(service.Message{Op: service.OpStatus, Seq: seq}); err != nil {
				over <- fmt.Errorf("request %d: %w", seq, err)
				return
			}
		}
	}()
	for ended := false; !ended; {
		w.requireWorks(t, tunneled)
		select {
		case err := <-over:
			t.Log(err)
			ended = true
		default:
			// It may as well be kept waiting: then it costs nothing more.
			if m := memory(t, pid); m == before {
				ended = true
			}
			before = max(before, memory(t, pid))
		}
	}
	if m := memory(t, pid); m > 256<<20 {
		t.Errorf("ssh-captured has %d MiB", m>>20)
	}
	if now := w.Status(t).PID; now != pid {
		t.Error("ssh-captured has died")
	}
	w.requireClosed(t, wire)
	w.down(t)
}

// TestGarbage: an ordinary user says whatever comes to mind, for two seconds, while
// others' flows work.
func TestGarbage(t *testing.T) {
	w := newWorld(t, "auto", "closed")
	w.up(t, nil, nil)
	wire := w.Client.Capture(t, "to-server")
	live := w.lives(t)
	pid := w.Status(t).PID
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	stop := make(chan struct{})
	said := make(chan int)
	const talkers = 4
	for i := range talkers {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		go func() {
			n := 0
			defer func() { said <- n }()
			for {
				c := greet(t, w.dial(t, w.Carol))
				raw, err := c.File().SyscallConn()
				if err != nil {
					t.Error(err)
					return
				}
				go func() { // what it answers
					for {
						var m json.RawMessage
						files, err := c.Receive(&m)
						message.CloseAll(files)
						if err != nil {
							return
						}
					}
				}()
				for err == nil {
					select {
					case <-stop:
						c.Close()
						return
					default:
					}
					n++
					if r.IntN(8) == 0 { // no JSON at all
						b := make([]byte, r.IntN(300))
						for i := range b {
							b[i] = byte(r.Uint32())
						}
						werr := raw.Write(func(fd uintptr) bool {
							err = unix.Sendto(int(fd), b, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, nil)
							return err != unix.EAGAIN
						})
						if werr != nil {
							err = werr
						}
						continue
					}
					err = c.Send(nonsense(r))
				}
				c.Close()
			}
		}()
	}
	deadline := time.After(2 * time.Second)
	for done := false; !done; {
		select {
		case <-deadline:
			done = true
		default:
			for _, port := range []int{tunneled, compiled, asked} {
				w.requireWorks(t, port)
			}
		}
	}
	close(stop)
	total := 0
	for range talkers {
		total += <-said
	}
	t.Logf("%d messages", total)
	live.require(t, (*talk).requireLives)
	live.close(t)
	st := w.Await(t, "an end of what Carol made", func(st service.Status) bool { return len(st.Captures) == 1 && len(st.Carriers) == 0 })
	if st.PID != pid || !st.Enabled || !st.Serving {
		t.Errorf("%+v, want process %d, enabled and serving", st, pid)
	}
	w.requireClosed(t, wire)
	w.down(t)
}

// nonsense is a message whose parts mostly do not fit together.
func nonsense(r *rand.Rand) service.Message {
	ops := []service.Op{service.OpHello, service.OpAnswer, service.OpMake, service.OpEnter, service.OpServe, service.OpSpec, service.OpCarry,
		service.OpConnector, service.OpStatus, service.OpRelease, service.OpAttempt, service.OpAdmit, service.OpRefuse, service.OpPass,
		service.OpHand, service.OpOrigin, service.OpWaits, "", "nothing"}
	ids := []string{"", service.System, "carol", "../../etc", "abcdefgh", strings.Repeat("x", 5000)}
	m := service.Message{Op: ops[r.IntN(len(ops))], Capture: ids[r.IntN(len(ids))], ID: uint64(r.IntN(200)), Refusal: capture.Refusal(r.IntN(5))}
	maybe := func(f func()) {
		if r.IntN(3) != 0 {
			f()
		}
	}
	maybe(func() { m.Seq = r.Uint64() })
	maybe(func() { m.Spec = &capture.Spec{Rest: capture.Outcome(r.IntN(4)), Open: r.IntN(2) == 0} })
	maybe(func() { m.Enable = new(bool) })
	maybe(func() { m.Key = &service.Key{Seq: r.Uint32()} })
	maybe(func() { m.Payload = make([]byte, r.IntN(100)) })
	maybe(func() { m.Hello = &service.Hello{Version: r.IntN(3)} })
	m.Resume = r.IntN(2) == 0
	return m
}

// TestThousandConnections: one user holds a thousand connections to ssh-captured open,
// or tries to; others do not notice.
func TestThousandConnections(t *testing.T) {
	w := newWorld(t, "auto", "closed")
	w.up(t, nil, nil)
	wire := w.Client.Capture(t, "to-server")
	var list []*os.File
	for range 1000 {
		list = append(list, w.dial(t, w.Carol))
	}
	for _, port := range []int{tunneled, compiled, asked} {
		w.requireWorks(t, port)
	}
	if r := w.Run(t, w.Bob, w.Ctl, "connector", "status"); r.Code != 0 {
		t.Errorf("Bob asks for the status: %v", r)
	}
	turnedAway := 0
	eventually(t, "those that are too many to be turned away", func() bool {
		turnedAway = 0
		for _, f := range list {
			if hungUp(f) {
				turnedAway++
			}
		}
		return turnedAway >= 1000-128
	})
	if turnedAway == 1000 {
		t.Error("nobody was let in")
	}
	for _, f := range list {
		f.Close()
	}
	eventually(t, "Carol to be served again", func() bool {
		return w.Run(t, w.Carol, w.Ctl, "connector", "status").Code == 0
	})
	w.requireClosed(t, wire)
	w.down(t)
}

func hungUp(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return true
	}
	p := []unix.PollFd{{}}
	_ = raw.Control(func(fd uintptr) {
		p[0].Fd = int32(fd)
		_, _ = unix.Poll(p, 0)
	})
	return p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}
