package script

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const direct = `<rule ip-address=".*" action="DIRECT"/>`

// TestBrokerByHand: it goes to the background, is found there, and ends.
func TestBrokerByHand(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		p.run("ssh-broker", "--exit").require(t, 3).says(t, "no broker is running")
		p.run("ssh-broker", "--reconfig").require(t, 3).says(t, "no broker is running")

		pidFile := filepath.Join(p.home, "pid")
		r := p.run("ssh-broker", "--pid-file", "pid").require(t, 0)
		pid := p.broker()
		r.says(t, fmt.Sprintf("ssh-broker: runs as process %d\n", pid))
		if b, err := os.ReadFile(pidFile); err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(pid) {
			t.Errorf("pid file: %q, %v; want %d", b, err, pid)
		}
		if mode := p.ctl("-s", "status"); !strings.Contains(mode, `"mode":"daemon"`) {
			t.Errorf("status: %s", mode)
		}
		p.run("ssh-broker").require(t, 0).says(t, fmt.Sprintf("ssh-broker: runs already as process %d\n", pid))
		if r := p.run("ssh-broker", "-f", "other.xml"); r.code != 1 || !strings.Contains(r.stderr, "other.xml") {
			t.Errorf("a file that is not read: %v", r)
		}
		p.run("ssh-broker", "--exit").require(t, 0)
		if p.broker() != 0 || exists(pidFile) || exists(p.address()) {
			t.Error("--exit returned before the broker had ended")
		}
		p.run("ssh-broker").require(t, 0) // at once
		if p.broker() == pid {
			t.Error("it is the old one")
		}
	})
}

func (p *place) ctl(args ...string) string {
	p.t.Helper()
	return p.run(append([]string{"ssh-broker-ctl"}, args...)...).require(p.t, 0).stdout
}

func TestBrokerStays(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		p.capture("true").require(t, 0)
		pid := p.broker()
		if status := p.ctl("-s", "status"); !strings.Contains(status, `"mode":"on-demand"`) {
			t.Errorf("status: %s", status)
		}
		p.run("ssh-broker").require(t, 0).says(t, fmt.Sprintf("ssh-broker: ran on demand as process %d, stays now\n", pid))
		if status := p.ctl("-s", "status"); !strings.Contains(status, `"mode":"daemon"`) || p.broker() != pid {
			t.Errorf("status: %s", status)
		}
	})
}

// TestBrokerLingers is the one test that waits for a clock: ten seconds are promised.
func TestBrokerLingers(t *testing.T) {
	p := ordinary(t)
	t.Parallel()
	p.capture("true").require(t, 0)
	began := time.Now()
	waitExit(t, p.broker(), 20*time.Second)
	if took := time.Since(began); took < 8*time.Second || took > 14*time.Second {
		t.Errorf("it ended after %v, want about ten seconds", took)
	}
	if exists(p.address()) || exists(p.address()+".lock") {
		t.Error("it left its socket or its lock")
	}
}

// TestBrokerReload: by option, by signal, and never a broken file.
func TestBrokerReload(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		p.configure(direct)
		log := filepath.Join(p.home, "log")
		p.run("ssh-broker", "-l", "log").require(t, 0)
		generation := func(want int) {
			t.Helper()
			p.eventually(func() bool { return strings.Contains(p.ctl("-s", "status"), fmt.Sprintf(`"generation":%d,`, want)) },
				func() string { return p.ctl("-s", "status") })
		}
		generation(1)
		p.run("ssh-broker", "--reconfig").require(t, 0)
		generation(2)
		p.configure(`<rule ip-address=".*" action="DIRECTLY"/>` + "\n" + `<rule prot="1"/>`)
		p.run("ssh-broker", "--reconfig").require(t, 1).says(t, "the old one stays in force",
			"ssh-broker-config.xml:4:", "ssh-broker-config.xml:5:", "DIRECTLY", "hint: ")
		generation(2)
		p.kill(p.broker(), unix.SIGHUP) // says so in its log, and goes on
		p.eventually(func() bool { b, _ := os.ReadFile(log); return strings.Contains(string(b), "msg=reload error=") },
			func() string { b, _ := os.ReadFile(log); return "log: " + string(b) })
		p.configure(direct)
		p.kill(p.broker(), unix.SIGHUP)
		generation(3)
	})
}

// TestBrokerForeground: logs go to standard error or a file, at the level of -D.
func TestBrokerForeground(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		for _, c := range []struct {
			level           string
			info, debugging bool
		}{{"0", false, false}, {"3", true, false}, {"5", true, true}, {"Broker=5,1", true, true}} {
			log := filepath.Join(p.home, "log-"+c.level)
			cmd := p.command("ssh-broker", "--foreground", "-D", c.level, "-l", log)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			p.eventually(func() bool { return p.broker() == cmd.Process.Pid && exists(p.address()) }, func() string { return "it does not come up" })
			p.capture("true").require(t, 0)
			p.run("ssh-broker", "--reconfig").require(t, 0)
			p.kill(cmd.Process.Pid, unix.SIGTERM)
			if err := cmd.Wait(); err != nil {
				t.Errorf("-D %s: %v", c.level, err)
			}
			b, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			if has := strings.Contains(string(b), "level=INFO"); has != c.info {
				t.Errorf("-D %s: informs: %t\n%s", c.level, has, b)
			}
			if info, err := os.Stat(log); err == nil && info.Mode().Perm() != 0o600 {
				t.Errorf("log file has mode %v", info.Mode())
			}
		}
		cmd := p.command("ssh-broker", "--foreground", "-D", "3")
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		p.eventually(func() bool { return p.broker() == cmd.Process.Pid && exists(p.address()) }, func() string { return "it does not come up" })
		p.run("ssh-broker", "--foreground").require(t, 1).says(t, "a broker is running already (process "+strconv.Itoa(cmd.Process.Pid)+")")
		p.kill(cmd.Process.Pid, unix.SIGINT)
		said := ""
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			said += lines.Text() + "\n"
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		if !strings.Contains(said, "stopping") {
			t.Errorf("standard error: %s", said)
		}
	})
}

