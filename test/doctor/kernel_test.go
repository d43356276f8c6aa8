package doctor

import (
	"slices"
	"strings"
	"testing"

	"sshbroker/broker/doctor"
	"sshbroker/capture/service"
	"sshbroker/test/netns"
)

const ofKernel = "namespaces,packet-queue,table-owner,cgroups"

// TestForbidden: each switch that forbids namespaces is named, with its cure, and what
// cannot be tried then is unknown.
func TestForbidden(t *testing.T) {
	h := bare(t)
	examine(t, h, h.Alice, ofKernel).well(t)
	examine(t, h, nil, ofKernel).well(t)
	for _, setting := range []string{"user.max_user_namespaces", "user.max_net_namespaces", "user.max_mnt_namespaces"} {
		path := "/proc/sys/" + strings.Replace(setting, ".", "/", 1)
		words := []string{"unshare", "--user", "--map-root-user", "--mount", "sh", "-c", "echo 0 >" + path + `; exec "$@"`, "sh"}
		if setting == "user.max_user_namespaces" {
			words = append(words, "setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
		}
		f := read(t, h.Client.Run(t, h.Cmd(h.Alice, append(words, h.Ctl, "doctor", "-s", "--check", ofKernel+",namespace")...)))
		f.says(t, "namespaces", doctor.Failed, setting+"=0", "as root: sysctl -w "+setting+"=10000")
		f.says(t, "namespace", doctor.Skipped, "see the check namespaces")
		if setting == "user.max_mnt_namespaces" {
			continue // the rest takes none of those
		}
		for _, check := range []string{"packet-queue", "table-owner", "cgroups"} {
			f.says(t, check, doctor.Unknown, setting)
		}
	}
	f := read(t, h.Client.Run(t, h.Cmd(h.Alice, h.Testprog, "sandbox", h.Ctl, "doctor", "-s", "--check", ofKernel)))
	f.says(t, "namespaces", doctor.Failed, "namespaces are forbidden here by", "operation not permitted")
	f.says(t, "packet-queue", doctor.Unknown, "seccomp")
}

// TestNoCgroups: the hierarchy is not mounted.
func TestNoCgroups(t *testing.T) {
	h := bare(t)
	words := []string{"unshare", "--mount", "sh", "-c", `grep -q cgroup2 /proc/self/mountinfo || exit 9; awk '/ - cgroup2 /{print $5}' /proc/self/mountinfo | while read at; do umount -l "$at"; done; exec "$@"`, "sh"}
	f := read(t, h.Client.Run(t, h.Cmd(nil, append(words, h.Ctl, "doctor", "-s", "--check", "cgroups")...)))
	f.says(t, "cgroups", doctor.Warning, "no cgroup2 hierarchy is mounted", "mount -t cgroup2")
}

// TestNothingIsChanged: whoever runs it, and whatever runs, all is as it was.
func TestNothingIsChanged(t *testing.T) {
	h := bare(t)
	before := h.Snapshot(t)
	h.StartCaptured(t)
	wire := h.Client.Capture(t, "to-server")
	for _, u := range []*netns.User{nil, h.Alice} {
		r := h.Run(t, u, h.Ctl, "doctor")
		if r.Code != 0 {
			t.Errorf("%v", r)
		}
	}
	h.Await(t, "no capture", func(st service.Status) bool { return len(st.Captures) == 0 }) // it looks after what is left
	h.StopCaptured(t)
	h.RequireRestored(t, before, patience)
	if got := wire.Packets(t, func(p netns.Packet) bool { return p.Dst.Port() != 0 }); len(got) > 0 {
		t.Errorf("on the wire: %v", got)
	}
}

// TestTable is how people see it: in colours on a terminal that wants them.
func TestTable(t *testing.T) {
	h := bare(t)
	h.Alice.Write(t, ".ssh2/ssh-broker-config.xml", "<secsh-broker", 0o600)
	args := []string{h.Ctl, "doctor", "--check", "configuration,broker"}
	r := h.Run(t, h.Alice, args...)
	want := "STATUS        CHECK             WHAT\nFAILED        configuration     "
	if r.Code != 1 || !strings.HasPrefix(r.Stdout, want) || !strings.Contains(r.Stdout, "\n    cure: ") ||
		!strings.HasSuffix(r.Stdout, "\nskipped       broker            no broker is running; ssh-capture starts one by itself\n1 failed, 0 warnings, 0 unknown\n") {
		t.Errorf("%v", r)
	}
	const red = "\x1b[31mFAILED\x1b[0m        configuration"
	for _, c := range []struct {
		env     []string
		colours bool
	}{{nil, true}, {[]string{"NO_COLOR=1"}, false}, {[]string{"TERM=dumb"}, false}} {
		cmd := h.Cmd(h.Alice, args...)
		cmd.TTY, cmd.Env = window, append(slices.Clone(cmd.Env), c.env...)
		if r := h.Client.Run(t, cmd); strings.Contains(r.Stdout, red) != c.colours || strings.Contains(r.Stdout, "\x1b") != c.colours {
			t.Errorf("%v: %v", c.env, r)
		}
	}
	for _, args := range [][]string{{"--check", "x"}, {"x"}} {
		if r := h.Run(t, h.Alice, append([]string{h.Ctl, "doctor"}, args...)...); r.Code != 2 || r.Stderr == "" {
			t.Errorf("%v: %v", args, r)
		}
	}
}
