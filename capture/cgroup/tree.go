package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrNone means that the cgroup2 hierarchy, as this process's cgroup namespace has it,
// is not mounted.
var ErrNone = errors.New("no cgroup2 hierarchy is mounted")

// Tree is the cgroup2 hierarchy. It is safe for concurrent use.
type Tree struct {
	Mount string // where it is mounted

	systemd bool
	mu      sync.Mutex // of making and removing the directory above leaves of our own
}

// Find returns the cgroup2 hierarchy of this machine, or ErrNone.
func Find() (*Tree, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroup2: %w", err)
	}
	for _, point := range cgroup2Mounts(string(b)) {
		var s unix.Statfs_t
		if unix.Statfs(point, &s) == nil && s.Type == unix.CGROUP2_SUPER_MAGIC { // nothing is mounted over it
			_, err := os.Stat("/run/systemd/system") // sd_booted(3)
			return &Tree{Mount: point, systemd: err == nil}, nil
		}
	}
	return nil, ErrNone
}

// cgroup2Mounts finds the mounts of the whole hierarchy in /proc/PID/mountinfo, proc(5).
// With another root, depth would not be the level that rules count.
func cgroup2Mounts(mountinfo string) (points []string) {
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		if i := slices.Index(f, "-"); i >= 6 && i+1 < len(f) && f[i+1] == "cgroup2" && f[3] == "/" {
			points = append(points, f[4])
		}
	}
	return points
}

var (
	validID  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)
	leafName = regexp.MustCompile(`^(?:ssh-capture-)?([0-9]+)-(.+?)(?:\.scope)?$`)
)

// leaf is the one of that name, whether it exists or not.
func (t *Tree) leaf(uid uint32, id string) *Leaf {
	l := &Leaf{ID: id, UID: uid, tree: t, settled: func() {}}
	if t.systemd {
		l.Path = filepath.Join(t.Mount, "user.slice", l.slice(), fmt.Sprintf("ssh-capture-%d-%s.scope", uid, id))
	} else {
		l.Path = filepath.Join(t.Mount, "ssh-capture", fmt.Sprintf("%d-%s", uid, id))
	}
	return l
}

// Make makes the leaf of a new capture of uid's. Under systemd it waits for PID 1, until
// ctx ends. Where there is one already it fails. The caller removes it.
func (t *Tree) Make(ctx context.Context, uid uint32, id string) (*Leaf, error) {
	if !validID.MatchString(id) {
		return nil, fmt.Errorf("make cgroup: bad id %q", id)
	}
	l := t.leaf(uid, id)
	make := l.makeDirectory
	if t.systemd {
		make = l.startScope
	}
	err := make(ctx)
	if err == nil {
		err = l.identify()
	}
	if err != nil {
		l.settled()
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	return l, nil
}

func (l *Leaf) makeDirectory(context.Context) error {
	l.tree.mu.Lock()
	defer l.tree.mu.Unlock()
	parent := filepath.Dir(l.Path)
	if err := os.Mkdir(parent, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Mkdir(l.Path, 0o755); err != nil {
		return err
	}
	// Whatever the umask is: its user watches it.
	return errors.Join(os.Chmod(parent, 0o755), os.Chmod(l.Path, 0o755))
}

// Leaves returns the leaves that exist, whoever made them.
func (t *Tree) Leaves() (leaves []*Leaf, err error) {
	paths, err := filepath.Glob(filepath.Join(t.Mount, "ssh-capture", "*"))
	if t.systemd {
		paths, err = filepath.Glob(filepath.Join(t.Mount, "user.slice", "*", "ssh-capture-*"))
	}
	for _, path := range paths {
		m := leafName.FindStringSubmatch(filepath.Base(path))
		if m == nil || !validID.MatchString(m[2]) {
			continue
		}
		uid, uerr := strconv.ParseUint(m[1], 10, 32)
		l := t.leaf(uint32(uid), m[2])
		if uerr != nil || l.Path != path {
			continue
		}
		if ierr := l.identify(); ierr == nil {
			leaves = append(leaves, l)
		} else if !errors.Is(ierr, fs.ErrNotExist) {
			err = errors.Join(err, ierr)
		}
	}
	return leaves, err
}
