package script

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pane is a terminal of tmux's with a program of the place in it.
type pane struct {
	*place
	socket string
}

// tmux starts a program in a terminal of that size.
func (p *place) tmux(width, height int, env string, command string) *pane {
	p.t.Helper()
	t := &pane{p, filepath.Join(p.home, "tmux")}
	p.t.Cleanup(func() {
		// Its server is not a child of ours: it ends with its last session.
		cmd := p.after("tmux", "-S", t.socket, "kill-server")
		_ = cmd.Run()
		p.eventually(func() bool { return len(p.processes("tmux")) == 0 }, func() string { return "tmux stays" })
		_ = os.Remove(t.socket)
	})
	t.tmux("-f", "/dev/null", "new-session", "-d", "-s", "0", "-x", fmt.Sprint(width), "-y", fmt.Sprint(height), "env "+env+" "+command)
	return t
}

// after is command for a time when the test's own context has ended.
func (p *place) after(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	cmd := p.command(args...)
	late := exec.CommandContext(ctx, cmd.Path, args[1:]...)
	late.Env, late.Dir, late.SysProcAttr = cmd.Env, cmd.Dir, cmd.SysProcAttr
	late.Cancel = func() error { cancel(); return late.Process.Kill() }
	return late
}

func (t *pane) tmux(args ...string) string {
	t.t.Helper()
	return t.run(append([]string{"tmux", "-u", "-S", t.socket}, args...)...).require(t.t, 0).stdout
}

// keys types; names of keys as in tmux(1).
func (t *pane) keys(keys ...string) { t.tmux(append([]string{"send-keys", "-t", "0"}, keys...)...) }

func (t *pane) text() string { return t.tmux("capture-pane", "-p", "-t", "0") }

// sees waits until the terminal shows each text, and none that begins with "-".
func (t *pane) sees(texts ...string) string {
	t.t.Helper()
	var shown string
	t.eventually(func() bool {
		shown = t.text()
		for _, text := range texts {
			wanted, without := strings.CutPrefix(text, "-")
			if strings.Contains(shown, wanted) == without {
				return false
			}
		}
		return true
	}, func() string { return fmt.Sprintf("%q is not so in\n%s", texts, shown) })
	return shown
}

// TestTop: the live view in a real terminal, of a real broker, with a program whose name
// would take the terminal over.
func TestTop(t *testing.T) {
	aboutNamespaces(t) // else the kernel carries what goes in clear, and no broker lists it
	eachAccount(t, func(t *testing.T, p *place) {
		p.lookPath("tmux")
		p.configure(direct)
		host, port, _ := strings.Cut(p.echo(), ":")
		p.run("ssh-broker").require(t, 0)
		const hostile = "evil\x1b[2J\x1b]0;taken\a\u202e\xff"
		bash, err := os.ReadFile("/bin/bash")
		if err != nil {
			t.Fatal(err)
		}
		program := p.write(hostile, string(bash), 0o755)
		connect := `exec 4<>/dev/tcp/` + host + `/` + port + `
			echo hello >&4; read answer <&4; echo "$answer"; read answer <&4; echo "end $?"`
		quiet, loud := p.command("ssh-capture", "-l", program, "-c", connect), p.command("ssh-capture", "-l", "bash", "-c", connect)
		first := start(t, quiet)
		first.line("hello")
		second := start(t, loud)
		second.line("hello")

		term := p.tmux(130, 20, "COLUMNS=", "ssh-broker-ctl top -d 0.2 --sort program")
		shown := term.sees("bash[", "evil?[2J?]0;taken", ":"+port, "admitted", "2 flows", "sorted by program, rising", "DIRECT")
		if strings.ContainsAny(shown, "\x1b\a\u202e") {
			t.Errorf("%q", shown)
		}
		if title := term.tmux("display-message", "-p", "-t", "0", "#{pane_title}"); strings.Contains(title, "taken") {
			t.Errorf("the title is %q", title)
		}
		term.keys("/", "bash", "Enter")
		term.sees("-evil", "1 with")
		term.tmux("resize-window", "-t", "0", "-x", "50", "-y", "10")
		narrow := term.sees("bash[", "UP/S", "STATE", "-ACTION", "-ADDRESS")
		for line := range strings.Lines(narrow) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > 50 {
				t.Errorf("%d cells: %q", n, line)
			}
		}
		term.keys("k")
		term.sees("[y/N]")
		term.keys("y")
		term.sees("0 with", "was closed")
		second.line("end 1") // it was reset
		_ = loud.Wait()
		term.keys("Escape")
		term.sees("evil?")
		term.keys("?")
		term.sees("Captured connections, as ssh-broker")
		term.keys("x")
		p.run("ssh-broker-ctl", "close-channel", p.onlyChannel()).require(t, 0)
		first.line("end 1")
		_ = quiet.Wait()
		term.sees("no captured connections")
		term.keys("q")
		p.eventually(func() bool { return len(p.processes("ssh-broker-ctl top")) == 0 }, func() string { return "it does not end" })
	})
}

