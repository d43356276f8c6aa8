package hostkeys

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
	xknownhosts "golang.org/x/crypto/ssh/knownhosts"
	"golang.org/x/sys/unix"
)

// maxKnownHosts bounds what is read from one file.
const maxKnownHosts = 64 << 20

// files are OpenSSH files that count as one.
type files struct {
	db    *knownhosts.HostKeyDB
	names map[string]string // path as read -> path as the profile has it

	patterns map[string]bool // of path as read:line: whether that is for more than one name
}

// readFiles loads them. The library gives up on a whole file for one line that it
// does not understand, where OpenSSH passes over the line (a key type of the future
// is enough). So such a file is shown to it with those lines empty, in memory.
func readFiles(list []string, log *slog.Logger) (*files, error) {
	known := &files{names: make(map[string]string), patterns: make(map[string]bool)}
	var paths []string
	for _, file := range list {
		text, err := readSmall(file, maxKnownHosts)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		text, patterns := folded(text)
		memory, err := inMemory(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		defer memory.Close()
		if _, err := knownhosts.New(path(memory)); err != nil {
			clean, skipped, err := understood(text)
			if err != nil {
				return nil, fmt.Errorf("%s:%w", file, err)
			}
			for _, s := range skipped {
				log.Warn("line of known hosts passed over", "file", file, "line", s.line, "error", s.err)
			}
			if memory, err = inMemory(clean); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			defer memory.Close()
		}
		path := path(memory)
		known.names[path] = file
		for _, line := range patterns {
			known.patterns[fmt.Sprintf("%s:%d", path, line)] = true
		}
		paths = append(paths, path)
	}
	var err error
	known.db, err = knownhosts.NewDB(paths...)
	return known, err
}

// folded returns text with the names of servers in lower case, as names are compared
// without regard to case and the library does regard it, and the numbers of the lines
// with a pattern.
func folded(text []byte) (out []byte, patterns []int) {
	out = make([]byte, 0, len(text))
	n := 0
	for line := range bytes.Lines(text) {
		n++
		rest := bytes.TrimLeft(line, " \t")
		if len(rest) > 0 && rest[0] == '@' {
			_, after := word(rest)
			rest = bytes.TrimLeft(after, " \t")
		}
		out = append(out, line[:len(line)-len(rest)]...)
		names, after := word(rest)
		if !bytes.HasPrefix(names, []byte("|")) { // hashed
			names = bytes.ToLower(names)
		}
		if bytes.ContainsAny(names, "*?") {
			patterns = append(patterns, n)
		}
		out = append(append(out, names...), after...)
	}
	return out, patterns
}

// word cuts the first word off a line.
func word(line []byte) (first, rest []byte) {
	if i := bytes.IndexAny(line, " \t"); i >= 0 {
		return line[:i], line[i:]
	}
	return line, nil
}

// judge says what the files have on key, as the library does: nil, a KeyError or a
// RevokedError, among others. Where nothing is there for another port than 22 it looks
// at what is on file for that too, for which the library forgets the brackets of IPv6.
func (f *files) judge(server string, remote net.Addr, key ssh.PublicKey) error {
	look := f.db.HostKeyCallback()
	err := look(server, unnamed{remote}, key)
	var other *xknownhosts.KeyError
	var revoked *xknownhosts.RevokedError
	standard := atPort22(server)
	if err == nil || errors.As(err, &other) || errors.As(err, &revoked) || server == standard || !strings.HasPrefix(server, "[") {
		return err
	}
	err = look(standard, unnamed{remote}, key)
	if !errors.As(err, &other) {
		return err
	}
	// A key of port 22 alone is another server's; a pattern is for all ports.
	fit := new(xknownhosts.KeyError)
	for _, w := range other.Want {
		if f.patterns[fmt.Sprintf("%s:%d", w.Filename, w.Line)] {
			fit.Want = append(fit.Want, w)
		}
	}
	return fit
}

// atPort22 returns the address of the same host at the standard port.
func atPort22(server string) string {
	host, _, err := net.SplitHostPort(server)
	if err != nil {
		return server
	}
	return net.JoinHostPort(host, "22")
}

func (f *files) place(k xknownhosts.KnownKey) string {
	return fmt.Sprintf("%s:%d", f.file(k.Filename), k.Line)
}

func (f *files) file(read string) string {
	if name, ok := f.names[read]; ok {
		return name
	}
	return read
}

// isAuthority tells whether key is on file as a certification authority of the
// server and not as a key of its own. The library does not tell them apart when it
// compares plain keys.
func (f *files) isAuthority(server string, key ssh.PublicKey) bool {
	authority := false
	for _, k := range slices.Concat(f.db.HostKeys(server), f.db.HostKeys(atPort22(server))) { // see judge
		if bytes.Equal(k.Marshal(), key.Marshal()) {
			if !k.Cert {
				return false
			}
			authority = true
		}
	}
	return authority
}

func isNotDir(err error) bool { return errors.Is(err, syscall.ENOTDIR) }

func readSmall(name string, most int) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if st.IsDir() {
		return nil, fmt.Errorf("%s: is a directory", name)
	}
	text, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err == nil && len(text) > most {
		err = fmt.Errorf("%s: larger than %d bytes", name, most)
	}
	return text, err
}

// path is where a file without a name can be opened by name.
func path(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// inMemory returns a file of its own that has no name in any file system.
func inMemory(text []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("known_hosts", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "known_hosts")
	if _, err := f.Write(text); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

type badLine struct {
	line int
	err  error
}

// understood returns text with every line emptied that cannot be used, and which
// those are. A revocation that cannot be read is an error: dropping it would trust
// what somebody took back.
func understood(text []byte) (clean []byte, skipped []badLine, err error) {
	var out bytes.Buffer
	n := 0
	for line := range bytes.Lines(text) {
		n++
		trimmed := bytes.TrimSpace(line)
		if len(trimmed) > 0 && trimmed[0] != '#' {
			if err := usable(trimmed); err != nil {
				if bytes.HasPrefix(trimmed, []byte("@revoked")) {
					return nil, nil, fmt.Errorf("%d: revocation that cannot be understood: %w", n, err)
				}
				skipped = append(skipped, badLine{n, err})
				trimmed = nil
			}
		}
		out.Write(trimmed)
		out.WriteByte('\n')
	}
	return out.Bytes(), skipped, nil
}

// usable tells whether the library will take a line of known hosts.
func usable(line []byte) error {
	// Its scanner stops the whole file at longer lines.
	if len(line) > 60<<10 {
		return errors.New("line too long")
	}
	f, err := inMemory(append(bytes.Clone(line), '\n'))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := knownhosts.New(path(f)); err != nil {
		return stripPlace(err)
	}
	return nil
}

// stripPlace takes the library's own file and line off its message.
func stripPlace(err error) error {
	if _, rest, ok := strings.Cut(err.Error(), ":1: "); ok {
		return errors.New(rest)
	}
	return err
}

// Append adds one line to a known_hosts file in one write under a lock, makes the
// file (0600) and its directory (0700) where they are missing, and ends an
// unfinished last line first.
func Append(file, line string) error {
	if strings.ContainsAny(line, "\n\r") {
		return fmt.Errorf("%s: line with a line end in it", file)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("%s: lock: %w", file, err)
	}
	if st, err := f.Stat(); err != nil {
		return err
	} else if st.Size() > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, st.Size()-1); err != nil {
			return err
		}
		if last[0] != '\n' {
			line = "\n" + line
		}
	}
	if _, err := f.WriteString(line + "\n"); err != nil {
		return err
	}
	return f.Close()
}
