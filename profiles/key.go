package profiles

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
)

// Key tells profiles apart by everything that shapes their transport, the chain of
// gateways included. Two profiles of equal Key share a transport. It is a digest,
// as a password is among what it covers.
type Key [sha256.Size]byte

// MaxGateways is how many gateways a profile may be chained through.
const MaxGateways = 16

// Key returns the profile's key. ID and Name do not count.
func (p *Profile) Key() Key {
	// Of a variable size, so that it is not on the stack: flows call this, and what a
	// stack has grown to a flow keeps.
	b := make([]byte, 0, 256+len(p.Identities)*64)
	for hops := 0; p != nil && hops <= MaxGateways; hops++ {
		b = p.appendSettings(b)
		p = p.Gateway
	}
	return sha256.Sum256(b)
}

// Chain returns the profile and its gateways, nearest to the destination first. It
// fails with ErrSetup where there are too many, as a loop has.
func (p *Profile) Chain() ([]*Profile, error) {
	var chain []*Profile
	for q := p; q != nil; q = q.Gateway {
		if len(chain) > MaxGateways {
			return nil, fmt.Errorf("%w: more than %d gateways, or a loop of them", ErrSetup, MaxGateways)
		}
		chain = append(chain, q)
	}
	return chain, nil
}

// Label is the name by which messages call the profile.
func (p *Profile) Label() string {
	switch {
	case p.ID != "":
		return p.ID
	case p.Name != "":
		return p.Name
	case strings.Contains(p.Host, ":"):
		return fmt.Sprintf("%s@[%s]:%d", p.User, p.Host, p.Port)
	}
	return fmt.Sprintf("%s@%s:%d", p.User, p.Host, p.Port)
}

// appendSettings writes every field that matters with its length or in a fixed
// width, so that no two settings read alike.
func (p *Profile) appendSettings(b []byte) []byte {
	text := func(values ...string) {
		for _, v := range values {
			b = binary.AppendUvarint(b, uint64(len(v)))
			b = append(b, v...)
		}
	}
	list := func(lists ...[]string) {
		for _, l := range lists {
			b = binary.AppendUvarint(b, uint64(len(l)))
			text(l...)
		}
	}
	number := func(values ...uint64) {
		for _, v := range values {
			b = binary.AppendUvarint(b, v)
		}
	}
	flags := func(values ...bool) {
		for _, v := range values {
			if v {
				b = append(b, 1)
			} else {
				b = append(b, 0)
			}
		}
	}
	text(p.Host, p.User, p.Agent, p.PasswordText, p.PasswordFile, p.PasswordCmd,
		p.HostKeyFile, p.HostKeyText, p.StoreKnownHost, p.HostKeyAlias, p.Proxy, p.HTTPSProxy, p.NoProxy, p.ProxyCommand, p.ControlPath)
	list(p.Identities, p.DefaultKeys, p.SignWith, p.KeySelection.Issuers, p.KnownHosts, p.Ciphers, p.MACs, p.KEXs, p.HostKeyAlgorithms)
	number(uint64(p.Protocol))
	text(p.TLS.Certificate, p.TLS.Key, p.TLS.ServerName, p.TLS.Service)
	list(p.TLS.CAFiles)
	flags(p.TLS.SystemRoots, p.TLS.Proxy)
	flags(p.KeySelection.Shy, p.KeySelection.IssuerOfServer, p.PlainKeyNames)
	number(uint64(p.ServerProof), uint64(p.Remember.For), uint64(p.Remember.Idle), uint64(len(p.KeySelection.Types)), uint64(len(p.KeyStores)))
	for _, t := range p.KeySelection.Types {
		number(uint64(t))
	}
	for _, k := range p.KeyStores {
		text(k.File, k.Public, k.Index, k.Base, k.Dir, k.Unless)
		number(uint64(k.For), uint64(k.Idle))
	}
	number(uint64(p.Port), uint64(p.HostKeyPolicy), uint64(p.AddressFamily), p.RekeyBytes, uint64(p.ConnectTimeout),
		uint64(p.KeepaliveInterval), uint64(p.KeepaliveMisses), uint64(p.IdleTimeout), uint64(p.OpenTimeout), uint64(p.Transports),
		uint64(len(p.More)), uint64(len(p.AuthMethods)))
	for _, s := range p.More {
		text(s.Host)
		number(uint64(s.Port))
	}
	if p.Exclusive {
		number(1)
	}
	for _, m := range p.AuthMethods {
		number(uint64(m))
	}
	if p.CheckKeyModes {
		return append(b, 1)
	}
	return append(b, 0)
}
