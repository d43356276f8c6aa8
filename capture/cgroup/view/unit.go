package view

import (
	"path"
	"slices"
	"strings"
)

// Unit names the systemd unit that a cgroup path is of: the last part that is one, or "".
func Unit(cgroup string) string {
	for _, part := range slices.Backward(strings.Split(cgroup, "/")) {
		name := strings.TrimPrefix(part, "_") // as cg_unescape of systemd
		if ext := path.Ext(name); ext != name && slices.Contains([]string{".service", ".scope", ".slice"}, ext) {
			return name
		}
	}
	return ""
}
