package sshtun

import (
	"log/slog"

	"sshbroker/profiles"
)

// Offered is what a connect with p offers: key exchanges, ciphers, MACs and host key
// algorithms, the most wanted first.
func Offered(p *profiles.Profile) ([4][]string, error) {
	a, err := choose(p, slog.New(slog.DiscardHandler))
	return [4][]string{a.kex, a.ciphers, a.macs, a.hostKeys}, err
}
