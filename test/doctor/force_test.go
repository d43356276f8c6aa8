package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"sshbroker/broker/doctor"
	"sshbroker/capture/service"
	"sshbroker/test/host"
	"sshbroker/test/netns"
)

const patience = 20 * time.Second

var window = &pty.Winsize{Rows: 24, Cols: 120}

const rules = `<profiles><profile id="p" name="p" host="10.99.1.2" port="22"/></profiles>
<filter-engine><rule ip-address="10\.99\..*" action="TUNNEL" profile-id="p"/></filter-engine>`

func configure(t *testing.T, u *netns.User, inside string) string {
	t.Helper()
	return u.Write(t, ".ssh2/ssh-broker-config.xml", host.Config(inside), 0o600)
}

func TestConfiguration(t *testing.T) {
	h := bare(t)
	examine(t, h, h.Alice, "configuration").says(t, "configuration", doctor.Skipped, "there is no configuration")
	file := configure(t, h.Alice, rules)
	examine(t, h, h.Alice, "configuration").says(t, "configuration", doctor.OK, file+": good, 1 rules, 1 profiles")
	configure(t, h.Alice, "<profiles/>")
	examine(t, h, h.Alice, "configuration").says(t, "configuration", doctor.Warning, "no file has the element filter-engine", "--via")
	configure(t, h.Alice, `<filter-engine><rule ip-address=".*" action="TUNEL"/></filter-engine>`)
	examine(t, h, h.Alice, "configuration").says(t, "configuration", doctor.Failed, file+":3:", "TUNEL", "TUNNEL")
	other := h.Alice.Write(t, "other.xml", host.Config(rules), 0o600)
	examine(t, h, h.Alice, "configuration", "-f", other).says(t, "configuration", doctor.OK, other)
	examine(t, h, h.Alice, "configuration", "-f", other+"x").says(t, "configuration", doctor.Failed, other+"x")
}

