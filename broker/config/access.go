package config

import (
	"fmt"
	"io/fs"
	"syscall"

	"sshbroker/broker/config/schema"
)

// access is what file-access-control asks for, by the table of ssh-broker-config(5):
//
//	global      user        checked
//	yes         yes, absent the global file, the user's, private keys
//	yes         no          the global file, the user's
//	no, absent  yes         the user's file, private keys
//	no, absent  no, absent  nothing
type access struct{ global, user, keys bool }

// accessOf reads it off the files, each of which may be nil.
func accessOf(global, user *file) access {
	said := func(f *file) (on, given bool) {
		if f == nil || f.general.access == nil {
			return false, false
		}
		return *f.general.access, true
	}
	byGlobal, _ := said(global)
	byUser, given := said(user)
	return access{global: byGlobal, user: byGlobal || byUser, keys: byUser || byGlobal && !given}
}

// checkAccess refuses files that more people may write, or read, than
// file-access-control lets them.
func (m *merged) checkAccess(env Env, global, user *file) {
	a := accessOf(global, user)
	m.checkKeys = a.keys
	if a.global && global != nil {
		// Readable by all, writable by owner and group.
		global.checkMode(env, 0o002, "others may write it", "chmod o-w")
	}
	if a.user && user != nil {
		user.checkMode(env, 0o077, "others may read or write it", "chmod 600")
	}
}

// checkMode reports a file with one of the bits of tooWide, or of an owner who is
// neither root nor the user.
func (f *file) checkMode(env Env, tooWide fs.FileMode, what, cure string) {
	if f.info == nil {
		return
	}
	at := Pos{File: f.name}
	if mode := f.info.Mode().Perm(); mode&tooWide != 0 {
		f.Fail(at, "", cure+" "+f.name, "the file has the mode %04o: %s, and file-access-control is on", mode, what)
	}
	if owner, ok := ownerOf(f.info); ok && owner != 0 && int(owner) != env.UID {
		f.Fail(at, "", "chown "+cureOwner(env)+" "+f.name, "the file belongs to uid %d, and file-access-control is on", owner)
	}
}

func cureOwner(env Env) string {
	if env.User != "" {
		return env.User
	}
	return fmt.Sprint(env.UID)
}

func ownerOf(info fs.FileInfo) (uid uint32, ok bool) {
	sys, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return sys.Uid, true
}

// fileAccessControl reads the switch; nil where it is bad.
func (r *reader) fileAccessControl(n *schema.Node) *bool {
	on, ok := n.Get("enable")
	if !ok {
		return nil
	}
	yes := on == "yes"
	return &yes
}
