package keep

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Supervise is the parent: it runs the worker, a program with its arguments and
// environment, keeps what that stores, and returns the code with which to exit.
//
// A worker that a signal has killed is started again, and one that failed, if there has
// been one that was ready. Supervise ends with any other worker, and with one that ends
// after ctx has, when it is sent SIGTERM. The worker has a process group of its own, so
// that a terminal's signals reach it by ctx alone.
func Supervise(ctx context.Context, argv, env []string, log *slog.Logger) (exitCode int) {
	s := supervisor{argv: argv, env: env, log: log, pause: pause{first: 10 * time.Millisecond, most: 2 * time.Second, reset: 10 * time.Second}}
	return s.run(ctx)
}

type supervisor struct {
	argv, env []string
	log       *slog.Logger
	pause     pause

	kept  []kept // this and ready belong to read while there is a worker
	ready bool   // one worker has been
}

// kept has a bare descriptor, as an os.File of it would have this process woken up for
// whatever comes to it.
type kept struct {
	name string
	fd   int
}

// pause is the time until the next start: first, doubled up to most, and first again
// after a worker that has lived for reset.
type pause struct{ first, most, reset, next time.Duration }

func (p *pause) after(lived time.Duration) (d time.Duration) {
	if lived >= p.reset {
		p.next = 0
	}
	d = cmp.Or(p.next, p.first)
	p.next = min(2*d, p.most)
	return d
}

func (s *supervisor) run(ctx context.Context) int {
	defer s.remove(func(kept) bool { return true })
	for {
		started := time.Now()
		code, again := s.work(ctx)
		if !again {
			return code
		}
		pause := s.pause.after(time.Since(started))
		s.log.Warn("the worker has died and is started again", "code", code, "kept", len(s.kept), "pause", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return code
		}
	}
}

// work runs one worker to its end, and says whether there is to be another.
func (s *supervisor) work(ctx context.Context) (code int, again bool) {
	const cannotRun = 126 // as shells have it
	process, conn, err := s.start()
	if err != nil {
		s.log.Error("cannot start the worker", "program", s.argv[0], "error", err)
		return cannotRun, s.ready
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = process.Signal(unix.SIGTERM) })()
	drained := make(chan struct{})
	go func() {
		s.read(conn)
		close(drained)
	}()
	state, err := process.Wait()
	_ = conn.CloseRead() // ends read once it has all that was said
	<-drained
	if err != nil {
		return cannotRun, s.ready && ctx.Err() == nil
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), ctx.Err() == nil
	}
	return state.ExitCode(), state.ExitCode() != 0 && s.ready && ctx.Err() == nil
}

// start starts a worker that inherits what is kept, and returns our end of its socket.
func (s *supervisor) start() (*os.Process, *net.UnixConn, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[1])
	conn, err := unixConn(os.NewFile(uintptr(pair[0]), "worker"))
	if err != nil {
		return nil, nil, err
	}
	files, names := []uintptr{0, 1, 2, uintptr(pair[1])}, []string{nameParent}
	for _, k := range s.kept {
		files, names = append(files, uintptr(k.fd)), append(names, k.name)
	}
	env := slices.DeleteFunc(slices.Clone(s.env), func(kv string) bool {
		return strings.HasPrefix(kv, "LISTEN_") || strings.HasPrefix(kv, "NOTIFY_SOCKET=") || strings.HasPrefix(kv, envParent+"=")
	})
	env = append(env, fmt.Sprintf("%s=%d", envParent, os.Getpid()), fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	pid := 0
	path, err := exec.LookPath(s.argv[0]) // each time anew, as it may have been upgraded
	if err == nil {
		pid, _, err = syscall.StartProcess(path, s.argv, &syscall.ProcAttr{Env: env, Files: files, Sys: &syscall.SysProcAttr{Setpgid: true}})
	}
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	process, err := os.FindProcess(pid)
	return process, conn, err
}

// read does what the worker says, until its end.
func (s *supervisor) read(conn *net.UnixConn) {
	text, oob := make([]byte, 4<<10), make([]byte, unix.CmsgSpace(4*4))
	for {
		n, oobn, flags, _, err := conn.ReadMsgUnix(text, oob)
		if !s.obey(string(text[:n]), oob[:oobn]) || flags&unix.MSG_CTRUNC != 0 { // the latter for want of descriptors
			s.log.Error("a descriptor of the worker is not kept", "message", string(text[:n]), "kept", len(s.kept))
		}
		if err != nil {
			return
		}
	}
}

// obey carries out one message, whose assignments are those of sd_notify(3).
func (s *supervisor) obey(text string, oob []byte) (all bool) {
	all = true
	_, name, _ := strings.Cut(text, "\nFDNAME=")
	s.ready = s.ready || text == "READY=1"
	if strings.HasPrefix(text, "FDSTOREREMOVE=1\n") {
		s.remove(func(k kept) bool { return k.name == name })
	}
	messages, _ := unix.ParseSocketControlMessage(oob)
	for _, message := range messages {
		fds, _ := unix.ParseUnixRights(&message)
		for _, fd := range fds {
			if strings.HasPrefix(text, "FDSTORE=1\n") && len(s.kept) < Max {
				s.kept = append(s.kept, kept{name, fd})
			} else {
				all = false
				unix.Close(fd)
			}
		}
	}
	return all
}

func (s *supervisor) remove(which func(kept) bool) {
	s.kept = slices.DeleteFunc(s.kept, func(k kept) bool {
		if which(k) {
			unix.Close(k.fd)
		}
		return which(k)
	})
}
