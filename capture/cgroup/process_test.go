package cgroup

import (
	"slices"
	"strings"
	"testing"
)

func TestCgroup2Mounts(t *testing.T) {
	const old = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n" +
		"32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:3 - cgroup cgroup rw,cpu\n"
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"hybrid", old + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n", []string{"/sys/fs/cgroup/unified"}},
		{"unified", "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 master:1 - cgroup2 cgroup2 rw,nsdelegate\n", []string{"/sys/fs/cgroup"}},
		{"no optional field", "35 24 0:30 / /a rw - cgroup2 none rw", []string{"/a"}},
		{"version 1 only", old, nil},
		{"outside of the namespace", "35 24 0:30 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", nil},
		{"a part of it", "35 24 0:30 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", nil},
		{"pretence", "35 24 0:30 / /home/u/- rw - fuse.cgroup2 cgroup2 rw\n35 24 0:30 / /x", nil},
	} {
		if got := cgroup2Mounts(c.text); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestParseCgroup(t *testing.T) {
	for text, want := range map[string]string{
		"0::/user.slice/user-1000.slice/session-1.scope\n":  "/user.slice/user-1000.slice/session-1.scope",
		"1:name=systemd:/a.service\n0::/b:c.scope\n":        "/b:c.scope",
		"0::/\n9:cpu,cpuacct:/x\n1:name=systemd:/a.service": "/a.service",
		"1:name=systemd:/a.service\n0::/\n":                 "/a.service",
		"0::/gone (deleted)\n":                              "/gone",
		"0::/\n":                                            "/",
		"":                                                  "/",
		"0:\n0::relative\n":                                 "/",
	} {
		if got := parseCgroup(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// FuzzText shows that no text of /proc brings more out than it should.
func FuzzText(f *testing.F) {
	f.Add("41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n")
	f.Add("0::/user.slice/user-1000.slice/session-1.scope\n")
	f.Add("1:name=systemd:/_a.service (deleted)\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, point := range cgroup2Mounts(text) {
			if point == "" {
				t.Error("a mount nowhere")
			}
		}
		path := parseCgroup(text)
		if !strings.HasPrefix(path, "/") || strings.Contains(path, "\n") {
			t.Errorf("path %q", path)
		}
	})
}
