package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"sshbroker/capture/netns"
)

// journal is the file of a capture's pseudo addresses. Its name has the inode of the
// network namespace, by which sweep knows whether the capture lives.
func (d *Daemon) journal(s *served) string {
	return filepath.Join(d.StateDir, fmt.Sprintf("ssh-broker-names-%s-%d", s.args.ID, s.manifest.NetNS))
}

// journalName also matches what a journal is replaced by, see names.Config.Journal.
var journalName = regexp.MustCompile(`^ssh-broker-names-[a-z0-9]{4,32}-([0-9]+)(\.new)?$`)

// sweep removes the journals of captures that ended while no broker was there to see
// it. A capture with a process in it keeps its own, however long nobody has served it:
// that process may still use an address, which must not lead to another name.
func (d *Daemon) sweep() {
	entries, err := os.ReadDir(d.StateDir)
	if err != nil {
		return
	}
	for _, entry := range entries {
		match := journalName.FindStringSubmatch(entry.Name())
		if match == nil || !entry.Type().IsRegular() {
			continue
		}
		inode, err := strconv.ParseUint(match[1], 10, 64)
		if err != nil {
			continue
		}
		if left, err := netns.Processes(netns.Manifest{NetNS: inode}); err != nil || len(left) > 0 {
			continue
		}
		file := filepath.Join(d.StateDir, entry.Name())
		if err := os.Remove(file); err != nil && !os.IsNotExist(err) {
			d.Log.Warn("journal of a capture that has ended", "file", file, "error", err)
		}
	}
}