// onlyChannel is the number of the one that is open.
func (p *place) onlyChannel() string {
	p.t.Helper()
	fields := strings.Fields(p.ctl("-q", "list-channels"))
	if len(fields) == 0 {
		p.t.Fatal("no channel is open")
	}
	return fields[0]
}

// TestTopTerminals: what a terminal cannot show is said, and colours are left out where
// they are not wanted.
func TestTopTerminals(t *testing.T) {
	p := ordinary(t)
	t.Parallel()
	p.lookPath("tmux")
	p.run("ssh-broker-ctl", "top", "-b", "-n", "1").require(t, 3).says(t, "no broker is running")
	p.configure(direct)
	p.run("ssh-broker").require(t, 0)
	p.run("ssh-broker-ctl", "top").require(t, 2).says(t, "use -b")
	p.run("ssh-broker-ctl", "top", "-b", "-d", "0").require(t, 2).says(t, "seconds from")
	p.run("ssh-broker-ctl", "top", "-b", "-s").require(t, 2).says(t, "list-channels")
	p.run("ssh-broker-ctl", "top", "-b", "--sort", "colour").require(t, 2).says(t, "one of id, user")
	out := p.ctl("top", "-b", "-n", "2", "-d", "0.1")
	if strings.Count(out, "PROGRAM") != 2 || strings.Contains(out, "\x1b") {
		t.Errorf("%q", out)
	}
	for _, c := range []struct{ env, sees string }{
		{"TERM=dumb", "top -b prints plain text"}, {"TERM=vt100 NO_COLOR=1", "no captured connections"}, {"TERM=xterm-256color LANG=C LC_ALL=C", "no captured connections"},
	} {
		term := p.tmux(80, 24, c.env, "ssh-broker-ctl top; sleep 60")
		term.sees(c.sees)
		term.tmux("kill-server")
		p.eventually(func() bool { return len(p.processes("ssh-broker-ctl top")) == 0 }, func() string { return "it outlives its terminal" })
	}
}

// TestWatch: a list that is printed again and again, on a terminal and elsewhere.
func TestWatch(t *testing.T) {
	p := ordinary(t)
	t.Parallel()
	p.lookPath("tmux")
	p.run("ssh-broker-ctl", "list-clients", "--watch").require(t, 3)
	p.configure(direct)
	p.run("ssh-broker").require(t, 0)
	p.run("ssh-broker-ctl", "list-clients", "--watch=never").require(t, 2)
	p.run("ssh-broker-ctl", "list-clients", "--watch=0").require(t, 2).says(t, "seconds from")

	term := p.tmux(80, 12, "A=1", "ssh-broker-ctl list-tunnel-listeners --watch=0.1")
	term.sees("list-tunnel-listeners every 100ms", "no listeners")
	p.ctl("open-tunnel-listener", "--type", "socks-proxy", "127.0.0.1:0")
	term.sees("socks-proxy", "-no listeners")
	p.ctl("stop")
	term.sees("ssh-broker-ctl: broker", "list-tunnel-listeners every")
	p.run("ssh-broker").require(t, 0)
	term.sees("-ssh-broker-ctl: broker")
	term.keys("C-c")
	p.eventually(func() bool { return len(p.processes("list-tunnel-listeners")) == 0 }, func() string { return "it does not end" })

	cmd := p.command("ssh-broker-ctl", "-s", "list-clients", "--watch=0.1")
	file, err := os.Create(filepath.Join(p.dir, "rows"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd.Stdout = file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.eventually(func() bool {
		b, _ := os.ReadFile(file.Name())
		return strings.Count(string(b), `"operation":"list-clients"`) > 2
	}, func() string { return "rows do not come" })
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := cmd.Wait(); err != nil {
		t.Errorf("interrupted after %v: %v", time.Since(began), err)
	}
}
