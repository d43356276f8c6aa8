package ca

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/broker/replace"
)

// Files of an authority's directory.
const (
	certFile  = "ca.crt"    // may be given to everybody
	keyFile   = "ca.key"    // to nobody
	listFile  = "crl.pem"   // what is revoked; to everybody
	indexFile = "index.txt" // what was issued
	lockFile  = "lock"
)

// CertificateFile, ListFile and IndexFile are where an authority's directory has them.
func CertificateFile(dir string) string { return inDir(dir, certFile) }
func ListFile(dir string) string        { return inDir(dir, listFile) }
func IndexFile(dir string) string       { return inDir(dir, indexFile) }

func inDir(dir, name string) string { return filepath.Join(dir, name) }

var (
	// ErrNoAuthority says that a directory is not that of an authority.
	ErrNoAuthority = errors.New("there is no certificate authority")
	// ErrBusy says that another process works with the authority.
	ErrBusy = errors.New("another ssh-gateway ca is at work there")
	// ErrExists says that there is something where an authority was to be made.
	ErrExists = errors.New("it exists and is not empty")
	// ErrExposed says that others can reach the key.
	ErrExposed = errors.New("others than its owner can get at it")
)

func noAuthority(dir string) error { return fmt.Errorf("%s: %w", dir, ErrNoAuthority) }

// Authority is an Issuer with its directory.
type Authority struct {
	*Issuer
	dir   string
	index *index
	lock  *os.File
}

// Create makes the directory of a new authority, whole or not at all, with an empty list
// that is due at a time. With a passphrase the key is under it. The directory may exist
// if it is empty.
func Create(dir string, o AuthorityOptions, key crypto.Signer, passphrase []byte, now, due time.Time) (err error) {
	cert, err := newAuthority(o, key)
	if err != nil {
		return err
	}
	keyText, err := keyPEM(key, passphrase)
	if err != nil {
		return err
	}
	dir = filepath.Clean(dir)
	made, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".new-") // 0700
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(made))
		}
	}()
	for _, f := range []struct {
		name string
		text []byte
		mode fs.FileMode
	}{{keyFile, keyText, 0o600}, {certFile, CertificatePEM(cert), 0o644}, {indexFile, []byte(indexHead), 0o600}, {lockFile, nil, 0o600}} {
		if err := replace.Make(inDir(made, f.name), f.text, f.mode, false); err != nil {
			return err
		}
	}
	a, err := Open(made, func() ([]byte, error) { return passphrase, nil })
	if err != nil {
		return err
	}
	_, err = a.WriteList(now, due)
	if err := errors.Join(err, a.Close()); err != nil {
		return err
	}
	// rename(2) takes the place of an empty directory, and of nothing else; os.Rename of none.
	if err := unix.Rename(made, dir); errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("%s: %w", dir, ErrExists)
	} else if err != nil {
		return fmt.Errorf("rename %s: %w", dir, err)
	}
	return nil
}

func keyPEM(key crypto.Signer, passphrase []byte) ([]byte, error) {
	if len(passphrase) == 0 {
		return KeyPEM(key)
	}
	return lockedKeyPEM(key, passphrase)
}

// Open locks the authority of a directory until it is closed. The function is asked for
// the passphrase if the key has one.
func Open(dir string, passphrase func() ([]byte, error)) (*Authority, error) {
	if err := private(dir, fs.ModeDir); errors.Is(err, fs.ErrNotExist) {
		return nil, noAuthority(dir)
	} else if err != nil {
		return nil, err
	}
	cert, err := ReadAuthority(dir) // before a lock is made where there is none
	if err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(inDir(dir, lockFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	a := &Authority{dir: dir, lock: lock}
	if err := a.read(cert, passphrase); err != nil {
		lock.Close()
		return nil, err
	}
	return a, nil
}

func (a *Authority) read(cert *x509.Certificate, passphrase func() ([]byte, error)) error {
	if err := unix.Flock(int(a.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%s: %w", a.dir, ErrBusy)
	} else if err != nil {
		return fmt.Errorf("lock %s: %w", a.lock.Name(), err)
	}
	keyName := inDir(a.dir, keyFile)
	if err := private(keyName, 0); err != nil {
		return err
	}
	keyText, err := os.ReadFile(keyName)
	if err != nil {
		return err
	}
	if a.index, err = readIndex(inDir(a.dir, indexFile)); err != nil {
		return err
	}
	key, err := readKey(keyText, passphrase)
	if err != nil {
		return fmt.Errorf("%s: %w", keyName, err)
	}
	if a.Issuer, err = NewIssuer(cert, key); err != nil {
		return fmt.Errorf("%s: %w", a.dir, err)
	}
	return nil
}

// ReadAuthority reads the certificate of an authority's directory.
func ReadAuthority(dir string) (*x509.Certificate, error) {
	name := inDir(dir, certFile)
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noAuthority(dir)
	}
	if err != nil {
		return nil, err
	}
	cert, err := ReadCertificate(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return cert, nil
}

// private refuses a file or a directory that is another user's, or that others may enter,
// read or write.
func private(name string, kind fs.FileMode) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	switch s := info.Sys().(*syscall.Stat_t); {
	case info.Mode().Type() != kind:
		return fmt.Errorf("%s is not what it should be, but %v", name, info.Mode())
	case int(s.Uid) != os.Geteuid():
		return fmt.Errorf("%s: %w: it belongs to uid %d, and this process is uid %d", name, ErrExposed, s.Uid, os.Geteuid())
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%s: %w: its mode is %04o", name, ErrExposed, info.Mode().Perm())
	}
	return nil
}

// IssueClient makes a client certificate and notes it, before anybody has it.
func (a *Authority) IssueClient(c Client, key crypto.PublicKey, v Validity) (*x509.Certificate, error) {
	cert, err := a.Client(c, key, v)
	if err != nil {
		return nil, err
	}
	return a.noted(cert, ForClient, c.labels())
}

// IssueServer makes a server certificate and notes it, before anybody has it.
func (a *Authority) IssueServer(s Server, key crypto.PublicKey, v Validity) (*x509.Certificate, error) {
	cert, err := a.Server(s, key, v)
	if err != nil {
		return nil, err
	}
	return a.noted(cert, ForServer, s.labels())
}

func (a *Authority) noted(cert *x509.Certificate, kind Kind, names []string) (*x509.Certificate, error) {
	e := Entry{Serial: SerialOf(cert.SerialNumber), Kind: kind, Validity: Validity{cert.NotBefore, cert.NotAfter}, Names: names}
	if err := a.index.add(e.issued()...); err != nil {
		return nil, fmt.Errorf("note the certificate, which is given to nobody: %w", err)
	}
	return cert, nil
}

// Close ends the lock.
func (a *Authority) Close() error { return a.lock.Close() }
