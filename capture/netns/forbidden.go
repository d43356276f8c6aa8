package netns

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ForbiddenError says that this machine does not let the caller make namespaces:
// which switch forbids it, and the one cure.
type ForbiddenError struct {
	Switch string
	Cure   string
	Err    error
}

func (e *ForbiddenError) Error() string {
	return fmt.Sprintf("namespaces are forbidden here by %s (%v)", e.Switch, e.Err)
}
func (e *ForbiddenError) Unwrap() error { return e.Err }

// machine is where forbidden looks; a test puts files of its own there.
type machine struct{ root string }

// forbidden explains an error of making the namespaces, or returns it as it is.
func forbidden(err error, userNS bool) error { return machine{"/"}.explain(err, userNS) }

func (m machine) explain(err error, userNS bool) error {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	if sw, cure := m.culprit(err, userNS); sw != "" {
		return &ForbiddenError{sw, cure, err}
	}
	return err
}

func (m machine) culprit(err error, userNS bool) (sw, cure string) {
	if errors.Is(err, unix.ENOSPC) {
		for _, name := range []string{"max_user_namespaces", "max_net_namespaces", "max_mnt_namespaces"} {
			if m.sysctl("user/"+name) == "0" {
				return "the sysctl user." + name + "=0", "as root: sysctl -w user." + name + "=10000"
			}
		}
		return "a limit on the number of namespaces (user.max_*_namespaces)",
			"as root: sysctl user.max_user_namespaces user.max_net_namespaces, and raise the one that is used up"
	}
	switch {
	case userNS && m.rootWithoutSetfcap():
		return "the kernel, as root lacks CAP_SETFCAP here and may not stand for itself in a user namespace",
			"run ssh-capture as an ordinary user, or start the container with --cap-add SETFCAP"
	case m.sysctl("kernel/unprivileged_userns_clone") == "0":
		return "the sysctl kernel.unprivileged_userns_clone=0", "as root: sysctl -w kernel.unprivileged_userns_clone=1"
	case m.sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
		return "AppArmor (kernel.apparmor_restrict_unprivileged_userns=1)",
			"as root: install etc/apparmor.d/ssh-capture into /etc/apparmor.d and run apparmor_parser -r /etc/apparmor.d/ssh-capture"
	case m.container() != "":
		return "the " + m.container() + " container that this runs in",
			"start the container with --cap-add SYS_ADMIN --cap-add NET_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
	case userNS && m.seccomp():
		return "a seccomp filter on this process", "run ssh-capture outside of the sandbox that filters its system calls"
	}
	return "", ""
}

func (m machine) sysctl(name string) string {
	b, err := os.ReadFile(m.root + "proc/sys/" + name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (m machine) container() string {
	for _, c := range []struct{ file, name string }{
		{".dockerenv", "Docker"}, {"run/.containerenv", "Podman"},
		{"var/run/secrets/kubernetes.io", "Kubernetes"},
	} {
		if _, err := os.Stat(m.root + c.file); err == nil {
			return c.name
		}
	}
	if b, err := os.ReadFile(m.root + "run/systemd/container"); err == nil {
		return strings.TrimSpace(string(b))
	}
	return ""
}

// rootWithoutSetfcap: since Linux 5.12 only who has that capability may map uid 0.
func (m machine) rootWithoutSetfcap() bool {
	b, err := os.ReadFile(m.root + "proc/self/status")
	if err != nil {
		return false
	}
	root, capabilities := false, ^uint64(0)
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 2:
		case fields[0] == "Uid:" && len(fields) > 2:
			root = fields[2] == "0" // the effective one
		case fields[0] == "CapEff:":
			if n, err := strconv.ParseUint(fields[1], 16, 64); err == nil {
				capabilities = n
			}
		}
	}
	return root && capabilities&(1<<unix.CAP_SETFCAP) == 0
}

func (m machine) seccomp() bool {
	b, err := os.ReadFile(m.root + "proc/self/status")
	return err == nil && strings.Contains(string(b), "\nSeccomp:\t2")
}
