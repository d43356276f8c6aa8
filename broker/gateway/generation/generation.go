package generation

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"sshbroker/broker/gateway/gwconfig"
	"sshbroker/broker/gateway/policy"
	"sshbroker/broker/gateway/trust"
)

// Generation is one configuration with what its files held. It does not change; safe for
// concurrent use.
type Generation struct {
	Number uint64
	Config *gwconfig.Config
	Trust  *trust.Trust

	// Collections are the services for which the client names the destination, in the
	// order of the file.
	Collections []*policy.Service

	certs []tls.Certificate
	files Files

	byName map[string]*policy.Service
	bySNI  map[string]*policy.Service
	byPort map[uint16]*policy.Service
}

// New reads the files of a configuration. An error tells of all that cannot be used.
func New(number uint64, cfg *gwconfig.Config) (*Generation, error) {
	gen := &Generation{
		Number: number, Config: cfg,
		byName: map[string]*policy.Service{}, bySNI: map[string]*policy.Service{}, byPort: map[uint16]*policy.Service{},
	}
	gen.files = gen.Look() // before they are read: what changes after it is seen
	var errs []error
	for _, pair := range cfg.Certificates {
		cert, err := tls.LoadX509KeyPair(pair.Certificate, pair.Key)
		if err != nil {
			errs = append(errs, fmt.Errorf("the gateway's certificate %s with the key %s: %w", pair.Certificate, pair.Key, err))
		}
		gen.certs = append(gen.certs, cert)
	}
	var err error
	if gen.Trust, err = trust.Load(cfg.ClientCAs, cfg.CRLs); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for _, s := range cfg.Services {
		gen.byName[s.Name] = s
		for _, name := range s.ServerNames {
			gen.bySNI[name] = s
		}
		if s.Port != 0 {
			gen.byPort[s.Port] = s
		}
		if s.Backend.HTTPConnect {
			gen.Collections = append(gen.Collections, s)
		}
	}
	return gen, nil
}

// fileNames are the files beside the configuration that count.
func (gen *Generation) fileNames() []string {
	names := slices.Concat(gen.Config.ClientCAs, gen.Config.CRLs)
	for _, pair := range gen.Config.Certificates {
		names = append(names, pair.Certificate, pair.Key)
	}
	return names
}

// Addresses are those to listen at: the gateway's, and with the same hosts the ports of
// services that have one.
func (gen *Generation) Addresses() []netip.AddrPort {
	all := slices.Clone(gen.Config.Listen)
	for _, s := range gen.Config.Services {
		for _, l := range gen.Config.Listen {
			if addr := netip.AddrPortFrom(l.Addr(), s.Port); s.Port != 0 && !slices.Contains(all, addr) {
				all = append(all, addr)
			}
		}
	}
	return all
}

// Expiry is when what this generation stands on ends.
func (gen *Generation) Expiry() map[string]time.Time {
	all := map[string]time.Time{"revocation-list": gen.Trust.NextUpdate()}
	for _, cert := range gen.certs {
		if first := all["certificate"]; first.IsZero() || cert.Leaf.NotAfter.Before(first) {
			all["certificate"] = cert.Leaf.NotAfter
		}
	}
	return all
}

// Service finds one by its name, nil where there is none.
func (gen *Generation) Service(name string) *policy.Service { return gen.byName[name] }

// Admits says whether an identity may use a service, or where none is chosen, any.
func (gen *Generation) Admits(s *policy.Service, id *policy.Identity) policy.Verdict {
	if s != nil {
		return s.Admit(id)
	}
	verdict := policy.Verdict{Reason: policy.NoPolicy, Detail: "there is no service"}
	for _, s := range gen.Config.Services {
		if verdict = s.Admit(id); verdict.Allowed() {
			return verdict
		}
	}
	return verdict
}

// Files tell one content of files from another, as far as that can be seen from outside.
type Files map[string]fileState

type fileState struct {
	size, mtime int64
	dev, ino    uint64
}

// Files are those that were read.
func (gen *Generation) Files() Files { return gen.files }

// Look is Files as they are now.
func (gen *Generation) Look() Files {
	names := gen.fileNames()
	all := make(Files, len(names))
	for _, name := range names {
		var st syscall.Stat_t
		if info, err := os.Stat(name); err == nil {
			st = *info.Sys().(*syscall.Stat_t)
		}
		all[name] = fileState{st.Size, st.Mtim.Nano(), uint64(st.Dev), st.Ino}
	}
	return all
}
