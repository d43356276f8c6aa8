package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"sshbroker/capture"
	"sshbroker/capture/message"
	"sshbroker/capture/service"
)

// fakeCaptured answers like an ssh-captured that is in this state.
type fakeCaptured struct {
	path string

	mu     sync.Mutex
	status service.Status
	refuse *service.Error // of connector
}

func newCaptured(t *testing.T) *fakeCaptured {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, and CI=true allows no skip")
		}
		t.Skip("needs root: ssh-captured is root's")
	}
	f := &fakeCaptured{path: filepath.Join(t.TempDir(), "socket")}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: f.path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	var clients sync.WaitGroup
	clients.Go(func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			file, err := c.File()
			c.Close()
			if err != nil {
				t.Error(err)
				return
			}
			conn, err := message.New(file)
			if err != nil {
				t.Error(err)
				return
			}
			clients.Go(func() { f.serve(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		clients.Wait()
	})
	t.Setenv(service.EnvSocket, f.path)
	return f
}

func (f *fakeCaptured) serve(conn *message.Conn) {
	defer conn.Close()
	for {
		var m service.Message
		files, err := conn.Receive(&m)
		message.CloseAll(files)
		if err != nil || conn.Send(f.answer(&m)) != nil {
			return
		}
	}
}

func (f *fakeCaptured) answer(m *service.Message) service.Message {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := service.Message{Op: service.OpAnswer, Seq: m.Seq}
	switch m.Op {
	case service.OpHello:
		return service.Message{Op: service.OpHello, Hello: &service.Hello{Version: service.Version, Program: "fake", PID: 1}}
	case service.OpConnector:
		if answer.Error = f.refuse; f.refuse == nil {
			f.status.Enabled = *m.Enable
		}
	case service.OpStatus:
		s := f.status
		answer.Status = &s
	}
	return answer
}

func (f *fakeCaptured) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// alone runs the program without a broker.
func alone(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

func TestCapturedDoesNotRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none")
	t.Setenv(service.EnvSocket, path)
	for _, args := range [][]string{{"connector", "status"}, {"connector", "enable"}, {"connector", "disable"}, {"capture", "--pid", "1"}} {
		code, out, errs := alone(t, args...)
		if code != exitNoBroker || out != "" {
			t.Errorf("%q: %d %q", args, code, out)
		}
		wants(t, errs, path, "ssh-captured is not running", "hint: as root: systemctl start ssh-captured")
		if code, out, errs := alone(t, append(args, "-q")...); code != exitNoBroker || out+errs != "" {
			t.Errorf("%q -q: %d %q %q", args, code, out, errs)
		}
	}
}

var capturedStatus = service.Status{
	PID: 812, Program: "ssh-captured 1.2.3", Since: since, Enabled: true, Serving: true, Held: true, Ownership: "owner, persist",
	Policy: "closed", Keeper: "service manager", Origins: "bpf", Hierarchy: "/sys/fs/cgroup", Carriers: []uint32{1000, 1002}, Waiting: 3,
	Captures: []service.Capture{
		{ID: service.System, Served: true, Waiting: 2, Spec: &capture.Spec{
			Rules: []capture.SpecRule{
				{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Ports: []capture.PortRange{{Lo: 80, Hi: 80}, {Lo: 8000, Hi: 8999}}, Outcome: capture.Pass, Number: 1},
				{Prefixes: []netip.Prefix{netip.MustParsePrefix("fd00::/8")}, Outcome: capture.Pass, Number: 1},
				{Outcome: capture.Ask, Number: 2},
			}, Rest: capture.Reset},
			Hits: []service.Hit{{Rule: 1, Outcome: "pass", Count: 4321}, {Rule: 0, Outcome: "reset", Count: 7}, {Rule: 9, Outcome: "pass", Count: 5}}},
		{ID: "abcde12345", Owner: 1001, Cgroup: "/sys/fs/cgroup/x", Waiting: 1},
	},
}

func TestConnectorStatus(t *testing.T) {
	f := newCaptured(t)
	f.set(func() { f.status = capturedStatus })

	code, out, errs := alone(t, "connector", "status", "--time-format=%s")
	if code != exitDone || errs != "" {
		t.Errorf("code %d, %s", code, errs)
	}
	wants(t, out, "process 812, ssh-captured 1.2.3", fmt.Sprint(since.Unix()), "enabled, the system broker is connected", "held: connect()", "3 waiting",
		"closed: without a broker, connections wait", "owner, persist", "service manager", "by BPF", "/sys/fs/cgroup\n", "uid 1000, 1002",
		"CAPTURE     OWNER  BROKER     WAITING  BY KERNEL  CGROUP\n",
		"system      -      connected        2       4333  -\n",
		"abcde12345  1001   NONE             1          0  /sys/fs/cgroup/x\n")
	for _, never := range []string{"CONFLICT", "limits", "hint", "RULE"} {
		if strings.Contains(out, never) {
			t.Errorf("%q in:\n%s", never, out)
		}
	}

	_, out, _ = alone(t, "connector", "status", "-v")
	wants(t, out,
		"CAPTURE     RULE  OUTCOME  COUNT  TO\n",
		"system         1  pass      4321  10.0.0.0/8, 80,8000-8999\n",
		"system         1  pass            fd00::/8, every port\n",
		"system         2  ask          -  every address, every port\n",
		"system   default  reset        7  everything else\n",
		"system         9  pass         5  -\n")

	_, out, _ = alone(t, "connector", "status", "-s")
	var got service.Status
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.PID != 812 || len(got.Captures) != 2 || strings.Count(out, "\n") != 1 {
		t.Errorf("%v\n%s", err, out)
	}
	if code, out, errs := alone(t, "connector", "status", "-q"); code != exitDone || out+errs != "" {
		t.Errorf("-q: %d %q %q", code, out, errs)
	}

	f.set(func() {
		f.status = service.Status{PID: 1, Enabled: true, Policy: "open", Origins: "proc", LostMark: 3, Diverted: 2, Repairs: 1, LastGap: "1.2ms", Metered: 9}
	})
	_, out, _ = alone(t, "connector", "status")
	wants(t, out, "enabled, WITHOUT A SYSTEM BROKER: connections that it should decide go out in clear", "not held", "none: no cgroup2 is mounted", "/proc",
		"CONFLICT       3 connections were dropped, as a foreign rule had taken our mark", "CONFLICT       2 connections were dropped, as a foreign rule had diverted them",
		"CONFLICT       1 times a foreign program removed our table; the last time it was gone for 1.2ms", "limits         9 connections were put off",
		"hint: start the broker of the whole system: systemctl start ssh-broker-system")
}

func TestConnector(t *testing.T) {
	f := newCaptured(t)
	f.set(func() { f.status = service.Status{Serving: true, Policy: "closed"} })
	for action, want := range map[string]string{"enable": "enabled, the system broker is connected", "disable": "disabled: only captures of single programs"} {
		code, out, errs := alone(t, "connector", action)
		if code != exitDone || errs != "" {
			t.Errorf("%s: %d %s", action, code, errs)
		}
		wants(t, out, "connector", want)
		if code, out, _ := alone(t, "connector", action, "-q"); code != exitDone || out != "" {
			t.Errorf("%s -q: %d %q", action, code, out)
		}
		if _, out, _ := alone(t, "connector", action, "-s"); !strings.Contains(out, fmt.Sprintf(`"enabled":%t`, action == "enable")) {
			t.Errorf("%s -s: %s", action, out)
		}
	}
	for _, c := range []struct {
		refuse service.Error
		hint   string
	}{
		{service.Error{Code: service.CodeForbidden, Message: "not for you"}, "hint: only root, and members of the administrators' group"},
		{service.Error{Code: service.CodeNoSystem, Message: "no rules yet"}, "hint: start the broker of the whole system"},
		{service.Error{Code: service.CodeKernel, Message: "no nf_tables", Hint: "load it"}, "hint: load it"},
	} {
		f.set(func() { f.refuse = &c.refuse })
		code, out, errs := alone(t, "connector", "enable")
		if code != exitFailed || out != "" {
			t.Errorf("%s: %d %q", c.refuse.Code, code, out)
		}
		wants(t, errs, c.refuse.Message, c.hint)
	}
}

// playCapture is as much of an ssh-capture as capture needs: it prints the name of a
// capture and says what it was told.
func playCapture(args []string) int {
	fmt.Fprintln(os.Stderr, strings.Join(args, " "))
	if args[1] == "13" {
		return 125
	}
	fmt.Println("abcde12345")
	return 0
}

// TestCapture: what is beside the program is told all that was given.
func TestCapture(t *testing.T) {
	newCaptured(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, "ssh-capture")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	code, out, errs := alone(t, "capture", "--pid", "12", "--via", "me@bastion", "-l", "-a", "/run/x")
	if code != exitDone || out != "process 12 is in capture abcde12345\n" || errs != "--pid 12 --udp refuse --via me@bastion -a /run/x -l\n" {
		t.Errorf("%d %q %q", code, out, errs)
	}
	_, out, errs = alone(t, "capture", "--pid", "12", "-s", "-f", "r.xml", "--allow-direct", "--udp", "direct")
	if out != `{"pid":12,"capture":"abcde12345"}`+"\n" || errs != "--pid 12 --udp direct -f r.xml --allow-direct\n" {
		t.Errorf("%q %q", out, errs)
	}
	if _, out, _ := alone(t, "capture", "--pid", "12", "-q"); out != "" {
		t.Errorf("-q: %q", out)
	}
	if code, out, errs := alone(t, "capture", "--pid", "13"); code != exitFailed || out != "" || strings.Contains(errs, "ssh-broker-ctl") {
		t.Errorf("where it fails: %d %q %q", code, out, errs)
	}
}
