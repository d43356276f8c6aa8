package hostkeys

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles/keyfile"
)

// A directory of keys has a file for each server, which holds its public key in the
// form of RFC 4716, or as a line of OpenSSH. Its name is
//
//	key_PORT_HOST.pub     in the plain format, which is Tectia's too
//	key_h1_HEX.pub        in the hashed one: the HMAC-SHA-256 of "PORT HOST", the host in
//	                      lower case, with the content of the file salt_h1 as its key
//
// so that whoever reads the directory learns no names of servers from the second. Where
// both are there the hashed one counts. Tectia's own hashed files (keys_ and 40 digits)
// cannot be read, as nothing published says what is hashed; they are warned of.
const (
	saltName  = "salt_h1"
	saltBytes = 32
	maxKey    = 64 << 10
)

var tectiaHashed = regexp.MustCompile(`^keys_[0-9a-f]{40}$`)

// directory is one of them, as far as one server is concerned.
type directory struct {
	path string
	host string
	port uint16

	known ssh.PublicKey // nil where it has none
	file  string        // that holds it
}

// readDirectory looks up the key of a server. A directory that is not there has none;
// nor has one in whose place a file stands.
func readDirectory(path, host string, port uint16) (*directory, error) {
	d := &directory{path: path, host: host, port: port}
	if strings.ContainsAny(host, "/\x00") {
		return d, nil // an alias that is no part of a file's name
	}
	var names []string
	switch salt, err := os.ReadFile(filepath.Join(path, saltName)); {
	case err == nil:
		names = append(names, hashedName(salt, host, port))
	case !errors.Is(err, fs.ErrNotExist) && !isNotDir(err):
		return nil, err // what it hides may be another key
	}
	names = append(names, plainName(host, port))
	if lower := strings.ToLower(host); lower != host {
		names = append(names, plainName(lower, port))
	}
	entries, _ := os.ReadDir(path) // where it may not be listed, files in those two cases still count
	for _, e := range entries {
		if strings.EqualFold(e.Name(), plainName(host, port)) && !slices.Contains(names, e.Name()) {
			names = append(names, e.Name())
		}
	}
	for _, name := range names {
		file := filepath.Join(path, name)
		text, err := readSmall(file, maxKey)
		if errors.Is(err, fs.ErrNotExist) || isNotDir(err) {
			continue
		}
		if err == nil {
			d.known, _, err = keyfile.ParsePublic(text)
			d.file = file
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		return d, nil
	}
	return d, nil
}

// unreadable counts the files of a directory that are in Tectia's own hashed form.
func (d *directory) unreadable() int {
	entries, _ := os.ReadDir(d.path)
	n := 0
	for _, e := range entries {
		if tectiaHashed.MatchString(e.Name()) {
			n++
		}
	}
	return n
}

func plainName(host string, port uint16) string { return fmt.Sprintf("key_%d_%s.pub", port, host) }

func hashedName(salt []byte, host string, port uint16) string {
	mac := hmac.New(sha256.New, bytes.TrimSpace(salt))
	fmt.Fprintf(mac, "%d %s", port, strings.ToLower(host))
	return "key_h1_" + hex.EncodeToString(mac.Sum(nil)) + ".pub"
}

// errOccupied: a file stands where a directory of keys should be.
var errOccupied = errors.New("a file stands where the directory of keys should be")

// storeIn puts a key into a directory, in place of the one that file has, if that is
// not empty. It makes the directory where it is missing.
func storeIn(path, host string, port uint16, key ssh.PublicKey, plain bool, file string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		if isNotDir(err) || errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s: %w", path, errOccupied)
		}
		return err
	}
	switch {
	case file != "":
	case strings.ContainsAny(host, "/\x00"):
		return fmt.Errorf("host %q cannot be part of a file's name", host)
	case plain:
		file = filepath.Join(path, plainName(strings.ToLower(host), port))
	default:
		salt, err := saltOf(path)
		if err != nil {
			return err
		}
		file = filepath.Join(path, hashedName(salt, host, port))
		host = "" // the comment tells no name either
	}
	return replaceFile(file, keyfile.FormatRFC4716(key, host))
}

// saltOf returns the directory's salt and makes one where there is none. Of several
// that are made at once one stays.
func saltOf(path string) ([]byte, error) {
	file := filepath.Join(path, saltName)
	if salt, err := os.ReadFile(file); !errors.Is(err, fs.ErrNotExist) {
		return salt, err
	}
	fresh := make([]byte, saltBytes)
	rand.Read(fresh)
	temp, err := temporary(file, fmt.Appendf(nil, "%x\n", fresh))
	if err != nil {
		return nil, err
	}
	defer os.Remove(temp)
	if err := os.Link(temp, file); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return os.ReadFile(file)
}

// replaceFile writes a file whole or not at all.
func replaceFile(file string, text []byte) error {
	temp, err := temporary(file, text)
	if err != nil {
		return err
	}
	if err := os.Rename(temp, file); err != nil {
		os.Remove(temp)
		return err
	}
	return nil
}

// temporary writes text to a new file beside file, for those to read who may read the
// directory.
func temporary(file string, text []byte) (name string, err error) {
	f, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return "", err
	}
	_, err = f.Write(text)
	if st, serr := os.Stat(filepath.Dir(file)); serr == nil {
		err = errors.Join(err, f.Chmod(0o600|st.Mode().Perm()&0o044))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}
