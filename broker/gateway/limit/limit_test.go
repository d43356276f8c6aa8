package limit

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func exceeded(t *testing.T, err error, name string) {
	t.Helper()
	var e *Exceeded
	if !errors.As(err, &e) || e.Name != name || !errors.Is(err, ErrLimit) {
		t.Errorf("%v, want %s", err, name)
	}
}

func TestZeroRefuses(t *testing.T) {
	l := New(Limits{})
	_, err := l.Connection()
	exceeded(t, err, "connections")
	_, err = l.Identity("a")
	exceeded(t, err, "identity-connections")
	_, err = l.Flow("a")
	exceeded(t, err, "identity-flows")
}

func TestCounts(t *testing.T) {
	l := New(Limits{Descriptors: 100, Connections: 3, IdentityConnections: 1, Flows: 3, IdentityFlows: 2, IdentityRate: 100})
	var release []func()
	take := func(f func(), err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		release = append(release, f)
	}
	for range 3 {
		take(l.Connection())
	}
	_, err := l.Connection()
	exceeded(t, err, "connections")
	take(l.Identity("a"))
	_, err = l.Identity("a")
	exceeded(t, err, "identity-connections")
	take(l.Identity("b"))
	take(l.Flow("a"))
	take(l.Flow("a"))
	_, err = l.Flow("a")
	exceeded(t, err, "identity-flows")
	take(l.Flow("b"))
	_, err = l.Flow("b")
	exceeded(t, err, "flows")
	if c, f := l.Open(); c != 3 || f != 3 {
		t.Errorf("open: %d, %d", c, f)
	}
	for _, f := range release {
		f()
	}
	if c, f := l.Open(); c != 0 || f != 0 {
		t.Errorf("open in the end: %d, %d", c, f)
	}
	take(l.Flow("b"))
}

func TestDescriptors(t *testing.T) {
	l := New(Limits{Descriptors: 2, Connections: 9, Flows: 9, IdentityFlows: 9, IdentityRate: 9})
	if _, err := l.Connection(); err != nil {
		t.Fatal(err)
	}
	release, err := l.Flow("a")
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.Flow("a")
	exceeded(t, err, "descriptors")
	_, err = l.Connection()
	exceeded(t, err, "descriptors")
	release()
	if _, err := l.Connection(); err != nil {
		t.Error(err)
	}
}

func TestHandshakes(t *testing.T) {
	l := New(Limits{Handshakes: 8})
	addr := netip.MustParseAddr
	first, err := l.Handshake(addr("2001:db8::1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Handshake(addr("2001:db8::2")); err != nil {
		t.Fatal(err)
	}
	_, err = l.Handshake(addr("2001:db8::3"))
	exceeded(t, err, "address-handshakes")
	for i := range 6 {
		if _, err := l.Handshake(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})); err != nil {
			t.Fatal(err)
		}
	}
	_, err = l.Handshake(addr("192.0.2.100"))
	exceeded(t, err, "handshakes")
	first()
	if _, err = l.Handshake(addr("::ffff:192.0.2.100")); err != nil {
		t.Error(err)
	}
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Descriptors: 100, Connections: 1, Flows: 1, IdentityFlows: 1, IdentityRate: 5})
		open := func() error {
			release, err := l.Flow("a")
			if err == nil {
				release()
			}
			return err
		}
		for range 10 {
			if err := open(); err != nil {
				t.Fatal(err)
			}
		}
		exceeded(t, open(), "identity-rate")
		if release, err := l.Flow("b"); err != nil {
			t.Errorf("another identity: %v", err)
		} else {
			release()
		}
		time.Sleep(time.Second / 5)
		if err := open(); err != nil {
			t.Errorf("after a fifth of a second: %v", err)
		}
		exceeded(t, open(), "identity-rate")
	})
}

// Whoever comes with ever new identities leaves nothing behind.
func TestForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Descriptors: 100, Connections: 1, IdentityConnections: 1, Flows: 10, IdentityFlows: 1, IdentityRate: 1})
		for i := range 1000 {
			if release, err := l.Flow(fmt.Sprint(i)); err == nil {
				release()
			}
		}
		time.Sleep(2 * time.Minute)
		if _, err := l.Flow("new"); err != nil {
			t.Error(err)
		}
		if n := len(l.identities); n != 1 {
			t.Errorf("%d identities are remembered", n)
		}
	})
}
