package keep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture/privilege"
)

// The test binary is keeper and worker too, by role.
const (
	envRole   = "KEEP_TEST_ROLE"
	envSocket = "KEEP_TEST_SOCKET" // where the worker is told what to do
	envFail   = "KEEP_TEST_FAIL"   // the worker ends so at once: a code, or "kill"
	envReduce = "KEEP_TEST_REDUCE"
)

func TestMain(m *testing.M) {
	switch os.Getenv(envRole) {
	case "":
		os.Exit(m.Run())
	case "keeper":
		os.Exit(beKeeper())
	case "manager": // what the service manager does between fork and exec
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
		os.Setenv("SYSTEMD_EXEC_PID", strconv.Itoa(os.Getpid()))
		os.Setenv(envRole, "worker")
		fmt.Fprintln(os.Stderr, syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
	case "worker":
		beWorker()
	}
	os.Exit(1)
}

func reduce() error {
	if os.Getenv(envReduce) == "" {
		return nil
	}
	return privilege.Reduce(privilege.NetAdmin, privilege.SysPtrace, privilege.DACOverride, privilege.BPF)
}

func beKeeper() int {
	if err := reduce(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 99
	}
	os.Setenv(envRole, "worker")
	env := append(os.Environ(), "NOTIFY_SOCKET=/of/somebody/else", "LISTEN_FDS=7", "LISTEN_PID=1", "LISTEN_FDNAMES=x") // not for the worker
	s := supervisor{argv: []string{"/proc/self/exe"}, env: env, log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		pause: pause{first: time.Millisecond, most: 20 * time.Millisecond, reset: 10 * time.Second}}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	return s.run(ctx)
}

// hello is the first word of a worker.
type hello struct {
	PID     int
	Kind    string
	Names   []string
	Env     []string // what is left of the protocol's variables
	Threads string   // capabilities
}

// order is what a worker is told to do.
type order struct {
	Op, Name string
	Code     int
}

// reply is its answer.
type reply struct {
	Err, Text string
}

func beWorker() {
	if err := reduce(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(98)
	}
	k, err := Open()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(97)
	}
	switch fail := os.Getenv(envFail); fail {
	case "":
	case "kill":
		// At the second start only, as seen from the file that the first one makes.
		mark := os.Getenv(envSocket) + ".mark"
		if f, err := os.OpenFile(mark, os.O_CREATE|os.O_EXCL, 0o600); err == nil {
			f.Close()
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		}
	default:
		code, _ := strconv.Atoi(fail)
		os.Exit(code)
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	conn, err := net.Dial("unix", os.Getenv(envSocket))
	if err != nil {
		os.Exit(96)
	}
	out, in := json.NewEncoder(conn), json.NewDecoder(conn)
	h := hello{PID: os.Getpid(), Kind: k.Kind(), Names: slices.Sorted(maps.Keys(k.files))}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "LISTEN_") || strings.HasPrefix(kv, "NOTIFY_SOCKET") || strings.HasPrefix(kv, envParent) {
			h.Env = append(h.Env, kv)
		}
	}
	_ = out.Encode(h)
	go func() {
		for sig := range signals {
			_ = out.Encode(reply{Text: sig.String()})
			os.Exit(0)
		}
	}()
	w := worker{k: k, files: map[string][]*os.File{}}
	for _, name := range h.Names {
		w.files[name] = k.Take(name)
	}
	for {
		var o order
		if err := in.Decode(&o); err != nil {
			os.Exit(95)
		}
		text, err := w.do(o)
		r := reply{Text: text}
		if err != nil {
			r.Err = err.Error()
		}
		_ = out.Encode(r)
	}
}

type worker struct {
	k     *Keep
	files map[string][]*os.File
}

func (w *worker) do(o order) (string, error) {
	switch o.Op {
	case "ready":
		return "", w.k.Ready()
	case "kind":
		return w.k.Kind(), nil
	case "exit":
		os.Exit(o.Code)
	case "listen": // makes a listener and stores it
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			return "", err
		}
		return l.Addr().String(), w.store(o.Name, f)
	case "pipe": // makes a pipe with five bytes in it and stores both ends
		r, p, err := os.Pipe()
		if err != nil {
			return "", err
		}
		if _, err := p.WriteString("water"); err != nil {
			return "", err
		}
		var stat unix.Stat_t
		raw, err := r.SyscallConn()
		if err != nil {
			return "", err
		}
		cerr := raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &stat) })
		return fmt.Sprintf("pipe:[%d]", stat.Ino), errors.Join(cerr, err, w.store(o.Name, r), w.store(o.Name, p))
	case "store-and-die":
		r, _, err := os.Pipe()
		if err != nil {
			return "", err
		}
		if err := w.store(o.Name, r); err != nil {
			return "", err
		}
		return "", unix.Kill(os.Getpid(), unix.SIGKILL)
	case "many": // stores until it is refused
		for n := 0; ; n++ {
			if err := w.k.Store(o.Name, os.Stdin); errors.Is(err, ErrFull) {
				return strconv.Itoa(n), nil
			} else if err != nil {
				return "", err
			}
		}
	case "remove":
		return "", w.k.Remove(o.Name)
	case "accept":
		l, err := net.FileListener(w.files[o.Name][0])
		if err != nil {
			return "", err
		}
		c, err := l.Accept()
		if err != nil {
			return "", err
		}
		_, err = c.Write([]byte("at last"))
		return "", errors.Join(err, c.Close())
	case "look": // tells what a pipe holds and whether a listener has a connection
		return look(w.files[o.Name])
	}
	return "", fmt.Errorf("unknown order %q", o.Op)
}

func (w *worker) store(name string, f *os.File) error {
	w.files[name] = append(w.files[name], f)
	return w.k.Store(name, f)
}

func look(files []*os.File) (string, error) {
	var parts []string
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return "", err
		}
		cerr := raw.Control(func(fd uintptr) {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			var n int
			if n, err = unix.Poll(p, 0); err != nil {
				return
			}
			flags, _ := unix.FcntlInt(fd, unix.F_GETFL, 0)
			closes, _ := unix.FcntlInt(fd, unix.F_GETFD, 0)
			parts = append(parts, fmt.Sprintf("readable=%d nonblocking=%t cloexec=%t", n, flags&unix.O_NONBLOCK != 0, closes&unix.FD_CLOEXEC != 0))
		})
		if err := errors.Join(cerr, err); err != nil {
			return "", err
		}
	}
	return strings.Join(parts, "; "), nil
}
