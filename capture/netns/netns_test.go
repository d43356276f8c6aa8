package netns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sshbroker/capture"
)

const insideScript = "NETNS_TEST_CONNECT"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == InsideArg {
		Inside(os.Args[2:])
	}
	if script := os.Getenv(insideScript); script != "" {
		connectAll(strings.Fields(script))
		return
	}
	if program := os.Getenv(udpProgram); program != "" {
		if err := udpPrograms[program](); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// connectAll is the captured program: a line for each address.
func connectAll(addrs []string) {
	for _, a := range addrs {
		if a == "listen" {
			l, err := net.Listen("tcp", "127.0.0.1:8081")
			if err != nil {
				panic(err)
			}
			go func() {
				c, err := l.Accept()
				if err == nil {
					fmt.Fprintln(c, "inside")
					c.Close()
				}
			}()
			continue
		}
		network, addr, ok := strings.Cut(a, "/")
		if !ok {
			network, addr = "tcp", a
		}
		start := time.Now()
		c, err := net.DialTimeout(network, addr, 5*time.Second)
		slow := ""
		if time.Since(start) > 500*time.Millisecond {
			slow = " slow"
		}
		if err == nil && network == "udp" {
			_, err = c.Write([]byte("x"))
			if err == nil {
				c.SetReadDeadline(time.Now().Add(time.Second))
				_, err = c.Read(make([]byte, 1))
			}
		}
		var errno syscall.Errno
		switch {
		case errors.As(err, &errno):
			fmt.Printf("%s %s%s\n", a, errnoName(errno), slow)
		case err != nil:
			fmt.Printf("%s %v%s\n", a, err, slow)
		default:
			line, err := bufio.NewReader(c).ReadString('\n')
			fmt.Printf("%s %q %v%s\n", a, line, err, slow)
			c.Close()
		}
	}
}

func errnoName(e syscall.Errno) string {
	switch e {
	case syscall.ECONNREFUSED:
		return "ECONNREFUSED"
	case syscall.EHOSTUNREACH:
		return "EHOSTUNREACH"
	case syscall.EPERM:
		return "EPERM"
	}
	return e.Error()
}

// run starts a capture around this test binary with that script, serves it by
// decide, and returns what the program printed.
func run(t *testing.T, script string, decide func(capture.Attempt)) string {
	t.Helper()
	t.Setenv(insideScript, script)
	p := launch(t, Options{})
	p.serve(func(ctx context.Context) {
		for {
			a, err := p.served.Next(ctx)
			if err != nil {
				return
			}
			go decide(a)
		}
	})
	return p.finish()
}

// captured is this test binary in a capture of its own, as its environment says.
type captured struct {
	t      *testing.T
	child  *Child
	served *Served
	stdin  *os.File
	stdout *os.File
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// launch makes the capture and adopts it. The program does not run before finish.
func launch(t *testing.T, o Options) *captured {
	t.Helper()
	p := begin(t, o)
	p.served = adopt(t, p.child.Manifest, p.child.Files, false)
	return p
}

func adopt(t *testing.T, m Manifest, files []*os.File, takeover bool) *Served {
	t.Helper()
	s, err := Adopt(m, files, takeover, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// begin makes the capture, which nobody serves yet.
func begin(t *testing.T, o Options) *captured {
	t.Helper()
	stdin, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &captured{t: t, stdin: w, stdout: r}
	p.ctx, p.cancel = context.WithCancel(t.Context())
	t.Cleanup(func() { p.cancel(); r.Close(); w.Close() })

	// Under the race detector every program would otherwise end a second late.
	t.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0")
	o.Self, o.Path, o.Argv, o.ID = exe(t), exe(t), []string{"captured"}, "t1"
	saved := [2]*os.File{os.Stdin, os.Stdout}
	os.Stdin, os.Stdout = stdin, stdout
	p.child, err = Start(o)
	os.Stdin, os.Stdout = saved[0], saved[1]
	stdin.Close()
	stdout.Close()
	var forbidden *ForbiddenError
	if errors.As(err, &forbidden) && os.Getenv("CI") != "true" {
		t.Skipf("%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// serve runs f until finish ends its context.
func (p *captured) serve(f func(context.Context)) { p.wg.Go(func() { f(p.ctx) }) }

// finish runs the program to its end, and returns what it printed.
func (p *captured) finish() string {
	t := p.t
	t.Helper()
	if err := p.child.Release(); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(p.stdout)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := p.child.Process.Wait(); err != nil || !st.Success() {
		t.Errorf("captured program: %v %v", st, err)
	}
	if err := WaitEmpty(p.ctx, p.child.Manifest); err != nil {
		t.Errorf("wait until empty: %v", err)
	}
	p.cancel()
	p.wg.Wait()
	if p.served != nil {
		if err := p.served.Close(); err != nil {
			t.Error(err)
		}
	}
	return string(out)
}

func exe(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConnectReportsTheTruth(t *testing.T) {
	out := run(t, "192.0.2.9:23 192.0.2.9:24 192.0.2.9:25 [2001:db8::9]:23 [2001:db8::9]:24 [2001:db8::9]:25 "+
		"127.0.0.1:23 [::1]:23 192.0.0.8:23 listen 127.0.0.1:8081 127.0.0.1:8082 udp/192.0.2.9:443 udp/[2001:db8::9]:443",
		func(a capture.Attempt) {
			switch a.Flow().Dst.Port() {
			case 23:
				c, err := a.Admit(t.Context())
				if err != nil {
					t.Errorf("admit: %v", err)
					return
				}
				o := a.Flow().Origin()
				fmt.Fprintf(c, "%v known=%v\n", a.Flow().Dst, o.Known && o.Exe == exe(t))
				c.Close()
			case 24:
				a.Refuse(capture.Refused)
			case 25:
				a.Refuse(capture.Unreachable)
			default:
				if err := a.Pass(); err != nil {
					if !errors.Is(err, capture.ErrNoWayOut) {
						t.Errorf("pass: %v", err)
					}
					a.Refuse(capture.Refused)
				}
			}
		})
	want := `192.0.2.9:23 "192.0.2.9:23 known=true\n" <nil>
192.0.2.9:24 ECONNREFUSED
192.0.2.9:25 EHOSTUNREACH
[2001:db8::9]:23 "[2001:db8::9]:23 known=true\n" <nil>
[2001:db8::9]:24 ECONNREFUSED
[2001:db8::9]:25 EHOSTUNREACH
127.0.0.1:23 "127.0.0.1:23 known=true\n" <nil>
[::1]:23 "[::1]:23 known=true\n" <nil>
192.0.0.8:23 "192.0.0.8:23 known=true\n" <nil>
127.0.0.1:8081 "inside\n" <nil>
127.0.0.1:8082 ECONNREFUSED
udp/192.0.2.9:443 EPERM
udp/[2001:db8::9]:443 EPERM
`
	if out != want {
		t.Errorf("captured program printed\n%s\nwant\n%s", out, want)
	}
}

// TestAsOrdinaryUser runs the other tests again in a user namespace.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("this process is an ordinary user's already")
	}
	binary := t.TempDir() + "/netns.test"
	b, err := os.ReadFile(exe(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(binary, b, 0o755), os.Chmod(t.TempDir()+"/..", 0o755), os.Chmod(binary[:len(binary)-len("/netns.test")], 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-test.v", "-test.run", "TestConnectReportsTheTruth|TestUDPRelay")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65533, Gid: 65533}}
	out, err := cmd.CombinedOutput()
	for _, test := range []string{"TestConnectReportsTheTruth", "TestUDPRelay", "TestUDPRelayTakeover"} {
		if err != nil || !strings.Contains(string(out), "--- PASS: "+test+" (") {
			t.Errorf("%s: %v\n%s", test, err, out)
		}
	}
}
