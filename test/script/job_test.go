package script

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// shell are the words that start an interactive shell without anybody's settings and
// without a line editor, which would write to the terminal what nobody asked for.
var shell = []string{"bash", "--norc", "--noprofile", "--noediting", "-i"}

// openShell starts a shell with job control whose prompt is "out> ". Captured shells
// in it are started by "in", and have the prompt "in> ".
func (p *place) openShell() *terminal {
	p.t.Helper()
	p.write("in", "#!/bin/sh\nPS1='in> ' exec ssh-capture --allow-direct "+strings.Join(shell, " ")+"\n", 0o755)
	cmd := p.command(shell...)
	cmd.Env = append(cmd.Env, "PS1=out> ")
	tty := p.openTerminal(cmd)
	tty.expect("out> ")
	return tty
}

// status has the shell whose prompt that is say how the last job ended.
func (tty *terminal) status(prompt, want string) {
	tty.t.Helper()
	tty.say("echo status-$?.")
	tty.expect("status-" + want + ".")
	tty.expect(prompt)
}

func TestShellInCapture(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		cmd := p.command(append([]string{"ssh-capture", "--allow-direct"}, shell...)...)
		cmd.Env = append(cmd.Env, "PS1=in> ")
		tty := p.openTerminal(cmd)
		tty.expect("in> ")
		supervisor := cmd.Process.Pid

		tty.say("sleep 1001")
		p.waitForeground(tty, p.one("sleep 1001").pid)
		tty.press(ctrlC)
		tty.expect("in> ")
		tty.status("in> ", "130")
		p.none("sleep 1001")

		tty.say("sleep 1002")
		sleeper := p.one("sleep 1002").pid
		p.waitForeground(tty, sleeper)
		tty.press(ctrlZ)
		tty.expect("Stopped")
		tty.expect("in> ")
		p.waitState(sleeper, "T")
		if s := state(supervisor); s == "T" {
			t.Error("a stopped job of the captured shell has stopped ssh-capture")
		}
		tty.say("jobs")
		tty.expect("Stopped")
		tty.expect("in> ")
		tty.say("bg")
		tty.expect("sleep 1002 &")
		p.waitState(sleeper, "S")
		tty.say("fg")
		p.waitForeground(tty, sleeper)
		tty.press(ctrlC)
		tty.expect("in> ")
		p.none("sleep 1002")
		tty.status("in> ", "130")

		tty.say("trap 'echo winch-$((1+1))' WINCH")
		tty.expect("in> ")
		p.waitForeground(tty, p.runsAs(strings.Join(shell, " ")))
		tty.resize(33, 101)
		tty.say(":")
		tty.expect("winch-2")
		tty.say("stty size")
		tty.expect("33 101")

		tty.say("exit 7")
		if code := tty.wait(); code != 7 {
			t.Errorf("exit code %d, want 7", code)
		}
	})
}

// waitForeground waits until a process's group is in front of the terminal.
func (p *place) waitForeground(tty *terminal, pid int) {
	p.t.Helper()
	p.eventually(func() bool {
		front, err := unix.IoctlGetInt(int(tty.master.Fd()), unix.TIOCGPGRP)
		group, gerr := unix.Getpgid(pid)
		return err == nil && gerr == nil && front == group
	}, func() string { return "process is not in the foreground" })
}

func TestSuspendedShell(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		tty := p.openShell()
		tty.say("./in")
		tty.expect("in> ")
		for range 2 {
			tty.say("suspend")
			tty.expect("Stopped")
			tty.expect("out> ")
			tty.say("fg")
			tty.expect("./in")
			tty.say("echo back-$((1+1))")
			tty.expect("back-2")
			tty.expect("in> ")
		}
		tty.say("exit 3")
		tty.expect("out> ")
		tty.status("out> ", "3")
		tty.say("exit")
		tty.wait()
	})
}

func TestJobOfShell(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		tty := p.openShell()
		tty.say("ssh-capture --allow-direct sleep 1003")
		sleeper := p.runsAs("sleep 1003")
		supervisor := p.one("ssh-capture --allow-direct sleep 1003").pid
		for range 3 { // news of an old stop must not stop it again
			tty.press(ctrlZ)
			tty.expect("Stopped")
			tty.expect("out> ")
			p.waitState(sleeper, "T")
			p.waitState(supervisor, "T")
			tty.say("fg")
			p.waitState(sleeper, "S")
			p.waitState(supervisor, "S")
			p.waitForeground(tty, sleeper)
		}
		tty.press(ctrlZ)
		tty.expect("out> ")
		tty.say("bg")
		p.waitState(sleeper, "S")
		p.waitState(supervisor, "S")
		tty.say("jobs")
		tty.expect("Running")
		tty.say("fg")
		p.waitForeground(tty, sleeper)
		tty.press(ctrlC)
		tty.expect("out> ")
		tty.status("out> ", "130")
		p.none("sleep 1003")
		tty.say("exit")
		tty.wait()
	})
}

