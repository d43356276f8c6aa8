package eventlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// syslogd is a datagram socket of the test's own.
func syslogd(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// receive returns the next datagram.
func receive(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	buf := make([]byte, 64<<10)
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

// socketDir is short enough for a socket in it.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "syslog")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

var toSyslog = Routing{Targets: []Target{{Type: Syslog}}}

// message is a line as RFC 3164 section 4.1 has it, without a host, as to a local syslogd.
var message = regexp.MustCompile(`^<(\d+)>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d ssh-broker\[(\d+)\]: (.*)\n$`)

func TestSyslog(t *testing.T) {
	path := filepath.Join(socketDir(t), "log")
	server := syslogd(t, path)
	l, _ := open(t, Options{SyslogSocket: path})
	facilities := map[Facility]int{Normal: 3, Daemon: 3, User: 1, Auth: 4, Local0: 16, Local1: 17, Local2: 18, Local3: 19, Local4: 20, Local5: 21, Local6: 22, Local7: 23}
	severities := map[Severity]int{Informational: 6, Notice: 5, Warning: 4, Error: 3, Critical: 2, SecuritySuccess: 5, SecurityFailure: 4}
	for facility, f := range facilities {
		for severity, s := range severities {
			l.Apply(Routing{Targets: toSyslog.Targets, Rules: []Rule{{Facility: facility, Severity: severity}}})
			l.Raise(ConnectorFilterRule, ArgRule.Is("3"), ArgProgram.Is("/a\n<0>x"))
			got := receive(t, server)
			m := message.FindStringSubmatch(got)
			if m == nil || m[1] != strconv.Itoa(f<<3|s) || m[2] != strconv.Itoa(os.Getpid()) ||
				m[3] != `20200 Connector_filter_rule, Rule: 3, Program: "/a\n<0>x"` {
				t.Errorf("%v.%v: %q", facility, severity, got)
			}
		}
	}
}

// A syslogd that is started again gets what was raised while it was away.
func TestSyslogThatComesBack(t *testing.T) {
	path := filepath.Join(socketDir(t), "log")
	l, said := open(t, Options{SyslogSocket: path})
	l.Apply(toSyslog)
	numbered(l, 1)
	eventually(t, "failure", func() bool { return l.Stats()[0].Failing != nil })
	server := syslogd(t, path)
	if got := receive(t, server); !strings.Contains(got, "Count: 1") {
		t.Errorf("got %q", got)
	}
	eventually(t, "recovery", func() bool { s := l.Stats()[0]; return s.Written == 1 && s.Failing == nil })
	server.Close()
	os.Remove(path)
	numbered(l, 2)
	eventually(t, "failure", func() bool { return l.Stats()[0].Failing != nil })
	numbered(l, 3)
	server = syslogd(t, path)
	for n := 2; n <= 3; n++ {
		if got := receive(t, server); !strings.Contains(got, fmt.Sprintf("Count: %d", n)) {
			t.Errorf("got %q", got)
		}
	}
	eventually(t, "counts", func() bool { s := l.Stats()[0]; return s.Written == 3 && s.Lost == 0 && s.Failing == nil })
	if said.count("events cannot be logged") != 2 {
		t.Errorf("said %s", said.text.String())
	}
}

// A syslogd that hangs holds nobody up: what does not fit is lost, counted, and told of
// when it goes on.
func TestSyslogThatHangs(t *testing.T) {
	path := filepath.Join(socketDir(t), "log")
	server := syslogd(t, path)
	l, _ := open(t, Options{SyslogSocket: path})
	l.Apply(toSyslog)
	raised := filled(t, l)
	got := 0
	for {
		text := receive(t, server)
		if strings.Contains(text, "Log_events_lost, Target: syslog, Count: 1") {
			break
		}
		got++
	}
	if got != raised-1 {
		t.Errorf("%d of %d", got, raised)
	}
	eventually(t, "counts", func() bool { s := l.Stats()[0]; return int(s.Written) == got && s.Lost == 1 && s.Pending == 0 })
}

// Close does not wait for a syslogd that hangs for longer than it says.
func TestCloseOfSyslogThatHangs(t *testing.T) {
	path := filepath.Join(socketDir(t), "log")
	server := syslogd(t, path)
	l, _ := open(t, Options{SyslogSocket: path})
	l.Apply(toSyslog)
	filled(t, l)
	l.mu.RLock()
	s := l.sinks[Target{Type: Syslog}]
	l.mu.RUnlock()
	l.Close()
	select {
	case <-s.done:
		t.Error("it has written everything to nobody")
	default:
	}
	server.Close()
	<-s.done
}

func TestRsyslogd(t *testing.T) {
	program, err := exec.LookPath("rsyslogd")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs rsyslogd (Debian package rsyslog)")
		}
		t.Skip("needs rsyslogd (Debian package rsyslog)")
	}
	dir := socketDir(t)
	socket, out, conf := filepath.Join(dir, "log"), filepath.Join(dir, "out"), filepath.Join(dir, "conf")
	config := `module(load="imuxsock" SysSock.Use="off")
input(type="imuxsock" Socket="` + socket + `")
template(name="t" type="string" string="%syslogfacility-text%.%syslogseverity-text% %programname% %procid%:%msg%\n")
*.* action(type="omfile" file="` + out + `" template="t")
`
	if err := os.WriteFile(conf, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var output bytes.Buffer
	cmd := exec.Command(program, "-n", "-f", conf, "-i", filepath.Join(dir, "pid"))
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("rsyslogd: %s", output.String())
		}
	}()
	eventually(t, "rsyslogd", func() bool { _, err := os.Stat(socket); return err == nil })

	l, _ := open(t, Options{SyslogSocket: socket})
	l.Apply(Routing{Targets: toSyslog.Targets, Rules: []Rule{{Names: []string{"Connector_filter_rule"}, Facility: Auth}, {Severity: Critical}}})
	l.Raise(ConnectorFilterRule, ArgRule.Is("3"), ArgProgram.Is("/opt/evil\nname"), ArgHost.Is("\u00e9"))
	l.Raise(BrokerReloadFailed, ArgText.Is("x"))
	want := []string{
		fmt.Sprintf(`auth.info ssh-broker %d: 20200 Connector_filter_rule, Rule: 3, Program: "/opt/evil\nname", Name: "\u00e9"`, os.Getpid()),
		fmt.Sprintf(`daemon.crit ssh-broker %d: 20004 Broker_reload_failed, Text: x`, os.Getpid()),
	}
	has := func(line string) bool {
		text, _ := os.ReadFile(out)
		return strings.Contains(string(text), line+"\n")
	}
	for _, line := range want {
		eventually(t, line, func() bool { return has(line) })
	}
}

