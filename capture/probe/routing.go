package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"sshbroker/capture"
)

// Policy is a routing policy that goes by marks, as those of VPNs do.
type Policy struct {
	Family int // unix.AF_INET or AF_INET6
	Text   string
	// Overlaps says that it looks at bits of ours, or wants them: what a capture writes there
	// could change its answer.
	Overlaps bool
}

// Policies lists them in the current network namespace. It takes no privilege.
func Policies() ([]Policy, error) {
	var list []Policy
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := netlink.RuleList(family)
		if err != nil {
			return nil, fmt.Errorf("routing policies: %w", err)
		}
		for _, r := range rules {
			if r.Mark == 0 && r.Mask == nil {
				continue
			}
			mask := ^uint32(0)
			if r.Mask != nil {
				mask = *r.Mask
			}
			name := "ip rule"
			if family == netlink.FAMILY_V6 {
				name = "ip -6 rule"
			}
			not := ""
			if r.Invert {
				not = "not "
			}
			list = append(list, Policy{Family: family, Overlaps: overlaps(r.Mark, mask),
				Text: fmt.Sprintf("%s: %d: %sfwmark %#x/%#x lookup %d", name, r.Priority, not, r.Mark, mask, r.Table)})
		}
	}
	return list, nil
}

// overlaps: a rule without a mask is about one mark, which has none of our bits, and our
// bits are taken off before a packet is routed by what is left of its mark.
func overlaps(mark, mask uint32) bool {
	return mark&capture.MarkMask != 0 || mask != ^uint32(0) && mask&capture.MarkMask != 0
}

// StrictPaths are the devices that drop packets which they would not send an answer by, and
// that do not take the packet's mark into account (rp_filter, src_valid_mark). sys is
// "/proc/sys", but for tests.
func StrictPaths(sys string) ([]string, error) {
	conf := filepath.Join(sys, "net/ipv4/conf")
	entries, err := os.ReadDir(conf)
	if err != nil {
		return nil, fmt.Errorf("reverse path filters: %w", err)
	}
	read := func(device, name string) (int, error) { return number(filepath.Join(conf, device, name)) }
	all, err := read("all", "rp_filter")
	if err != nil {
		return nil, fmt.Errorf("reverse path filters: %w", err)
	}
	marks, err := read("all", "src_valid_mark")
	if err != nil {
		return nil, fmt.Errorf("reverse path filters: %w", err)
	}
	var list []string
	for _, e := range entries {
		device := e.Name()
		if device == "all" || device == "default" || device == "lo" {
			continue
		}
		own, err := read(device, "rp_filter")
		ownMarks, merr := read(device, "src_valid_mark")
		if errors.Is(err, fs.ErrNotExist) || errors.Is(merr, fs.ErrNotExist) {
			continue // the device has gone
		}
		if err = errors.Join(err, merr); err != nil {
			return nil, fmt.Errorf("reverse path filters: %w", err)
		}
		if max(all, own) == 1 && marks == 0 && ownMarks == 0 { // the larger one counts; ip-sysctl.rst
			list = append(list, device)
		}
	}
	slices.Sort(list)
	return list, nil
}

// Tracked is how many connections are tracked, and how many can be. ok is false where
// connection tracking is not loaded, or not shown here.
func Tracked(sys string) (count, most int, ok bool, err error) {
	dir := filepath.Join(sys, "net/netfilter")
	count, err = number(filepath.Join(dir, "nf_conntrack_count"))
	if err == nil {
		most, err = number(filepath.Join(dir, "nf_conntrack_max"))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, false, nil
	}
	if err != nil {
		return 0, 0, false, fmt.Errorf("connection tracking: %w", err)
	}
	return count, most, true, nil
}

func number(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}
