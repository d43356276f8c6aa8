package tlstun

import (
	"crypto/tls"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"sshbroker/profiles"
	"sshbroker/profiles/certfile"
	"sshbroker/profiles/creds"
)

// sessionsKept is how many sessions of TLS are kept for being resumed, a credential.
const sessionsKept = 32

// credential is what a profile's files held when they were read: our certificate and whom
// we trust. It is not changed afterwards, but for stamps.
type credential struct {
	*certfile.Files
	sessions tls.ClientSessionCache
	stamps   []stamp // guarded by the lock of credentials
}

// stamp tells whether a file is another one or was written to.
type stamp struct {
	device, inode uint64
	size          int64
	modified      time.Time
}

// credentials are those that were read, by profile.
type credentials struct {
	mu   sync.Mutex
	kept map[profiles.Key]*credential
}

// maxKept bounds the credentials that are remembered.
const maxKept = 256

// get returns p's credential, which it reads again only where a file has changed. Its
// errors are ErrSetup.
func (c *credentials) get(p *profiles.Profile) (*credential, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := (&profiles.Profile{TLS: p.TLS, CheckKeyModes: p.CheckKeyModes}).Key()
	stamps, err := stampsOf(p)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", profiles.ErrSetup, err)
	}
	kept := c.kept[key]
	if kept != nil && slices.Equal(kept.stamps, stamps) {
		return kept, nil
	}
	// A file that changes from here on has another stamp next time.
	fresh, err := read(p)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", profiles.ErrSetup, err)
	}
	if kept != nil && kept.Sum == fresh.Sum { // touched, no more
		kept.stamps = stamps
		return kept, nil
	}
	fresh.stamps = stamps
	if c.kept == nil || len(c.kept) >= maxKept {
		c.kept = make(map[profiles.Key]*credential)
	}
	c.kept[key] = fresh
	return fresh, nil
}

func namesOf(p *profiles.Profile) certfile.Names {
	return certfile.Names{Authorities: p.TLS.CAFiles, System: p.TLS.SystemRoots, Certificate: p.TLS.Certificate, Key: p.TLS.Key}
}

func stampsOf(p *profiles.Profile) ([]stamp, error) {
	var stamps []stamp
	files := slices.Clone(p.TLS.CAFiles)
	if p.TLS.Certificate != "" {
		files = append(files, p.TLS.Certificate, p.TLS.Key)
	}
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		s := stamp{size: info.Size(), modified: info.ModTime()}
		if sys, ok := info.Sys().(*syscall.Stat_t); ok {
			s.device, s.inode = uint64(sys.Dev), sys.Ino
		}
		stamps = append(stamps, s)
	}
	return stamps, nil
}

// read reads p's files.
func read(p *profiles.Profile) (*credential, error) {
	if p.TLS.Key != "" {
		if err := creds.CheckPrivate(p.TLS.Key, p.CheckKeyModes); err != nil {
			return nil, err
		}
	}
	files, err := certfile.Load(namesOf(p))
	if err != nil {
		return nil, err
	}
	return &credential{Files: files, sessions: tls.NewLRUClientSessionCache(sessionsKept)}, nil
}

// config is how TLS is spoken with the credential.
func (c *credential) config(p *profiles.Profile, protocol string) *tls.Config {
	name := p.TLS.ServerName
	if name == "" {
		name = p.Host
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: name,
		RootCAs:    c.Roots,
		NextProtos: []string{protocol},
		// Whatever authorities the server lists: why it refuses ours says more than that
		// there is none.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if c.Certificate == nil {
				return &tls.Certificate{}, nil
			}
			return c.Certificate, nil
		},
		ClientSessionCache: c.sessions,
		// Records are as large as they may be from the first on: flows share a connection
		// that is not new.
		DynamicRecordSizingDisabled: true,
	}
}
