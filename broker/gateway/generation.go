package gateway

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/broker/gateway/gwconfig"
	"sshbroker/broker/gateway/limit"
	"sshbroker/broker/gateway/policy"
	"sshbroker/broker/gateway/trust"
)

// generation is one configuration with what its files held. It does not change.
type generation struct {
	number uint64
	config *gwconfig.Config
	trust  *trust.Trust
	certs  []tls.Certificate
	files  map[string]fileState

	byName      map[string]*policy.Service
	bySNI       map[string]*policy.Service
	byPort      map[uint16]*policy.Service
	collections []*policy.Service // where the client names the destination, as in the file
}

func newGeneration(number uint64, cfg *gwconfig.Config) (*generation, error) {
	gen := &generation{
		number: number, config: cfg,
		byName: map[string]*policy.Service{}, bySNI: map[string]*policy.Service{}, byPort: map[uint16]*policy.Service{},
	}
	gen.files = statAll(gen.fileNames()) // before they are read: what changes after it is seen
	var errs []error
	for _, pair := range cfg.Certificates {
		cert, err := tls.LoadX509KeyPair(pair.Certificate, pair.Key)
		if err != nil {
			errs = append(errs, fmt.Errorf("the gateway's certificate %s with the key %s: %w", pair.Certificate, pair.Key, err))
		}
		gen.certs = append(gen.certs, cert)
	}
	var err error
	if gen.trust, err = trust.Load(cfg.ClientCAs, cfg.CRLs); err != nil {
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
			gen.collections = append(gen.collections, s)
		}
	}
	return gen, nil
}

// fileNames are the files beside the configuration that count.
func (gen *generation) fileNames() []string {
	names := slices.Concat(gen.config.ClientCAs, gen.config.CRLs)
	for _, pair := range gen.config.Certificates {
		names = append(names, pair.Certificate, pair.Key)
	}
	return names
}

// addresses are those to listen at: the gateway's, and with the same hosts the ports of
// services that have one.
func (gen *generation) addresses() []netip.AddrPort {
	all := slices.Clone(gen.config.Listen)
	for _, s := range gen.config.Services {
		for _, l := range gen.config.Listen {
			if addr := netip.AddrPortFrom(l.Addr(), s.Port); s.Port != 0 && !slices.Contains(all, addr) {
				all = append(all, addr)
			}
		}
	}
	return all
}

// expiry is when what this generation stands on ends.
func (gen *generation) expiry() map[string]time.Time {
	all := map[string]time.Time{"revocation-list": gen.trust.NextUpdate()}
	for _, cert := range gen.certs {
		if first := all["certificate"]; first.IsZero() || cert.Leaf.NotAfter.Before(first) {
			all["certificate"] = cert.Leaf.NotAfter
		}
	}
	return all
}

// limitsOf reads them off a configuration, and the system's bound on descriptors.
func limitsOf(cfg *gwconfig.Config) limit.Limits {
	l := &cfg.Limits
	return limit.Limits{
		Descriptors: descriptors(l.Reserve), Handshakes: l.Handshakes,
		Connections: l.Connections, IdentityConnections: l.FlowsPerIdentity, // many a connection is one flow
		Flows: l.Flows, IdentityFlows: l.FlowsPerIdentity, IdentityRate: l.ConnectsPerSecond,
	}
}

// descriptors is how many are there for clients, when reserve of them are for all else.
func descriptors(reserve int) int {
	var most unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &most) != nil {
		return math.MaxInt32
	}
	return int(min(most.Cur, math.MaxInt32)) - reserve
}
