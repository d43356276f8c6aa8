package hostkeys

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
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
}

// readFiles loads them. The library gives up on a whole file for one line that it
// does not understand, where OpenSSH passes over the line (a key type of the future
// is enough). So such a file is shown to it with those lines empty, in memory.
func readFiles(list []string, log *slog.Logger) (*files, error) {
	known := &files{names: make(map[string]string)}
	var paths []string
	for _, file := range list {
		text, err := readSmall(file, maxKnownHosts)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
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
		paths = append(paths, path)
	}
	var err error
	known.db, err = knownhosts.NewDB(paths...)
	return known, err
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
	for _, k := range f.db.HostKeys(server) {
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
