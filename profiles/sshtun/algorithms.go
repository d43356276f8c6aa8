package sshtun

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
)

// algorithms are the lists to offer, most wanted first.
type algorithms struct {
	kex, ciphers, macs, hostKeys []string
}

// choose takes what the profile lists as far as the library knows it. The library's
// weak algorithms are used where the profile asks for them by name, never else.
func choose(p *profiles.Profile, log *slog.Logger) (algorithms, error) {
	good, weak := ssh.SupportedAlgorithms(), ssh.InsecureAlgorithms()
	slices.SortStableFunc(good.HostKeys, func(a, b string) int { return hostKeyRank(a) - hostKeyRank(b) })
	var a algorithms
	for _, part := range []struct {
		what       string
		asked      []string
		good, weak []string
		into       *[]string
	}{
		{"key exchange", p.KEXs, good.KeyExchanges, weak.KeyExchanges, &a.kex},
		{"cipher", p.Ciphers, good.Ciphers, weak.Ciphers, &a.ciphers},
		{"MAC", p.MACs, good.MACs, weak.MACs, &a.macs},
		{"host key algorithm", p.HostKeyAlgorithms, good.HostKeys, weak.HostKeys, &a.hostKeys},
	} {
		if len(part.asked) == 0 {
			*part.into = part.good
			continue
		}
		var unknown []string
		for _, name := range part.asked {
			if slices.Contains(part.good, name) || slices.Contains(part.weak, name) {
				*part.into = append(*part.into, name)
			} else {
				unknown = append(unknown, name)
			}
		}
		if len(*part.into) == 0 {
			return a, fmt.Errorf("%w: no %s of %s can be used; there are %s", profiles.ErrSetup, part.what,
				strings.Join(part.asked, ","), strings.Join(part.good, ","))
		}
		if len(unknown) > 0 {
			log.Info("algorithms of the profile passed over", "kind", part.what, "names", strings.Join(unknown, ","))
		}
	}
	return a, nil
}

// hostKeyRank has a new server show the key that OpenSSH's client would ask about too,
// so that people compare the fingerprint that they have.
func hostKeyRank(algorithm string) int {
	for rank, prefix := range []string{"ssh-ed25519", "ecdsa-", "rsa-sha2-512", "rsa-sha2-256"} {
		if strings.HasPrefix(algorithm, prefix) {
			return rank
		}
	}
	return 4
}