// runsAs waits until exactly that has become of a captured command, and returns its
// process id.
func (p *place) runsAs(args string) int {
	p.t.Helper()
	pid := 0
	p.eventually(func() bool {
		for _, other := range p.processes(args) {
			if other.args == args {
				pid = other.pid
			}
		}
		return pid != 0
	}, func() string { return "no process " + args })
	return pid
}

func TestStopsItself(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		tty := p.openShell()
		// As editors do: the whole group.
		tty.say(`ssh-capture --allow-direct sh -c 'kill -TSTP 0; echo resumed-$((1+1)); exit 4'`)
		tty.expect("Stopped")
		tty.expect("out> ")
		tty.say("fg")
		tty.expect("resumed-2")
		tty.expect("out> ")
		tty.status("out> ", "4")

		// The command alone.
		tty.say("ssh-capture --allow-direct sleep 1004")
		sleeper := p.runsAs("sleep 1004")
		supervisor := p.one("ssh-capture --allow-direct sleep 1004").pid
		p.kill(sleeper, unix.SIGSTOP)
		tty.expect("Stopped")
		tty.expect("out> ")
		p.waitState(supervisor, "T")
		tty.say("fg")
		p.waitState(sleeper, "S")
		tty.press(ctrlC)
		tty.expect("out> ")
		tty.status("out> ", "130")
		tty.say("exit")
		tty.wait()
	})
}

func (p *place) kill(pid int, sig syscall.Signal) {
	p.t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		p.t.Fatalf("kill %d: %v", pid, err)
	}
}

// TestStoppedWithoutTerminal: nobody would continue ssh-capture there.
func TestStoppedWithoutTerminal(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		cmd := p.command("ssh-capture", "--allow-direct", "sh", "-c", "kill -STOP $$; exit 6")
		cmd.SysProcAttr.Setsid = true
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		child := p.runsAs("sh -c kill -STOP $$; exit 6")
		p.waitState(child, "T")
		p.kill(child, unix.SIGCONT)
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 6 {
			t.Errorf("exit code %d, want 6", code)
		}
	})
}

// editor takes the terminal's modes into its own hands, and puts them in order before
// it stops, as less and vi do. (less itself misses a signal at times.)
const editor = `#!/usr/bin/perl
$| = 1;
chomp(my $saved = qx(stty -g));
my ($stop, $key) = (0, "");
$SIG{TSTP} = sub { $stop = 1 };
system "stty -icanon -echo"; print "raw\n";
for (;;) {
	if ($stop) {
		$stop = 0;
		system "stty $saved"; print "cooked\n";
		kill STOP => $$;
		system "stty -icanon -echo"; print "raw\n";
	}
	my $readable = "";
	vec($readable, 0, 1) = 1;
	last if select($readable, undef, undef, 0.01) > 0 && sysread(STDIN, $key, 1) && $key eq "q";
}
system "stty $saved";
`

// TestRawTerminal: a program that stops in its own time is not overtaken by the shell,
// and the terminal's modes are as without a capture.
func TestRawTerminal(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		p.write("editor", editor, 0o755)
		tty := p.openShell()
		before := tty.modes()
		raw := func(want bool) {
			t.Helper()
			p.eventually(func() bool { return (tty.modes().Lflag&unix.ICANON == 0) == want },
				func() string { return "the terminal's mode is not as the editor wants it" })
		}
		tty.say("ssh-capture --allow-direct ./editor")
		tty.expect("raw")
		for range 3 {
			raw(true)
			tty.press(ctrlZ)
			if shown := tty.expect("Stopped"); !strings.Contains(shown, "cooked") {
				t.Errorf("stopped before the editor was: %q", shown)
			}
			tty.expect("out> ")
			raw(false)
			tty.say("fg")
			tty.expect("raw")
		}
		raw(true)
		tty.press("q")
		tty.expect("out> ")
		raw(false)
		if after := tty.modes(); after != before {
			t.Errorf("modes\n%+v\nwant\n%+v", after, before)
		}
		tty.status("out> ", "0")
		tty.say("exit")
		tty.wait()
	})
}

// TestTerminalStays: what runs in a capture has the terminal that ssh-capture has.
func TestTerminalStays(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		tty := p.openTerminal(p.command("ssh-capture", "--allow-direct", "sh", "-c", "tty; echo to-$((1+1)) >/dev/tty"))
		tty.expect(tty.slave.Name())
		tty.expect("to-2")
		if code := tty.wait(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		if _, err := os.Stat(tty.slave.Name()); err != nil {
			t.Error(err)
		}
	})
}
