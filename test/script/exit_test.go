package script

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestExitCode(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		p.write("plain", "text", 0o644)
		p.write("noformat", "\x00\x01\x02", 0o755)
		p.write("script", "echo script $1; exit 4\n", 0o755)
		p.write("nointerpreter", "#!/no/such/interpreter\n", 0o755)
		p.write("bin/hidden", "text", 0o644)
		for _, c := range []struct {
			name    string
			command []string
			code    int
			says    string
		}{
			{"success", []string{"true"}, 0, ""},
			{"failure", []string{"sh", "-c", "exit 77"}, 77, ""},
			{"255", []string{"sh", "-c", "exit 255"}, 255, ""},
			{"killed", []string{"sh", "-c", "kill -KILL $$"}, 137, ""},
			{"terminated", []string{"sh", "-c", "kill -TERM $$"}, 143, ""},
			{"broken pipe", []string{"sh", "-c", "kill -PIPE $$"}, 141, ""},
			{"not on PATH", []string{"no-such-command"}, 127, "ssh-capture: no-such-command: command not found"},
			{"not there", []string{"./no-such-file"}, 127, "ssh-capture: ./no-such-file: command not found"},
			{"below a file", []string{"./plain/x"}, 127, "command not found"},
			{"no name", []string{""}, 127, "command not found"},
			{"directory", []string{"./bin"}, 126, "ssh-capture: ./bin: is a directory"},
			{"not executable", []string{"./plain"}, 126, "ssh-capture: ./plain: permission denied"},
			{"not executable on PATH", []string{"hidden"}, 126, "ssh-capture: hidden: permission denied"},
			{"no executable format", []string{"./noformat"}, 126, "exec format error"},
			{"script without an interpreter", []string{"./script", "arg"}, 4, ""},
			{"missing interpreter", []string{"./nointerpreter"}, 127, "or the interpreter that it names, is missing"},
		} {
			t.Run(c.name, func(t *testing.T) {
				cmd := p.command(append([]string{"ssh-capture", "--allow-direct"}, c.command...)...)
				cmd.Env = append(cmd.Env, "PATH="+filepath.Join(p.home, "bin")+":/usr/bin:/bin")
				r := p.finish(cmd).require(t, c.code).says(t, c.says)
				if c.says != "" && strings.Count(r.stderr, c.says) != 1 {
					t.Errorf("it is said more than once: %v", r)
				}
			})
		}
		t.Run("without PATH", func(t *testing.T) {
			p.run("env", "-u", "PATH", p.programs.Capture, "--allow-direct", "/bin/true").require(t, 0)
			p.run("env", "-u", "PATH", p.programs.Capture, "--allow-direct", "true").require(t, 0)
		})
	})
}

func TestSetIDCommand(t *testing.T) {
	aboutNamespaces(t)
	requireRoot(t)
	p := ordinary(t)
	for _, c := range []struct {
		name string
		mode os.FileMode
		says string
	}{
		{"set-uid", 0o755 | os.ModeSetuid, "is set-uid: a program that gains another user's rights cannot be captured without privilege"},
		{"set-gid", 0o755 | os.ModeSetgid, "is set-gid: a program that gains another group's rights cannot be captured without privilege"},
	} {
		path := filepath.Join(p.dir, c.name)
		content, err := os.ReadFile(p.lookPath("true"))
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{writeFile(path, content, 0o755), os.Chmod(path, c.mode)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		p.capture(path).require(t, 126).says(t, "ssh-capture: "+path+" "+c.says)
		if p.broker() != 0 {
			t.Error("a broker was started for it")
		}
	}
	// Its own uid it may have.
	own := p.write("own", "#!/bin/sh\nexit 6\n", 0o755)
	if err := os.Chmod(own, 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	p.capture(own).require(t, 6)
}

// TestSignalsForwarded: what reaches ssh-capture alone reaches the command.
func TestSignalsForwarded(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		for name, sig := range map[string]syscall.Signal{
			"TERM": unix.SIGTERM, "HUP": unix.SIGHUP, "USR1": unix.SIGUSR1, "USR2": unix.SIGUSR2, "ALRM": unix.SIGALRM,
			// Without a terminal nobody else would bring these.
			"INT": unix.SIGINT, "QUIT": unix.SIGQUIT,
		} {
			t.Run(name, func(t *testing.T) {
				cmd := p.command("ssh-capture", "--allow-direct", "sh", "-c",
					"trap 'echo caught; exit 5' "+name+"; echo ready; while :; do sleep 0.01; done")
				cmd.SysProcAttr.Setsid = true
				out := start(t, cmd)
				out.line("ready")
				p.kill(cmd.Process.Pid, sig)
				out.line("caught")
				if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 5 {
					t.Errorf("ended with %v", cmd.ProcessState)
				}
			})
		}
	})
}

