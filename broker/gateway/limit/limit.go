package limit

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// ErrLimit is the class of what Limiter refuses.
var ErrLimit = errors.New("limit reached")

// Exceeded is one limit that was hit. It is of class ErrLimit.
type Exceeded struct {
	Name string // a word, also for metrics
	Most int
}

func (e *Exceeded) Error() string {
	return fmt.Sprintf("limit reached: %s, at most %d", e.Name, e.Most)
}

// Is has errors.Is find the class.
func (e *Exceeded) Is(target error) bool { return target == ErrLimit }

// Limits are how much there may be. A zero refuses everything.
type Limits struct {
	Descriptors         int // that connections and flows may have, one each
	Handshakes          int // under way; a quarter of them from one address
	Connections         int
	IdentityConnections int
	Flows               int
	IdentityFlows       int
	IdentityRate        int // flows opened a second, with a burst of twice as many
}

// Limiter counts. Safe for concurrent use.
type Limiter struct {
	mu          sync.Mutex
	limits      Limits
	connections int
	flows       int
	handshakes  map[netip.Addr]int
	underWay    int // handshakes in all
	identities  map[string]*account
	swept       time.Time
}

// account is one identity. It stays for as long as it has something open, or a bucket
// that is not full.
type account struct {
	connections, flows int
	tokens             float64
	filled             time.Time
}

// New makes a Limiter.
func New(l Limits) *Limiter {
	return &Limiter{limits: l, identities: map[string]*account{}, handshakes: map[netip.Addr]int{}}
}

// Set changes the limits. What is open stays.
func (l *Limiter) Set(limits Limits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limits = limits
}

// Connection counts one connection of nobody known yet; its errors are *Exceeded. The
// caller calls release once.
func (l *Limiter) Connection() (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.connections >= l.limits.Connections:
		return nil, &Exceeded{"connections", l.limits.Connections}
	case l.connections+l.flows >= l.limits.Descriptors:
		return nil, &Exceeded{"descriptors", l.limits.Descriptors}
	}
	l.connections++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.connections--
	}, nil
}

// Handshake counts one that is under way with an address. Who has many addresses of one
// IPv6 network has one here.
func (l *Limiter) Handshake(from netip.Addr) (release func(), err error) {
	from = from.Unmap()
	if from.Is6() {
		network, _ := from.Prefix(64) // cannot fail for an IPv6 address
		from = network.Addr()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	share := (l.limits.Handshakes + 3) / 4
	switch {
	case l.underWay >= l.limits.Handshakes:
		return nil, &Exceeded{"handshakes", l.limits.Handshakes}
	case l.handshakes[from] >= share:
		return nil, &Exceeded{"address-handshakes", share}
	}
	l.underWay++
	l.handshakes[from]++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.underWay--
		if l.handshakes[from]--; l.handshakes[from] == 0 {
			delete(l.handshakes, from)
		}
	}, nil
}

// Identity counts one connection of an identity, beside Connection.
func (l *Limiter) Identity(key string) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.account(key)
	if a.connections >= l.limits.IdentityConnections {
		return nil, &Exceeded{"identity-connections", l.limits.IdentityConnections}
	}
	a.connections++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		a.connections--
		l.forget(key, a)
	}, nil
}

// Flow counts one flow of an identity.
func (l *Limiter) Flow(key string) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.account(key)
	// What an identity may not do by itself comes first: it is not to learn how full
	// the gateway is.
	switch {
	case a.flows >= l.limits.IdentityFlows:
		return nil, &Exceeded{"identity-flows", l.limits.IdentityFlows}
	case a.tokens < 1:
		return nil, &Exceeded{"identity-rate", l.limits.IdentityRate}
	case l.flows >= l.limits.Flows:
		return nil, &Exceeded{"flows", l.limits.Flows}
	case l.connections+l.flows >= l.limits.Descriptors:
		return nil, &Exceeded{"descriptors", l.limits.Descriptors}
	}
	a.tokens--
	a.flows++
	l.flows++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		a.flows--
		l.flows--
		l.forget(key, a)
	}, nil
}

// Open is how many connections and flows there are.
func (l *Limiter) Open() (connections, flows int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.connections, l.flows
}

func (l *Limiter) account(key string) *account {
	now := time.Now()
	l.sweep(now)
	a := l.identities[key]
	if a == nil {
		a = &account{tokens: l.burst(), filled: now}
		l.identities[key] = a
	}
	l.fill(a, now)
	return a
}

func (l *Limiter) burst() float64 { return float64(2 * l.limits.IdentityRate) }

func (l *Limiter) fill(a *account, now time.Time) {
	a.tokens = min(l.burst(), a.tokens+now.Sub(a.filled).Seconds()*float64(l.limits.IdentityRate))
	a.filled = now
}

func (l *Limiter) forget(key string, a *account) {
	l.fill(a, time.Now())
	if a.connections == 0 && a.flows == 0 && a.tokens >= l.burst() {
		delete(l.identities, key)
	}
}

// sweep forgets, once a minute, those whose buckets have filled up since.
func (l *Limiter) sweep(now time.Time) {
	if now.Sub(l.swept) < time.Minute {
		return
	}
	l.swept = now
	for key, a := range l.identities {
		l.forget(key, a)
	}
}
