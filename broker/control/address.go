package control

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// EnvAddress names the broker's socket where no option does; ssh-broker-g3(1).
const EnvAddress = "SSH_SECSH_BROKER"

// SystemAddress is where the broker of a whole host listens.
const SystemAddress = "/run/ssh-broker-system/broker"

// Address is the path of the broker's socket: option (-a) if it is given, else
// SSH_SECSH_BROKER, else /run/user/UID/ssh-broker/broker where /run/user/UID is
// ours, else /tmp/ssh-USER/ssh-broker. It makes nothing; [Listen] does. A directory
// at one of the last two places that somebody else could write to is an error.
func Address(option string, getenv func(string) string) (string, error) {
	return systemPlaces().address(option, getenv)
}

// places is where the address is looked for.
type places struct {
	run, tmp string // /run/user and /tmp
	uid      int
	login    string
}

func systemPlaces() places {
	uid := os.Geteuid()
	login := strconv.Itoa(uid)
	// The name of the account, not $USER: anybody can set that.
	if u, err := user.LookupId(login); err == nil && u.Username != "" && !strings.ContainsAny(u.Username, "/\x00") {
		login = u.Username
	}
	return places{run: "/run/user", tmp: "/tmp", uid: uid, login: login}
}

func (p places) runDir() string { return filepath.Join(p.run, strconv.Itoa(p.uid), "ssh-broker") }
func (p places) tmpDir() string { return filepath.Join(p.tmp, "ssh-"+p.login) }

// private says that dir is one of ours: made if missing, and nobody else's business.
func (p places) private(dir string) bool { return dir == p.runDir() || dir == p.tmpDir() }

func (p places) address(option string, getenv func(string) string) (string, error) {
	given, from := option, "-a"
	if given == "" {
		given, from = getenv(EnvAddress), EnvAddress
	}
	if given != "" {
		path, err := checkPath(given)
		if err != nil {
			return "", fmt.Errorf("broker address %q (%s): %w", given, from, err)
		}
		return path, nil
	}
	dir, name := p.tmpDir(), "ssh-broker"
	if p.ownsRun() {
		dir, name = p.runDir(), "broker"
	}
	path, err := checkPath(filepath.Join(dir, name))
	if err != nil {
		return "", fmt.Errorf("broker address: %w", err)
	}
	fd, err := p.openDir(dir, false)
	switch {
	case errors.Is(err, fs.ErrNotExist): // no broker has been here yet
	case err != nil:
		return "", fmt.Errorf("broker address: %w", err)
	default:
		unix.Close(fd)
	}
	return path, nil
}

// ownsRun says whether /run/user/UID can be trusted with the socket. It is looked
// at whether or not XDG_RUNTIME_DIR is set: cron and su do not set it, and their
// programs are to find the same broker.
func (p places) ownsRun() bool {
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(p.run, strconv.Itoa(p.uid)), &st); err != nil {
		return false
	}
	return st.Mode&unix.S_IFMT == unix.S_IFDIR && int(st.Uid) == p.uid && st.Mode&0o777 == 0o700
}

// maxPath is the room for a path in sockaddr_un, with its final zero; unix(7).
const maxPath = 107

func checkPath(path string) (string, error) {
	if path[0] == '@' {
		return "", errors.New("an abstract socket has no owner and no mode, so it is not supported")
	}
	if strings.ContainsAny(path, "\x00\n") {
		return "", errors.New("not a path")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if len(path) > maxPath {
		return "", fmt.Errorf("%d bytes, a socket's path has at most %d", len(path), maxPath)
	}
	return path, nil
}

// openDir opens the directory of the socket and checks that nobody else can put
// something else in the socket's place. A private directory is made if create is
// set, and must be ours with mode 0700. Another one, chosen with -a, must belong to
// us or to root and must not be writable by others unless it is sticky.
// The caller closes the descriptor.
func (p places) openDir(dir string, create bool) (int, error) {
	private := p.private(dir)
	made := false
	if private && create {
		var err error
		if made, err = p.makeDir(dir); err != nil {
			return -1, err
		}
	}
	fd, err := openNoFollow(dir, private)
	if err != nil {
		return -1, err
	}
	if err := p.checkDir(fd, dir, private, made); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (p places) makeDir(dir string) (made bool, err error) {
	switch err := os.Mkdir(dir, 0o700); {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrExist):
		return false, nil
	default:
		return false, err
	}
}

// openNoFollow opens dir; where noLink is set, a symbolic link there is refused.
func openNoFollow(dir string, noLink bool) (int, error) {
	parent, err := unix.Open(filepath.Dir(dir), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: filepath.Dir(dir), Err: err}
	}
	defer unix.Close(parent)
	name := filepath.Base(dir)
	if name == "/" {
		name = "."
	}
	flags := unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NONBLOCK
	if noLink {
		flags |= unix.O_NOFOLLOW
	}
	fd, err := unix.Openat(parent, name, flags, 0)
	if err == nil {
		return fd, nil
	}
	if noLink && (err == unix.ENOTDIR || err == unix.ELOOP) {
		var st unix.Stat_t
		if unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return -1, fmt.Errorf("%s is a symbolic link (made by %s); remove it", dir, accountName(st.Uid))
		}
		return -1, fmt.Errorf("%s is in the way: not a directory", dir)
	}
	if err == unix.EACCES {
		var st unix.Stat_t
		if unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			return -1, fmt.Errorf("%s belongs to %s and cannot be opened: %w", dir, accountName(st.Uid), err)
		}
	}
	return -1, &fs.PathError{Op: "open", Path: dir, Err: err}
}

func (p places) checkDir(fd int, dir string, private, made bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	mode := st.Mode & 0o7777
	if private {
		switch {
		case int(st.Uid) != p.uid:
			return fmt.Errorf("%s belongs to %s, not to us; have it removed, or choose another address with -a", dir, accountName(st.Uid))
		case made && mode&0o777 != 0o700: // a strange umask
			return os.NewSyscallError("fchmod", unix.Fchmod(fd, 0o700))
		case mode&0o777 != 0o700:
			return fmt.Errorf("%s has mode %04o, must be 0700: chmod 700 %s", dir, mode, dir)
		}
		return nil
	}
	if int(st.Uid) != p.uid && st.Uid != 0 {
		return fmt.Errorf("directory %s belongs to %s, who could replace the broker's socket", dir, accountName(st.Uid))
	}
	if mode&0o022 != 0 && mode&unix.S_ISVTX == 0 {
		return fmt.Errorf("directory %s has mode %04o: others could replace the broker's socket", dir, mode)
	}
	return nil
}

// accountName is "user mallory", or "uid 1007" where it has no name.
func accountName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return "user " + u.Username
	}
	return "uid " + id
}
