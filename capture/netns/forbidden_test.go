package netns

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestForbiddenNamesTheSwitch(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		err   error
		want  string // part of the switch
		cure  string // part of the cure
		plain bool   // not explained
	}{
		{"user namespaces limited", map[string]string{"proc/sys/user/max_user_namespaces": "0\n"}, unix.ENOSPC,
			"user.max_user_namespaces=0", "sysctl -w user.max_user_namespaces", false},
		{"net namespaces limited", map[string]string{"proc/sys/user/max_user_namespaces": "9\n", "proc/sys/user/max_net_namespaces": "0\n"},
			unix.ENOSPC, "user.max_net_namespaces=0", "sysctl -w user.max_net_namespaces", false},
		{"used up", nil, unix.ENOSPC, "limit on the number", "raise", false},
		{"Debian's switch", map[string]string{"proc/sys/kernel/unprivileged_userns_clone": "0\n"}, unix.EPERM,
			"kernel.unprivileged_userns_clone=0", "unprivileged_userns_clone=1", false},
		{"AppArmor", map[string]string{"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}, unix.EACCES,
			"AppArmor", "apparmor_parser", false},
		{"Docker", map[string]string{".dockerenv": ""}, unix.EPERM, "Docker container", "--cap-add", false},
		{"other container", map[string]string{"run/systemd/container": "lxc\n"}, unix.EPERM, "lxc container", "--cap-add", false},
		{"seccomp", map[string]string{"proc/self/status": "Name:\tx\nSeccomp:\t2\n"}, unix.EPERM, "seccomp", "outside", false},
		{"root without CAP_SETFCAP", map[string]string{".dockerenv": "", "proc/self/status": "Uid:\t0\t0\t0\t0\nCapEff:\t0000000000000000\n"}, unix.EPERM,
			"CAP_SETFCAP", "--cap-add SETFCAP", false},
		{"root with it", map[string]string{".dockerenv": "", "proc/self/status": "Uid:\t0\t0\t0\t0\nCapEff:\t00000000a80425fb\n"}, unix.EPERM,
			"Docker container", "--cap-add", false},
		{"unknown", nil, unix.EPERM, "", "", true},
		{"other error", map[string]string{".dockerenv": ""}, unix.ENOMEM, "", "", true},
	} {
		root := t.TempDir() + "/"
		for name, content := range c.files {
			path := filepath.Join(root, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		err := machine{root}.explain(c.err, true)
		var f *ForbiddenError
		switch {
		case !errors.Is(err, c.err):
			t.Errorf("%s: %v does not wrap %v", c.name, err, c.err)
		case errors.As(err, &f) == c.plain:
			t.Errorf("%s: %v", c.name, err)
		case f != nil && (!strings.Contains(f.Switch, c.want) || !strings.Contains(f.Cure, c.cure)):
			t.Errorf("%s: switch %q, cure %q", c.name, f.Switch, f.Cure)
		}
	}
}
