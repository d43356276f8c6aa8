package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/broker/config"
	"sshbroker/capture/probe"
	"sshbroker/capture/service"
)

// ahead is how far a file's time may be in the future, of a file system elsewhere say.
const ahead = 2 * time.Minute

func (v *visit) clock(context.Context) []Result {
	const cure = "set the clock: timedatectl set-ntp true, or chronyc makestep"
	now := v.Now()
	if !v.Built.IsZero() && now.Before(v.Built) {
		return failed(cure, "it is %s, and this program was made at %s: certificates and one-time passwords will not fit", stamp(now), stamp(v.Built))
	}
	for _, file := range v.ownFiles() {
		if st, err := os.Stat(file.path); err == nil && st.ModTime().After(now.Add(ahead)) {
			return failed(cure, "it is %s, and %s was written at %s: the clock is behind, or was ahead", stamp(now), file.path, stamp(st.ModTime()))
		}
	}
	synchronised, err := probe.Synchronised()
	switch {
	case err != nil:
		return unknown("%v", err)
	case !synchronised:
		return warning("start systemd-timesyncd or chrony; on a virtual machine the host may do it unseen", "it is %s; nothing is known to keep the clock right, and certificates are judged by it", stamp(now))
	}
	return fine("it is %s, and kept right", stamp(now))
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// ownFile is a file that we read or write.
type ownFile struct {
	path   string
	secret bool // nobody else is to read it
}

func (v *visit) ownFiles() (list []ownFile) {
	add := func(path string, secret bool) {
		if path != "" {
			list = append(list, ownFile{path, secret})
		}
	}
	add(v.Config.GlobalFile, false)
	add(v.Config.File, false)
	if !v.System && v.Config.Env.Home != "" {
		dir := v.Config.Env.UserDir()
		add(dir, false)
		if v.Config.File == "" {
			add(filepath.Join(dir, config.FileName), false)
		}
		add(filepath.Join(dir, "ssh-broker-audit.jsonl"), true)
	}
	if c, err := v.configured(); err == nil {
		for _, p := range c.Profiles {
			add(p.PasswordFile, true)
		}
	}
	return list
}

func (v *visit) files(context.Context) []Result {
	var list []Result
	count := 0
	seen := map[string]bool{}
	for _, f := range v.ownFiles() {
		if seen[f.path] {
			continue
		}
		seen[f.path] = true
		results, there := f.examine(v.Config.Env.UID)
		list = append(list, results...)
		if there {
			count++
		}
	}
	socket := v.Captured
	if socket == "" {
		socket = service.DefaultSocket
	}
	list = append(list, examineSocket(v.Address, v.Config.Env.UID)...)
	list = append(list, examineSocket(socket, 0)...)
	return or(list, "%d files and the sockets belong to whom they should", count)
}

// examine says what others than uid and root may do with the file.
func (f ownFile) examine(uid int) (list []Result, there bool) {
	var st unix.Stat_t
	err := unix.Stat(f.path, &st)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, false
	case err != nil:
		return unknown("%s: %v", f.path, err), false
	}
	chmod := "go-w"
	wide := st.Mode & 0o022
	if f.secret {
		chmod, wide = "go=", st.Mode&0o077
	}
	if wide != 0 {
		list = append(list, failed("chmod "+chmod+" "+f.path, "%s has mode %04o: others may %s it", f.path, st.Mode&0o7777, may(wide))...)
	}
	if st.Uid != 0 && int(st.Uid) != uid {
		list = append(list, failed(fmt.Sprintf("chown %d %s", uid, f.path), "%s belongs to uid %d, who may change it", f.path, st.Uid)...)
	}
	return list, true
}

func may(bits uint32) string {
	if bits&0o022 != 0 {
		return "change"
	}
	return "read"
}

// examineSocket: whoever may write to its directory could put another in its place.
func examineSocket(path string, uid int) []Result {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil // no program is there
	}
	if st.Uid != 0 && int(st.Uid) != uid {
		return failed("stop the program that has it; see ss -xlp", "the socket %s belongs to uid %d", path, st.Uid)
	}
	dir := filepath.Dir(path)
	if err := unix.Stat(dir, &st); err != nil {
		return unknown("%s: %v", dir, err)
	}
	const sticky = unix.S_ISVTX
	if st.Mode&0o022 != 0 && st.Mode&sticky == 0 || st.Uid != 0 && int(st.Uid) != uid {
		return failed("chmod go-w "+dir+", and see whose it is", "the directory %s of a socket of ours has mode %04o and belongs to uid %d: others could answer in its place", dir, st.Mode&0o7777, st.Uid)
	}
	return nil
}
