package main

import (
	"path/filepath"
	"strings"
	"testing"

	"sshbroker/broker/control"
)

// complete is what a shell is offered for the last word, one a line, with the kind of
// completion in the last one.
func complete(t *testing.T, address string, words ...string) string {
	t.Helper()
	code, out, errs := ctl(t, address, append([]string{"__complete"}, words...)...)
	if code != exitDone {
		t.Fatalf("%v: code %d, %s", words, code, errs)
	}
	return out
}

// The last line of what has no files beside it, and of what has.
const (
	noFiles = ":4\n"
	files   = ":0\n"
)

func TestCompletesWhatTheBrokerHas(t *testing.T) {
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpClients, rows(control.ClientRow{ID: 3, PID: 9, Program: "/usr/bin/ssh-capture", Operation: "capture"}, control.ClientRow{ID: 4}))
		s.Handle(control.OpConnections, rows(control.ConnectionRow{ID: 12, Server: "gw:22", User: "me", State: "connected"}))
		s.Handle(control.OpChannels, rows(control.ChannelRow{ID: 7, Program: "/bin/a\tb\nc\x1b[2J", PID: 1, Dst: "192.0.2.1:80"}, control.ChannelRow{ID: 8, Name: "db.internal"}))
		s.Handle(control.OpListeners, rows(control.ListenerRow{ID: 2, Type: "tcp", Listen: "127.0.0.1:8080"}))
		s.Handle(control.OpProfiles, rows(control.ProfileRow{ID: "p1", Name: "paper"}, control.ProfileRow{ID: "p2", Servers: []string{"b:22"}}))
		s.Handle(control.OpListKeys, rows(control.KeyRow{File: "/h/id", Type: "ssh-ed25519", State: "locked"}, control.KeyRow{ID: "abc"}, control.KeyRow{Note: "no agent"}))
	})
	for _, tt := range []struct {
		words []string
		want  string
	}{
		{[]string{"disconnect-client", ""}, "3\tssh-capture[9] capture\n4\t?[0]\n" + noFiles},
		{[]string{"disconnect-client", "3", ""}, "4\t?[0]\n" + noFiles},
		{[]string{"close-connection", ""}, "12\tme@gw:22, connected\n" + noFiles},
		{[]string{"connection-status", ""}, "12\tme@gw:22, connected\n" + noFiles},
		{[]string{"connection-status", "12", ""}, noFiles},
		{[]string{"close-channel", ""}, "7\ta?b?c?[2J[1] to 192.0.2.1:80\n8\t?[0] to db.internal\n" + noFiles},
		{[]string{"explain", "--flow", ""}, "7\ta?b?c?[2J[1] to 192.0.2.1:80\n8\t?[0] to db.internal\n" + noFiles},
		{[]string{"close-tunnel-listener", ""}, "2\ttcp 127.0.0.1:8080\n" + noFiles},
		{[]string{"open-tunnel-listener", ""}, noFiles},
		{[]string{"open-tunnel-listener", "8080", ""}, "p1\tpaper\np2\tb:22\n" + noFiles},
		{[]string{"list-profiles", "p1", ""}, "p2\tb:22\n" + noFiles},
		{[]string{"rule", "add", "--profile-id", ""}, "p1\tpaper\np2\tb:22\n" + noFiles},
		{[]string{"view-key", ""}, "/h/id\tssh-ed25519, locked\nabc\t?,\n" + files},
		{[]string{"add-key", ""}, files},
		{[]string{"status", ""}, noFiles},
	} {
		if got := complete(t, address, tt.words...); got != tt.want {
			t.Errorf("%q offers\n%swant\n%s", tt.words, got, tt.want)
		}
	}
}

// Without a broker no time is lost, none is started, and what files say is offered.
func TestCompletesWithoutABroker(t *testing.T) {
	w := newWorld(t, `<secsh-broker><profiles><profile id="p9" name="nine" host="h"/></profiles>
<filter-engine><rule ports="25" action="BLOCK"/><rule ip-address="10.0.0.0/8" action="TUNNEL" profile-id="p9"/></filter-engine></secsh-broker>`, "")
	rules := "1\tports=25 action=BLOCK\n2\tip-address=10.0.0.0/8 action=TUNNEL profile-id=p9\n" + noFiles
	for _, tt := range []struct{ words, want string }{
		{"rule remove ", rules},
		{"rule move ", rules},
		{"rule move 1 --to ", rules},
		{"rule add --before ", rules},
		{"rule remove -f /nonexistent ", noFiles},
		{"rule remove -f " + w.user + " ", rules},
		{"list-profiles ", "p9\tnine\n" + noFiles},
		{"close-channel ", noFiles},
		{"leak-test --udp ", "refuse\ndirect\n" + noFiles},
		{"disconnect-client ", noFiles},
	} {
		code, out, errs := w.ctl(append([]string{"__complete"}, strings.Split(tt.words, " ")...)...)
		if code != exitDone || out != tt.want {
			t.Errorf("%q: code %d, offers\n%swant\n%s%s", tt.words, code, out, tt.want, errs)
		}
	}
	for words, want := range map[string]string{"leak-test --probe ": "udp4\tUDP over IPv4\n", "doctor --check ": "clock\tlook at the clock\n"} {
		code, out, errs := w.ctl(append([]string{"__complete"}, strings.Split(words, " ")...)...)
		if code != exitDone || !strings.Contains(out, want) || !strings.HasSuffix(out, noFiles) {
			t.Errorf("%q: code %d, offers\n%s%s", words, code, out, errs)
		}
	}
	if found, _ := filepath.Glob(w.address + "*"); len(found) > 0 {
		t.Errorf("completing has left %v", found)
	}
}

// TestCompletionTables: each name in the tables is that of a command.
func TestCompletionTables(t *testing.T) {
	root := (&app{}).command()
	check := func(name string) {
		cmd, rest, err := root.Find(strings.Fields(name))
		if err != nil || len(rest) > 0 || cmd == root {
			t.Errorf("there is no command %q", name)
		}
	}
	for name := range completed {
		check(name)
	}
	for name := range completedOptions {
		check(name)
	}
}
