package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"sshbroker/capture/netns"
)

// journal is the file of a capture's pseudo addresses. Its name has the inode of the
// network namespace, by which sweep knows whether the capture lives, or cgroupJournal.
func (d *Daemon) journal(id, where string) string {
	return filepath.Join(d.StateDir, fmt.Sprintf("ssh-broker-names-%s-%s", id, where))
}

// cgroupJournal stands in names of journals for captures that ssh-captured knows.
const cgroupJournal = "cgroup"

// journalName also matches what a journal is replaced by, see names.Config.Journal.
var journalName = regexp.MustCompile(`^ssh-broker-names-([a-z0-9]{4,32})-([0-9]+|` + cgroupJournal + `)(\.new)?$`)

// sweep removes the journals of captures that ended while no broker was there to see
// it. A capture with a process in it keeps its own, however long nobody has served it:
// that process may still use an address, which must not lead to another name.
func (d *Daemon) sweep() {
	entries, err := os.ReadDir(d.StateDir)
	if err != nil {
		return
	}
	var known map[string]bool // captures of ssh-captured's; nil: not asked yet
	for _, entry := range entries {
		match := journalName.FindStringSubmatch(entry.Name())
		if match == nil || !entry.Type().IsRegular() {
			continue
		}
		if match[2] == cgroupJournal {
			if known == nil {
				known = d.knownCaptures()
			}
			if known[match[1]] || known[unknown] {
				continue
			}
		} else {
			inode, err := strconv.ParseUint(match[2], 10, 64)
			if err != nil {
				continue
			}
			if left, err := netns.Processes(netns.Manifest{NetNS: inode}); err != nil || len(left) > 0 {
				continue
			}
		}
		file := filepath.Join(d.StateDir, entry.Name())
		if err := os.Remove(file); err != nil && !os.IsNotExist(err) {
			d.Log.Warn("journal of a capture that has ended", "file", file, "error", err)
		}
	}
}

// unknown is no id: it stands for all of them where ssh-captured could not be asked.
const unknown = "*"

// knownCaptures are those that ssh-captured has.
func (d *Daemon) knownCaptures() map[string]bool {
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	status, err := d.captured.status(ctx)
	if err != nil {
		return map[string]bool{unknown: true}
	}
	known := map[string]bool{"": true} // not nil
	for _, c := range status.Captures {
		known[c.ID] = true
	}
	return known
}
