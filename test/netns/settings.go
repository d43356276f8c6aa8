package netns

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addRouting lists the routes and policy rules of the machines. Those of link-local
// addresses come and go with duplicate address detection.
func (s Snapshot) addRouting(t testing.TB, n *Net, _ []stray) {
	for _, m := range n.machines() {
		err := m.onThread(func() error {
			for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
				rules, err := netlink.RuleList(family)
				if err != nil {
					return err
				}
				for _, r := range rules {
					s.add("policy rule of %s, family %d: %s mark %#x/%#x table %d", m.Name, family, r, r.Mark, mask(r.Mask), r.Table)
				}
				routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
				if err != nil {
					return err
				}
				for _, r := range routes {
					text := r.String()
					if !strings.Contains(text, "fe80:") && !strings.Contains(text, "ff00:") {
						s.add("route of %s: %s", m.Name, text)
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatalf("routes of %s: %v", m.Name, err)
		}
	}
}

func mask(m *uint32) uint32 {
	if m == nil {
		return 0
	}
	return *m
}

// addSettings lists the kernel parameters of the machines that programs could change.
func (s Snapshot) addSettings(t testing.TB, n *Net, _ []stray) {
	for _, m := range n.machines() {
		err := m.onThread(func() error {
			for _, dir := range []string{"/proc/sys/net/ipv4", "/proc/sys/net/ipv6"} {
				err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
					switch {
					case errors.Is(err, fs.ErrNotExist): // went with its interface
						return nil
					case err != nil || entry.IsDir() && entry.Name() != "neigh":
						return err
					case entry.IsDir():
						return filepath.SkipDir
					}
					value, err := os.ReadFile(path)
					if err == nil { // some can only be written, or not be read yet
						s.add("%s of %s: %s", path, m.Name, strings.TrimSpace(string(value)))
					}
					return nil
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatalf("settings of %s: %v", m.Name, err)
		}
	}
}
