package tlstun

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sshbroker/profiles"
	"sshbroker/profiles/creds"
	"sshbroker/profiles/proxy"
)

const (
	// spareTime is how long the connection that proved the proxy to be there may wait for
	// the first flow: proxies close what is idle.
	spareTime = 5 * time.Second
	// linger is the default of Connector.Linger.
	linger = 10 * time.Second
)

// halfClose is what our gateway's answer says where the close_notify of TLS ends one
// direction there.
const halfCloseHeader, halfCloseValue = "Ssh-Gateway", "half-close"

// noHalfClose is what people are told of a transport to another proxy.
const noHalfClose = "the proxy passes no end of one direction on"

// proxied is a way to a proxy: not a connection, but as many as there are flows.
type proxied struct {
	connector      *Connector
	profile        *profiles.Profile
	via            profiles.DialFunc
	user, password string
	last           atomic.Pointer[proxyState]
	sent, received atomic.Uint64 // by flows that have ended

	retireOnce sync.Once
	retired    chan struct{}

	mu      sync.Mutex
	spare   *connection // nil: none
	spareAt time.Time
	live    map[*proxyStream]struct{}
	err     error // why done was closed
	done    chan struct{}
}

// proxyState is what the last connection was like.
type proxyState struct {
	description profiles.Description
	halfClose   bool
}

var (
	_ profiles.Transport = (*proxied)(nil)
	_ profiles.Describer = (*proxied)(nil)
	_ profiles.Retirer   = (*proxied)(nil)
)

// connectProxy shakes hands with the proxy once, so that one that cannot be reached or is
// not trusted is known before a flow depends on it.
func (c *Connector) connectProxy(ctx context.Context, p *profiles.Profile, via profiles.DialFunc) (profiles.Transport, error) {
	t := &proxied{
		connector: c, profile: p, via: via, user: p.User,
		retired: make(chan struct{}), live: make(map[*proxyStream]struct{}), done: make(chan struct{}),
	}
	if p.User != "" {
		known := creds.NewSession(ctx, p, nil, c.Log)
		defer known.Close()
		secret, given, err := known.StoredPassword()
		if err == nil && !given {
			err = errors.New("a user for the proxy, and no password")
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", profiles.ErrSetup, err)
		}
		t.password = secret
	}
	conn, err := t.reach(ctx)
	if err != nil {
		return nil, err
	}
	t.spare, t.spareAt = conn, time.Now()
	return t, nil
}

// reach opens one connection to the proxy.
func (t *proxied) reach(ctx context.Context) (*connection, error) {
	conn, cred, err := t.connector.reach(ctx, t.profile, t.via, "http/1.1")
	if err != nil {
		return nil, err
	}
	state := &proxyState{description: conn.describe(cred)}
	if before := t.last.Load(); before != nil {
		state.halfClose = before.halfClose
	}
	t.last.Store(state)
	return conn, nil
}

// take returns the spare connection, nil where there is none that is fresh.
func (t *proxied) take() *connection {
	t.mu.Lock()
	defer t.mu.Unlock()
	conn := t.spare
	t.spare = nil
	if conn != nil && time.Since(t.spareAt) > spareTime {
		conn.socket.Abort(net.ErrClosed)
		return nil
	}
	return conn
}

// Open has the proxy connect to dst, by a connection that is the flow's alone. Where the
// proxy cannot be reached any more its error is ErrLost.
func (t *proxied) Open(ctx context.Context, dst profiles.Destination) (profiles.Stream, error) {
	s, err := t.open(ctx, dst)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dst, err)
	}
	return s, nil
}

func (t *proxied) open(ctx context.Context, dst profiles.Destination) (*proxyStream, error) {
	if err := profiles.CheckHost(dst.Host); err != nil {
		return nil, fmt.Errorf("%w: %w", profiles.ErrOpen, err)
	}
	if t.profile.OpenTimeout > 0 {
		var cancel context.CancelFunc
		late := fmt.Errorf("%w: no answer from the proxy within %s", profiles.ErrOpen, t.profile.OpenTimeout)
		ctx, cancel = context.WithTimeoutCause(ctx, t.profile.OpenTimeout, late)
		defer cancel()
	}
	if lost := t.Err(); lost != nil {
		return nil, lost
	}
	if spare := t.take(); spare != nil {
		s, err := t.ask(ctx, spare, dst)
		var said *saidNo
		if err == nil || errors.As(err, &said) || ctx.Err() != nil {
			return s, err
		}
		// It went while it was idle. Nothing was opened.
	}
	conn, err := t.reach(ctx)
	switch {
	case err == nil:
		return t.ask(ctx, conn, dst)
	case expired(ctx):
		return nil, cause(ctx)
	case errors.Is(err, profiles.ErrConnect): // another server may be there
		t.retireOnce.Do(func() { close(t.retired) })
		return nil, fmt.Errorf("%w: %w", profiles.ErrLost, err)
	}
	return nil, err
}

// expired tells whether ctx has ended, or is about to: a dialer has a timer of its own for
// the same time.
func expired(ctx context.Context) bool {
	end, limited := ctx.Deadline()
	return ctx.Err() != nil || limited && !time.Now().Before(end)
}

func cause(ctx context.Context) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

// saidNo is a proxy's answer that is no tunnel.
type saidNo struct{ error }

func (e *saidNo) Unwrap() error { return e.error }