// TestBrokerDrains: SIGTERM lets a live connection go on, takes no new one, and the
// broker ends with the last.
func TestBrokerDrains(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		p.configure(direct)
		address := p.echo()
		host, port, _ := strings.Cut(address, ":")
		p.run("ssh-broker").require(t, 0)
		broker := p.broker()
		cmd := p.command("ssh-capture", "bash", "-c", `exec 4<>/dev/tcp/`+host+`/`+port+`; 
			echo hello >&4; read answer <&4; echo "$answer"; read line
			echo ping >&4; read answer <&4; echo "$answer"; exec 4>&-`)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out := start(t, cmd)
		out.line("hello")
		p.kill(broker, unix.SIGTERM)
		p.eventually(func() bool { return p.broker() != broker }, func() string { return "it still takes clients" })
		fmt.Fprintln(stdin, "go")
		out.line("ping")
		waitExit(t, broker, 5*time.Second) // sooner than the drain's ten seconds
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// TestBrokerCannotStart: one clear message, through ssh-capture as well.
func TestBrokerCannotStart(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		both := func(code int, texts ...string) {
			t.Helper()
			p.run("ssh-broker").require(t, 1).says(t, texts...)
			p.run("ssh-broker", "--foreground").require(t, 1).says(t, texts...)
			p.run("ssh-capture", "true").require(t, code).says(t, texts...)
		}
		t.Run("configuration", func(t *testing.T) {
			path := p.configure(`<rule ip-address=".*" action="DIRECTLY"/>` + "\n" + `<rule prot="1"/>` + "\n" + `<rule host="x" action="TUNNEL" profile-id="none"/>`)
			both(125, "the configuration cannot be used:\n", "\n"+path+":4:", "\n"+path+":5:", "\n"+path+":6:", "DIRECTLY", "prot is not an attribute", `"none"`)
			// A broker could be had: -F is not for rules that are wrong.
			p.run("ssh-capture", "-F", "touch", "ran").require(t, 125).says(t, path+":6:")
			if exists(filepath.Join(p.home, "ran")) {
				t.Error("it ran uncaptured")
			}
			os.Remove(path)
		})
		t.Run("log file", func(t *testing.T) {
			p.run("ssh-broker", "-l", "/no/such/directory/log").require(t, 1).says(t, "log file", "/no/such/directory/log")
		})
		t.Run("pid file", func(t *testing.T) {
			p.run("ssh-broker", "--pid-file", "/no/such/directory/pid").require(t, 1).says(t, "pid file", "/no/such/directory/pid")
		})
		t.Run("level", func(t *testing.T) {
			p.run("ssh-broker", "-D", "loud").require(t, 2).says(t, `debug level "loud"`)
		})
		t.Run("socket", func(t *testing.T) {
			p.write("broker", "in the way", 0o600)
			both(125, "something that is not a socket is in the way")
			os.Remove(p.address())
		})
		if p.broker() != 0 {
			t.Error("a lock is left")
		}
	})
}

// TestBrokerRunsOutOfDescriptors: it refuses what it cannot carry, and lives.
func TestBrokerRunsOutOfDescriptors(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		p.configure(direct)
		address := p.echo()
		host, port, _ := strings.Cut(address, ":")
		p.run("bash", "-c", `ulimit -n 60; exec ssh-broker`).require(t, 0)
		broker := p.broker()
		enough := `test "$open" -gt 5 -a "$open" -lt 60`
		if byCgroup() {
			enough = `test "$open" -eq 60` // the kernel carries them
		}
		r := p.run("ssh-capture", "bash", "-c", `
			for i in {1..60}; do
				{ exec {fd}<>/dev/tcp/`+host+`/`+port+`; } 2>/dev/null && open=$((open+1))
			done
			`+enough+` && echo some`)
		if r.stdout != "some\n" {
			t.Error(r)
		}
		if p.broker() != broker {
			t.Fatal("the broker has gone")
		}
		// With the connections gone it serves again.
		p.run("ssh-capture", "bash", "-c", `exec 4<>/dev/tcp/`+host+`/`+port+`; echo ping >&4; read answer <&4; echo "$answer"`).
			require(t, 0).prints(t, "ping\n")
	})
}

// TestBrokerWithoutAudit: connections go on, and whoever starts anything is told.
func TestBrokerWithoutAudit(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		p.configure(direct)
		for name, put := range map[string]func() error{
			"directory": func() error { return os.Mkdir(p.auditFile(), 0o700) },
			"link":      func() error { return os.Symlink("/dev/null", p.auditFile()) },
			"fifo":      func() error { return unix.Mkfifo(p.auditFile(), 0o600) },
		} {
			if err := put(); err != nil {
				t.Fatal(err)
			}
			warning := "warning: the audit record cannot be written, connections go unrecorded: "
			p.run("ssh-broker").require(t, 0).says(t, "ssh-broker: "+warning, p.auditFile())
			p.run("ssh-capture", "true").require(t, 0).says(t, "ssh-capture: "+warning, p.auditFile())
			p.stopBroker()
			if err := os.Remove(p.auditFile()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}