// journalChild is set in the process of this test's own in namespaces where it may put a
// socket where the journal's is.
const journalChild = "EVENTLOG_TEST_JOURNAL"

func TestJournal(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), journalChild+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil && len(out) == 0 && os.Getenv("CI") != "true" {
		t.Skipf("needs user namespaces: %v", err)
	}
	if err != nil || strings.TrimSpace(string(out)) != "good" {
		t.Errorf("%v: %s", err, out)
	}
}

// runJournalChild is TestJournal inside.
func runJournalChild() int {
	bad := 0
	fail := func(format string, args ...any) { bad++; fmt.Printf(format+"\n", args...) }
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fail("make mounts private: %v", err)
		return 1
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		fail("mount: %v", err)
		return 1
	}
	if err := os.MkdirAll(filepath.Dir(journalSocket), 0o755); err != nil {
		fail("%v", err)
		return 1
	}
	server, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: journalSocket, Net: "unixgram"})
	if err != nil {
		fail("%v", err)
		return 1
	}
	l := New(Options{Logger: slog.New(slog.DiscardHandler), RetryEvery: time.Millisecond, Strict: true})
	l.Apply(Routing{Targets: toSyslog.Targets, Rules: []Rule{{Severity: SecurityFailure, Facility: Auth}}})
	next := func() map[string]string {
		_ = server.SetReadDeadline(time.Now().Add(patience))
		buf := make([]byte, 64<<10)
		n, err := server.Read(buf)
		if err != nil {
			fail("read: %v", err)
		}
		return fields(buf[:n])
	}
	l.Raise(ConnectorFilterRule, ArgRule.Is("3"), ArgRuleSource.Is("/f:1"), ArgProgram.Is("/a\nPRIORITY=0\n"), ArgHost.Is(""))
	got := next()
	for name, want := range map[string]string{
		"MESSAGE":  `20200 Connector_filter_rule, Rule: 3, Rule-source: /f:1, Program: "/a\nPRIORITY=0\n"`,
		"PRIORITY": "4", "SYSLOG_IDENTIFIER": "ssh-broker", "SYSLOG_FACILITY": "4", "SYSLOG_PID": strconv.Itoa(os.Getpid()),
		"SSH_BROKER_EVENT": "Connector_filter_rule", "SSH_BROKER_NUMBER": "20200", "SSH_BROKER_SEVERITY": "security-failure",
		"SSH_BROKER_RULE": "3", "SSH_BROKER_RULE_SOURCE": "/f:1", "SSH_BROKER_PROGRAM": "/a\nPRIORITY=0\n",
	} {
		if got[name] != want {
			fail("%s is %q, want %q", name, got[name], want)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		fail("more fields: %q", got)
	}

	// The journal is started again.
	server.Close()
	os.Remove(journalSocket)
	if server, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: journalSocket, Net: "unixgram"}); err != nil {
		fail("%v", err)
	}
	numbered(l, 7)
	if got := next(); got["SSH_BROKER_COUNT"] != "7" {
		fail("after a restart: %q", got)
	}

	// There is none any more: what is left is syslogd.
	server.Close()
	os.Remove(journalSocket)
	if err := unix.Mount("tmpfs", "/dev", "tmpfs", 0, ""); err != nil {
		fail("mount: %v", err)
		return 1
	}
	if server, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "/dev/log", Net: "unixgram"}); err != nil {
		fail("%v", err)
		return 1
	}
	numbered(l, 8)
	_ = server.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 4096)
	n, err := server.Read(buf)
	if m := message.FindStringSubmatch(string(buf[:n])); m == nil || m[1] != strconv.Itoa(4<<3|4) || m[3] != "20002 Broker_stopped, Count: 8" {
		fail("syslogd has %q, %v", buf[:n], err)
	}
	l.Close()
	if bad > 0 {
		return 1
	}
	fmt.Println("good")
	return 0
}

// fields reads a message of the journal's native protocol.
func fields(b []byte) map[string]string {
	all := map[string]string{}
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte{'\n'})
		if name, value, ok := bytes.Cut(line, []byte{'='}); ok {
			all[string(name)], b = string(value), rest
			continue
		}
		n := binary.LittleEndian.Uint64(rest)
		all[string(line)], b = string(rest[8:8+n]), rest[8+n+1:]
	}
	return all
}