// output is what a program prints, line by line.
type output struct {
	t testing.TB
	r io.Reader
}

// start starts a command whose output is to be waited for.
func start(t testing.TB, cmd *exec.Cmd) output {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	cmd.Stdout = w
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	return output{t, r}
}

// line reads one line, which must be that.
func (o output) line(want string) {
	o.t.Helper()
	var got []byte
	for b := make([]byte, 1); ; {
		if _, err := o.r.Read(b); err != nil {
			o.t.Fatalf("output ends with %q (%v), want %q", got, err, want)
		}
		if b[0] == '\n' {
			break
		}
		got = append(got, b[0])
	}
	if string(got) != want {
		o.t.Fatalf("output %q, want %q", got, want)
	}
}

func TestHangupIgnored(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		p.run("nohup", "ssh-capture", "--allow-direct", "sh", "-c", "kill -HUP $$; exit 3").require(t, 3)

		cmd := p.command("nohup", "ssh-capture", "--allow-direct", "sh", "-c", "echo ready; read line; exit 4")
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out := start(t, cmd)
		out.line("ready")
		p.kill(cmd.Process.Pid, unix.SIGHUP)
		stdin.Close()
		if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 4 {
			t.Errorf("ended with %v", cmd.ProcessState)
		}
	})
}

// TestAlarm: the idiom of an alarm set before the exec ends the command, not only us.
func TestAlarm(t *testing.T) {
	p := ordinary(t)
	p.run("perl", "-e", "alarm 1; exec @ARGV", "ssh-capture", "--allow-direct", "sleep", "1005").require(t, 142)
	p.none("sleep 1005")
}

// TestReaderOfMessagesLeaves: ssh-capture waits for the command all the same.
func TestReaderOfMessagesLeaves(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		p.configure(`<rule ip-address=".*" action="BLOCK"/>`)
		cmd := p.command("ssh-capture", "-D", "5", "bash", "-c",
			"echo ready; read line; for i in 1 2 3; do (: </dev/tcp/127.0.0.9/9) 2>/dev/null; (: </dev/tcp/192.0.2.1/9) 2>/dev/null; done; exit 8")
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = w
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out := start(t, cmd)
		w.Close()
		out.line("ready")
		r.Close()
		stdin.Close()
		if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 8 {
			t.Errorf("ended with %v", cmd.ProcessState)
		}
	})
}

// apart are our programs in a directory with another broker: this script.
func (p *place) apart(broker string) (capture string) {
	p.t.Helper()
	content, err := os.ReadFile(p.programs.Capture)
	if err != nil {
		p.t.Fatal(err)
	}
	if broker != "" {
		p.write("apart/ssh-broker", broker, 0o755)
	}
	return p.write("apart/ssh-capture", string(content), 0o755)
}

// TestInterrupted: a signal while the capture is being made ends all of it.
func TestInterrupted(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		capture := p.apart("#!/bin/sh\necho started >started\nexec sleep 1006\n")
		for sig, code := range map[syscall.Signal]int{unix.SIGINT: 130, unix.SIGTERM: 143, unix.SIGHUP: 129} {
			cmd := p.command(capture, "touch", "ran")
			cmd.SysProcAttr.Setsid = true
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			p.one("sleep 1006")
			p.kill(cmd.Process.Pid, sig)
			if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != code {
				t.Errorf("signal %d: ended with %v", sig, cmd.ProcessState)
			}
			p.none("sleep 1006")
		}
		if exists(filepath.Join(p.home, "ran")) {
			t.Error("the command ran")
		}
	})
}

// TestInterruptedAnywhere sends the signal at many moments: whatever it meets, the
// exit code is the signal's and nothing is left.
func TestInterruptedAnywhere(t *testing.T) {
	p := ordinary(t)
	p.run("ssh-broker").require(t, 0)
	for i := range 60 {
		cmd := p.command("ssh-capture", "--allow-direct", "sleep", "1007")
		cmd.SysProcAttr.Setpgid = true // as a terminal does: the whole group
		var said bytes.Buffer
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		p.spin(i)
		p.kill(-cmd.Process.Pid, unix.SIGINT)
		_ = cmd.Wait()
		status := cmd.ProcessState.Sys().(syscall.WaitStatus)
		// Before main has run, the signal ends it as it ends every program.
		if code := status.ExitStatus(); code != 130 && !(status.Signaled() && status.Signal() == unix.SIGINT) {
			t.Errorf("interrupted %d: %v\n%s", i, cmd.ProcessState, &said)
		}
	}
	p.none("sleep 1007")
	p.none("ssh-capture")
}

// spin passes a time that grows with i; at 60 the command surely runs.
func (p *place) spin(i int) {
	for range i {
		_, _ = os.ReadDir("/proc/self/task")
		_, _ = exec.LookPath("no-such-command")
	}
}
