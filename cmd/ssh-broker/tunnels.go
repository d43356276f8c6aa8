package main

import (
	"context"
	"log/slog"

	"sshbroker/profiles"
	"sshbroker/profiles/creds"
	"sshbroker/profiles/sshtun"
	"sshbroker/profiles/tlstun"
)

// tunnels are the kinds of tunnel that there are. What is asked of a connector of SSH
// alone, such as to show host keys, that of SSH answers.
type tunnels struct {
	*sshtun.Connector
	tls *tlstun.Connector
}

func newTunnels(log *slog.Logger, observe profiles.Observer, keys *creds.Keyring) tunnels {
	return tunnels{
		Connector: &sshtun.Connector{Log: log, Observe: observe, Keys: keys},
		tls:       &tlstun.Connector{Log: log, Observe: observe},
	}
}

// Connect is profiles.Connector's, by the profile's protocol.
func (t tunnels) Connect(ctx context.Context, p *profiles.Profile, via profiles.DialFunc, ask profiles.Prompter) (profiles.Transport, error) {
	if p.Protocol == profiles.TLS {
		return t.tls.Connect(ctx, p, via, ask)
	}
	return t.Connector.Connect(ctx, p, via, ask)
}
