package view

import (
	"strings"
	"testing"
)

func TestUnit(t *testing.T) {
	for path, want := range map[string]string{
		"/":                           "",
		"":                            "",
		"/ssh-capture/1000-abc":       "",
		"/system.slice/nginx.service": "nginx.service",
		"/system.slice/docker-1.scope/inner/deeper":                          "docker-1.scope",
		"/user.slice/user-1000.slice/session-3.scope":                        "session-3.scope",
		"/user.slice/user-1000.slice":                                        "user-1000.slice",
		"/user.slice/u/user@1000.service/app.slice/app-x\\x2dy.service":      "app-x\\x2dy.service",
		"/system.slice/_cpu.service":                                         "cpu.service",
		"/system.slice/__x.service":                                          "_x.service",
		"/system.slice/.service":                                             "system.slice",
		"/system.slice/x.mount":                                              "system.slice",
		"/user.slice/user-1000.slice/ssh-capture-1000-abc.scope/cgroup.x/y/": "ssh-capture-1000-abc.scope",
	} {
		if got := Unit(path); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}

func FuzzUnit(f *testing.F) {
	f.Add("/user.slice/user-1000.slice/session-1.scope")
	f.Add("/_a.service (deleted)")
	f.Fuzz(func(t *testing.T, path string) {
		if unit := Unit(path); unit != "" && (strings.Contains(unit, "/") || !strings.Contains(path, unit)) {
			t.Errorf("unit %q of %q", unit, path)
		}
	})
}