// ask sends the request on conn, which it owns.
func (t *proxied) ask(ctx context.Context, conn *connection, dst profiles.Destination) (*proxyStream, error) {
	stop := context.AfterFunc(ctx, func() { conn.socket.Abort(context.Cause(ctx)) })
	answer, err := proxy.AskConnect(conn, dst.String(), t.user, t.password)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err == nil && answer.StatusCode/100 != 2 {
		err = &saidNo{proxyRefusal(answer, t.user != "")}
	}
	if err != nil {
		conn.socket.Abort(err)
		if alertOf(err) != nil {
			err = &saidNo{failure(ctx, conn.address, t.profile, err)}
		} else if ctx.Err() == nil && !errors.As(err, new(*saidNo)) {
			err = fmt.Errorf("%w: the proxy: %w", profiles.ErrOpen, err)
		}
		return nil, err
	}
	conn.socket.Settle()
	s := newProxyStream(t, conn, dst)
	for _, value := range answer.Header.Values(halfCloseHeader) {
		s.halfClose = s.halfClose || value == halfCloseValue
	}
	t.last.Store(&proxyState{description: t.last.Load().description, halfClose: s.halfClose})
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		s.Reset()
		return nil, t.err
	}
	t.live[s] = struct{}{}
	return s, nil
}

// proxyErrors are the classes of what a proxy gives as its reason, RFC 9209 section 2.3.
var proxyErrors = map[string]error{
	"connection_refused":        profiles.ErrRefused,
	"dns_error":                 profiles.ErrNameNotFound,
	"destination_not_found":     profiles.ErrNameNotFound,
	"destination_ip_prohibited": profiles.ErrProhibited,
	"http_request_denied":       profiles.ErrProhibited,
}

// proxyRefusal puts an answer that is no tunnel into its class.
func proxyRefusal(r *http.Response, authenticated bool) error {
	said := r.Status
	class := profiles.ErrOpen
	switch r.StatusCode {
	case http.StatusForbidden, http.StatusMethodNotAllowed:
		class = profiles.ErrProhibited
	case http.StatusProxyAuthRequired, http.StatusUnauthorized:
		class = profiles.ErrAuth
		if authenticated {
			said += " (it does not take the user and the password)"
		} else {
			said += " (it wants a user and a password: see user and password of the profile)"
		}
	}
	reason, details := proxyStatus(strings.Join(r.Header.Values("Proxy-Status"), ", "))
	if known := proxyErrors[reason]; known != nil && class == profiles.ErrOpen {
		class = known
	}
	switch squid := r.Header.Get("X-Squid-Error"); { // of squid, with errno behind it
	case class != profiles.ErrOpen:
	case squid == "ERR_CONNECT_FAIL 111":
		class = profiles.ErrRefused
	case strings.HasPrefix(squid, "ERR_DNS_FAIL "):
		class = profiles.ErrNameNotFound
	}
	for _, more := range []string{reason, details} {
		if more != "" {
			said += "; " + more
		}
	}
	return fmt.Errorf("%w: the proxy said %q", class, profiles.RemoteText(said, 300, false))
}

// proxyStatus finds the error and its details of the last proxy in a Proxy-Status that
// gives one (RFC 9209 section 2, a list of RFC 8941 section 3.1).
func proxyStatus(header string) (reason, details string) {
	for _, member := range splitOutside(header, ',') {
		parts := splitOutside(member, ';')
		var r, d string
		for _, parameter := range parts[1:] {
			name, value, _ := strings.Cut(strings.TrimSpace(parameter), "=")
			value = strings.ReplaceAll(strings.Trim(value, `"`), `\`, "")
			switch name {
			case "error":
				r = value
			case "details":
				d = value
			}
		}
		if r != "" {
			reason, details = r, d
		}
	}
	return reason, details
}

// splitOutside splits s at each sep that is in no quoted string.
func splitOutside(s string, sep byte) []string {
	var parts []string
	begin, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case c == sep && !quoted:
			parts = append(parts, s[begin:i])
			begin = i + 1
		}
	}
	return append(parts, s[begin:])
}

// Done is profiles.Transport's. Flows end one by one, so it is closed by Close alone.
func (t *proxied) Done() <-chan struct{} { return t.done }

// Retired is profiles.Retirer's: the proxy cannot be reached any more.
func (t *proxied) Retired() <-chan struct{} { return t.retired }

// Err is profiles.Transport's.
func (t *proxied) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// Close resets all flows.
func (t *proxied) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return nil
	}
	t.err = fmt.Errorf("%w: closed by this side", profiles.ErrLost)
	close(t.done)
	if t.spare != nil {
		t.spare.socket.Abort(net.ErrClosed)
		t.spare = nil
	}
	for s := range t.live {
		go s.lose(t.err)
	}
	return nil
}

// gone takes a stream that has ended off the list.
func (t *proxied) gone(s *proxyStream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, live := t.live[s]; live {
		delete(t.live, s)
		t.sent.Add(s.conn.socket.Sent())
		t.received.Add(s.conn.socket.Received())
	}
}

// Describe is profiles.Describer's.
func (t *proxied) Describe() profiles.Description {
	state := t.last.Load()
	d := state.description
	if !state.halfClose {
		d.Note = noHalfClose
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	d.Sent, d.Received = t.sent.Load(), t.received.Load()
	for s := range t.live {
		d.Sent += s.conn.socket.Sent()
		d.Received += s.conn.socket.Received()
	}
	return d
}