func TestBroker(t *testing.T) {
	h := bare(t)
	examine(t, h, h.Alice, "broker").says(t, "broker", doctor.Skipped, "no broker is running")
	examine(t, h, nil, "broker", "--system").says(t, "broker", doctor.Failed, "the whole system is not running", "systemctl start ssh-broker-system")
	file := configure(t, h.Alice, rules)
	taken := h.Client.Listen(t, "tcp", "127.0.0.1:7071")
	defer taken.Close()
	start := func(args ...string) {
		t.Helper()
		if r := h.Run(t, h.Alice, append([]string{h.Broker}, args...)...); r.Code != 0 {
			t.Fatalf("%v", r)
		}
	}
	start()
	f := examine(t, h, h.Alice, "broker")
	f.says(t, "broker", doctor.OK, "running, process ")
	f.well(t)
	if err := os.WriteFile(file, []byte(host.Config(rules+"\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	examine(t, h, h.Alice, "broker").says(t, "broker", doctor.Warning, "changed after it was read", "ssh-broker-ctl reload")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	examine(t, h, h.Alice, "broker").says(t, "broker", doctor.Warning, "cannot be read any more")
	h.StopBroker(t, h.Alice)

	configure(t, h.Alice, strings.Replace(rules, "<filter", `<static-tunnels><tunnel type="tcp" listen-port="7071" dst-host="x" dst-port="1" profile="p"/></static-tunnels><filter`, 1))
	start("--audit-file", "/dev/full")
	f = examine(t, h, h.Alice, "broker")
	f.says(t, "broker", doctor.Failed, "a listener is not open", "ss -ltnp")
	// The record has something to say first.
	h.Run(t, h.Alice, h.Capture, "--backend=namespace", "bash", "-c", "exec 9<>/dev/tcp/10.99.1.2/9")
	for end := time.Now().Add(patience); ; { // it is written after the program has its answer
		f = examine(t, h, h.Alice, "broker")
		if strings.Contains(f.Stdout, "/dev/full") || time.Now().After(end) {
			break
		}
	}
	f.says(t, "broker", doctor.Failed, "the audit record does not keep up", "/dev/full")
	h.StopBroker(t, h.Alice)
}

func TestCaptured(t *testing.T) {
	h := bare(t)
	examine(t, h, h.Alice, "ssh-captured,cgroup").well(t)
	examine(t, h, nil, "ssh-captured", "--system").says(t, "ssh-captured", doctor.Failed, "nothing is captured for the whole system", "systemctl start ssh-captured")
	h.StartCaptured(t)
	for _, u := range []*netns.User{nil, h.Alice} {
		f := examine(t, h, u, "ssh-captured,cgroup,namespace")
		f.well(t)
		f.says(t, "ssh-captured", doctor.OK, "running, process ")
		f.says(t, "cgroup", doctor.OK, "connects, through a tunnel and without")
		f.says(t, "namespace", doctor.OK, "connects, through a tunnel and without")
	}
	h.StartSystemBroker(t, host.Config(rules))
	h.Enable(t)
	h.Await(t, "capture of the whole system", func(st service.Status) bool { return len(st.Captures) == 1 })
	examine(t, h, nil, "ssh-captured").says(t, "ssh-captured", doctor.OK, "captures: the whole system by 1 rules; policy closed")
	h.KillSystemBroker(t)
	h.Await(t, "no system broker", func(st service.Status) bool { return !st.Serving })
	examine(t, h, nil, "ssh-captured").says(t, "ssh-captured", doctor.Failed, "its broker is not there", "connections that it should decide wait", "connector disable")
	h.Release(t)
	h.StopCaptured(t)

	h.StartCaptured(t, "--no-keeper", "--ownership=none")
	examine(t, h, nil, "ssh-captured").says(t, "ssh-captured", doctor.Warning, "nobody keeps its sockets", "--no-keeper")
	h.StartSystemBroker(t, "")
	h.Enable(t)
	h.Client.Output(t, nil, "nft", "flush", "ruleset")
	h.Await(t, "a repair", func(st service.Status) bool { return st.Repairs > 0 })
	examine(t, h, nil, "ssh-captured").says(t, "ssh-captured", doctor.Warning, "removed its table", "flush ruleset")
}

// TestStrangers: somebody else's process in the place of ours.
func TestStrangers(t *testing.T) {
	h := bare(t)
	dir := filepath.Dir(host.BrokerSocket(h.Alice))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, int(h.Alice.UID), int(h.Alice.GID)); err != nil {
		t.Fatal(err)
	}
	l := h.Client.Listen(t, "unix", host.BrokerSocket(h.Alice))
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	if err := os.Chown(host.BrokerSocket(h.Alice), int(h.Bob.UID), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(host.BrokerSocket(h.Alice), 0o666); err != nil {
		t.Fatal(err)
	}
	f := examine(t, h, h.Alice, "broker,files")
	f.says(t, "broker", doctor.Failed, "it does not answer")
	f.says(t, "files", doctor.Failed, fmt.Sprintf("belongs to uid %d", h.Bob.UID), "ss -xlp")
}

// TestFrozen: a check takes its time and no more.
func TestFrozen(t *testing.T) {
	h := bare(t)
	configure(t, h.Alice, rules)
	r := h.Run(t, h.Alice, h.Broker)
	_, number, _ := strings.Cut(strings.TrimSpace(r.Stderr), "process ")
	pid, err := strconv.Atoi(number)
	if err != nil {
		t.Fatalf("%v: %v", err, r)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for stopped := false; !stopped; { // no event of its own for whoever is not its parent
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		stopped = strings.Contains(string(b), ") T ")
	}
	examine(t, h, h.Alice, "broker").says(t, "broker", doctor.Failed, "it does not answer", "takes too long")
	// Who waits at a terminal is told for what.
	c := h.Cmd(h.Alice, h.Ctl, "doctor", "--check", "broker")
	c.TTY = window
	if r := h.Client.Run(t, c); !strings.HasPrefix(r.Stdout, "… ask the broker\r\x1b[KSTATUS ") {
		t.Errorf("%v", r)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	h.StopBroker(t, h.Alice)
}
