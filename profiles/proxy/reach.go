package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"

	"sshbroker/profiles"
)

// Reach connects to a server of p at address: through its gateway, by via, which takes its
// proxy's place, else as its command or its ruleset says. dial may be nil. Errors are of
// the classes of profiles: that which the failure of a gateway or a proxy has, else
// ErrConnect. The caller closes the connection.
func Reach(ctx context.Context, dial, via profiles.DialFunc, p *profiles.Profile, address string) (net.Conn, error) {
	conn, err := reach(ctx, dial, via, p, address)
	if err != nil {
		return nil, dialFailure(ctx, address, err)
	}
	return conn, nil
}

func reach(ctx context.Context, dial, via profiles.DialFunc, p *profiles.Profile, address string) (net.Conn, error) {
	switch {
	case via != nil:
		return via(ctx, "tcp", address)
	case p.ProxyCommand != "":
		return Command(ctx, p.ProxyCommand)
	}
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	rules, err := Parse(p.Proxy)
	if err == nil && p.Proxy == "" {
		rules, err = Environment{HTTPSProxy: p.HTTPSProxy, NoProxy: p.NoProxy}.Ruleset(address)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", profiles.ErrSetup, err)
	}
	return Dialer{Dial: dial}.DialContext(ctx, rules, network(p.AddressFamily), address)
}

func network(f profiles.AddressFamily) string {
	switch f {
	case profiles.OnlyIPv4:
		return "tcp4"
	case profiles.OnlyIPv6:
		return "tcp6"
	}
	return "tcp"
}

// dialFailure keeps the class that a gateway's or a proxy's failure has.
func dialFailure(ctx context.Context, address string, err error) error {
	for _, class := range []error{profiles.ErrConnect, profiles.ErrHostKey, profiles.ErrAuth, profiles.ErrSetup, profiles.ErrClosed} {
		if errors.Is(err, class) {
			return fmt.Errorf("dial %s: %w", address, err)
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("dial %s: %w: %w", address, profiles.ErrConnect, context.Cause(ctx))
	}
	return fmt.Errorf("dial %s: %w: %w", address, profiles.ErrConnect, err)
}
