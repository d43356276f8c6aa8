package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"

	"sshbroker/profiles"
)

// talkTime is how long a proxy may take from the first byte to its answer, which is
// when it has reached the server; a context that ends earlier counts as well.
const talkTime = time.Minute

// lookupTime is how long a name may take that a condition on addresses asks for.
const lookupTime = 5 * time.Second

// Dialer reaches servers as rulesets say.
type Dialer struct {
	// Dial opens the connections of this host; required.
	Dial profiles.DialFunc
	// Lookup resolves names, for conditions on addresses and for SOCKS4; nil: the
	// system's resolver.
	Lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// DialContext opens a connection to address, host:port, by the first rule of set that
// covers it. A name that a condition on addresses is held against is resolved for that
// here; one that does not resolve falls under no such condition. Errors name the proxy,
// and are of class profiles.ErrConnect where it said no.
func (d Dialer) DialContext(ctx context.Context, set Ruleset, network, address string) (net.Conn, error) {
	host, port, err := split(address)
	if err != nil {
		return nil, err
	}
	var known []netip.Addr
	looked := false
	addresses := func() []netip.Addr {
		if !looked {
			looked = true
			known = d.addresses(ctx, host)
		}
		return known
	}
	for i := range set {
		if set[i].covers(host, port, addresses) {
			return d.through(ctx, &set[i], network, host, port)
		}
	}
	return d.Dial(ctx, network, address)
}

func (d Dialer) addresses(ctx context.Context, host string) []netip.Addr {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	list, _ := d.lookup(ctx, "ip", host)
	return list
}

func (d Dialer) lookup(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if d.Lookup != nil {
		return d.Lookup(ctx, network, host)
	}
	return net.DefaultResolver.LookupNetIP(ctx, network, host)
}

func split(address string) (host string, port uint16, err error) {
	host, service, err := net.SplitHostPort(address)
	if err == nil {
		if port = parsePort(service); port == 0 {
			err = fmt.Errorf("%q is not a port", service)
		}
	}
	if err != nil {
		return "", 0, fmt.Errorf("%w: %w", profiles.ErrSetup, err)
	}
	return host, port, nil
}

// through opens a connection to a server by one rule.
func (d Dialer) through(ctx context.Context, r *Rule, network, host string, port uint16) (net.Conn, error) {
	address := net.JoinHostPort(host, strconv.Itoa(int(port)))
	if r.Kind == Direct {
		return d.Dial(ctx, network, address)
	}
	conn, err := d.Dial(ctx, network, r.Address())
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("proxy %s: %w: %w", r, profiles.ErrConnect, err)
	}
	talk, cancel := context.WithTimeoutCause(ctx, talkTime, fmt.Errorf("no answer within %s", talkTime))
	defer cancel()
	// The end of the context ends whatever read or write is under way.
	stop := context.AfterFunc(talk, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err = d.ask(talk, r, conn, host, port)
	if !stop() || talk.Err() != nil { // the library may have seen the end first
		err = context.Cause(talk)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("proxy %s, asked for %s: %w: %w", r, address, profiles.ErrConnect, err)
	}
	return conn, nil
}

// ask has the proxy at the other end of conn connect to a server.
func (d Dialer) ask(ctx context.Context, r *Rule, conn net.Conn, host string, port uint16) error {
	switch r.Kind {
	case SOCKS4, SOCKS4a:
		return d.socks4(ctx, r, conn, host, port)
	case SOCKS5:
		return socks5(ctx, r, conn, net.JoinHostPort(host, strconv.Itoa(int(port))))
	case Connect:
		return httpConnect(r, conn, net.JoinHostPort(host, strconv.Itoa(int(port))))
	}
	return fmt.Errorf("%w: kind %d of a proxy is not known", profiles.ErrSetup, r.Kind)
}

// socks5 leaves it to the library, which takes no more from the proxy than the
// protocol has, so that conn itself can go on to be used.
func socks5(ctx context.Context, r *Rule, conn net.Conn, address string) error {
	var account *proxy.Auth
	if r.User != "" {
		account = &proxy.Auth{User: r.User, Password: r.Password}
	}
	dialer, err := proxy.SOCKS5("tcp", r.Address(), account, already{conn})
	if err != nil {
		return err
	}
	_, err = dialer.(proxy.ContextDialer).DialContext(ctx, "tcp", address)
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "socks connect" {
		err = op.Err // the rest of it we say ourselves
	}
	return err
}

// already is a dialer for what is connected.
type already struct{ net.Conn }

func (a already) Dial(string, string) (net.Conn, error) { return a.Conn, nil }
func (a already) DialContext(context.Context, string, string) (net.Conn, error) {
	return a.Conn, nil
}

// Environment is what a process is told of proxies in HTTPS_PROXY and NO_PROXY.
type Environment struct{ HTTPSProxy, NoProxy string }

// Ruleset returns the rule for one server, as a program would go to https://address:
// none for loopback and what NO_PROXY names. HTTPS_PROXY may begin with http://, which
// is http-connect, or with socks5:// or socks5h://.
func (e Environment) Ruleset(address string) (Ruleset, error) {
	if e.HTTPSProxy == "" {
		return nil, nil
	}
	c := httpproxy.Config{HTTPSProxy: e.HTTPSProxy, NoProxy: e.NoProxy}
	u, err := c.ProxyFunc()(&url.URL{Scheme: "https", Host: address})
	if _, perr := url.Parse(e.HTTPSProxy); strings.Contains(e.HTTPSProxy, "://") && perr != nil {
		err = perr // which the library passes over
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: HTTPS_PROXY is not the URL of a proxy", profiles.ErrSetup) // err has its password
	case u == nil:
		return nil, nil
	}
	kind := Connect
	switch u.Scheme {
	case "http":
	case "socks5", "socks5h":
		kind = SOCKS5
	default:
		return nil, fmt.Errorf("%w: HTTPS_PROXY: a proxy by %s:// is not supported", profiles.ErrSetup, u.Scheme)
	}
	r := Rule{Kind: kind, Host: u.Hostname(), Port: 80}
	if kind == SOCKS5 {
		r.Port = 1080
	}
	if service := u.Port(); service != "" {
		r.Port = parsePort(service)
	}
	if err := profiles.CheckHost(r.Host); err != nil || r.Port == 0 {
		return nil, fmt.Errorf("%w: HTTPS_PROXY does not name a host and a port", profiles.ErrSetup)
	}
	r.User = u.User.Username()
	r.Password, _ = u.User.Password()
	return Ruleset{r}, nil
}
