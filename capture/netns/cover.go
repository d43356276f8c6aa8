package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Where lookups could go round the capture: the sockets of caching daemons.
var lookupSockets = []string{"/run/nscd", "/run/systemd/resolve", "/run/systemd/machines", "/run/avahi-daemon"}

// scratchPlaces are directories that may be covered for a moment while the private
// files are made; each exists on nearly every system.
var scratchPlaces = []string{"/mnt", "/media", "/srv", "/opt", "/tmp"}

const hostsFile = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"

// cover lays private files over those by which lookups would go round the capture,
// or which programs refuse because their owner has no name in the user namespace.
// It changes nothing that a process outside can see.
func cover(allNames, userNS bool) error {
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount namespace: make / a slave: %w", err)
	}
	scratch, err := mountScratch()
	if err != nil {
		return err
	}
	// The files live on in their bind mounts.
	defer unix.Unmount(scratch, unix.MNT_DETACH)

	resolv := resolvConf(allNames)
	for _, dir := range lookupSockets {
		if err := coverDirectory(dir, scratch, resolv); err != nil {
			return err
		}
	}
	for _, f := range []struct{ path, content string }{
		{"/etc/resolv.conf", resolv},
		{"/etc/hosts", hostsFile},
	} {
		if err := coverFile(f.path, scratch, []byte(f.content)); err != nil {
			return err
		}
	}
	if userNS {
		return coverSSHConfig(scratch)
	}
	return nil
}

func mountScratch() (string, error) {
	var errs []error
	for _, dir := range scratchPlaces {
		err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755,size=4m")
		if err == nil {
			return dir, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", dir, err))
	}
	return "", fmt.Errorf("mount namespace: no place for private files: %w", errors.Join(errs...))
}

// coverFile binds a file with that content over path, where path exists.
func coverFile(path, scratch string, content []byte) error {
	target, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cover %s: %w", path, err)
	}
	private := filepath.Join(scratch, strings.ReplaceAll(strings.TrimPrefix(path, "/"), "/", "_"))
	if err := os.WriteFile(private, content, 0o644); err != nil {
		return fmt.Errorf("cover %s: %w", path, err)
	}
	if err := unix.Mount(private, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("cover %s: bind over %s: %w", path, target, err)
	}
	return nil
}

// coverDirectory binds an empty directory over dir, where dir exists; a resolv.conf
// that lives there is replaced, as /etc/resolv.conf may point to it.
func coverDirectory(dir, scratch, resolv string) error {
	names, err := filepath.Glob(filepath.Join(dir, "*resolv.conf"))
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir); err != nil {
		return nil
	}
	private := filepath.Join(scratch, strings.ReplaceAll(strings.TrimPrefix(dir, "/"), "/", "_"))
	if err := os.Mkdir(private, 0o755); err != nil {
		return fmt.Errorf("cover %s: %w", dir, err)
	}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(private, filepath.Base(name)), []byte(resolv), 0o644); err != nil {
			return fmt.Errorf("cover %s: %w", dir, err)
		}
	}
	if err := unix.Mount(private, dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("cover %s: %w", dir, err)
	}
	return nil
}

// coverSSHConfig gives ssh its system-wide configuration as files of the user's own:
// root's would show as nobody's, and ssh refuses those.
func coverSSHConfig(scratch string) error {
	const dir = "/etc/ssh"
	private := filepath.Join(scratch, "ssh_config.d")
	parts, err := filepath.Glob(filepath.Join(dir, "ssh_config.d", "*"))
	if err != nil {
		return err
	}
	if err := os.Mkdir(private, 0o755); err != nil {
		return fmt.Errorf("cover %s: %w", dir, err)
	}
	for _, part := range parts {
		content, err := os.ReadFile(part)
		if err != nil {
			continue // unreadable outside, so unread inside
		}
		if err := os.WriteFile(filepath.Join(private, filepath.Base(part)), content, 0o644); err != nil {
			return fmt.Errorf("cover %s: %w", part, err)
		}
	}
	if len(parts) > 0 {
		if err := unix.Mount(private, filepath.Join(dir, "ssh_config.d"), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover %s/ssh_config.d: %w", dir, err)
		}
	}
	main := filepath.Join(dir, "ssh_config")
	content, err := os.ReadFile(main)
	if err != nil {
		return nil
	}
	return coverFile(main, scratch, content)
}

// resolvConf is the host's file with one name server in place of its own: whatever
// is asked on port 53 reaches the broker. With allNames there is no search list, as
// names mean something at the far end only.
func resolvConf(allNames bool) string {
	const server = "nameserver 127.0.0.53\n"
	if allNames {
		// The root as search list: without one it comes from the host's own name.
		return server + "search .\noptions ndots:1\n"
	}
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return server
	}
	var out strings.Builder
	out.WriteString(server)
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line) // spaces or tabs, resolv.conf(5)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "search", "domain", "options", "sortlist":
			out.WriteString(strings.Join(fields, " ") + "\n")
		}
	}
	return out.String()
}
