package names

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const alice, bob = 1001, 1002

// byAddress takes 127.0.0.N for uid N, mark N as well, and knows nobody else.
type byAddress struct{}

func (byAddress) Sender(from netip.AddrPort) (uint32, bool) {
	b := from.Addr().As16()
	return uint32(b[15]), from.Addr().Is4() && b[15] > 1
}

func (byAddress) Marked(mark uint32) (uint32, bool) { return mark, mark != 0 }

func (o byAddress) Peer(c net.Conn) (uint32, bool) { return o.Sender(addrPort(c.RemoteAddr())) }

func newUsers(t testing.TB, cfg Config) *Users {
	t.Helper()
	if cfg.Policy == nil {
		cfg.Policy = suffixPolicy(".far")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	u, err := NewUsers(cfg, byAddress{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	return u
}

func askAs(t testing.TB, u *Users, a *asker, name string, typ dnsmessage.Type) string {
	t.Helper()
	return show(unpack(t, u.handle(t.Context(), a, question(t, name, typ), false)))
}

// corp answers every name with 192.0.2.1.
func corp(t testing.TB) string {
	return resolvFile(t, "", newResolver(t, func(q dnsmessage.Message, _ []byte, _ bool) []byte {
		return respond(q, dnsmessage.RCodeSuccess, a("192.0.2.1"))
	}))
}

// What one user asked is neither told to another, nor does it name another's flows.
func TestUsersAreApart(t *testing.T) {
	u := newUsers(t, Config{ResolvFile: corp(t), Pool6: netip.MustParsePrefix("fd00:0:1::/64"),
		HostsFile: writeFile(t, "192.0.2.7 file.corp\n")})
	known := func(uid uint32, a, name, names string, asked bool) {
		t.Helper()
		v := u.For(uid)
		if got := fmt.Sprint(v.Lookup(addr(a))); got != names {
			t.Errorf("%d: %s is %s, want %s", uid, a, got, names)
		}
		if v.Asked(addr(a), name) != asked {
			t.Errorf("%d: %s for %s: asked is %v", uid, a, name, !asked)
		}
	}
	want := func(a *asker, name string, typ dnsmessage.Type, want string) {
		t.Helper()
		if got := askAs(t, u, a, name, typ); got != want {
			t.Errorf("%s asks %s %v: %s, want %s", a.label, name, typ, got, want)
		}
	}
	hers, his := u.asker(alice, true), u.asker(bob, true)

	want(hers, "secret.corp.", dnsmessage.TypeA, "Success 192.0.2.1")
	known(alice, "192.0.2.1", "secret.corp", "[secret.corp]", true)
	known(alice, "::ffff:192.0.2.1", "secret.corp", "[secret.corp]", true)
	known(bob, "192.0.2.1", "secret.corp", "[]", false)
	want(his, "other.corp.", dnsmessage.TypeA, "Success 192.0.2.1")
	known(alice, "192.0.2.1", "other.corp", "[secret.corp]", false)
	known(bob, "192.0.2.1", "other.corp", "[other.corp]", true)
	known(3, "192.0.2.1", "other.corp", "[]", false)

	want(u.nobody, "unknown.corp.", dnsmessage.TypeA, "ServerFailure")
	known(alice, "192.0.2.1", "unknown.corp", "[secret.corp]", false)
	known(bob, "192.0.2.1", "unknown.corp", "[other.corp]", false)

	// The hosts file is everybody's, but who asked is one.
	known(3, "192.0.2.7", "file.corp", "[file.corp]", false)
	want(hers, "file.corp.", dnsmessage.TypeA, "Success 192.0.2.7")
	known(alice, "192.0.2.7", "file.corp", "[file.corp]", true)
	known(bob, "192.0.2.7", "file.corp", "[file.corp]", false)

	// A pseudo address is the same for all, and only who asked is told its name.
	const reverse = "1.0.18.198.in-addr.arpa."
	reverse6 := "1.0.0.0." + strings.Repeat("0.", 16) + "1.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa."
	want(hers, "one.far.", dnsmessage.TypeA, "Success 198.18.0.1")
	for _, ptr := range []string{reverse, reverse6} {
		want(hers, ptr, dnsmessage.TypePTR, "Success one.far.")
		want(his, ptr, dnsmessage.TypePTR, "NameError")
		want(u.nobody, ptr, dnsmessage.TypePTR, "ServerFailure")
	}
	known(alice, "198.18.0.1", "one.far", "[one.far]", true)
	known(bob, "198.18.0.1", "one.far", "[one.far]", true)
	want(u.nobody, "one.far.", dnsmessage.TypeA, "ServerFailure")
	want(his, "one.far.", dnsmessage.TypeAAAA, "Success fd00:0:1::1")
	want(his, reverse, dnsmessage.TypePTR, "Success one.far.")
	want(u.nobody, "two.far.", dnsmessage.TypeA, "ServerFailure")
	want(u.nobody, "localhost.", dnsmessage.TypeA, "ServerFailure")
	if v := u.For(bob); !v.IsPool(addr("::ffff:198.19.0.1")) || v.IsPool(addr("192.0.2.1")) {
		t.Error("IsPool")
	}

	// Looking does not make a user.
	if s := u.Stats(); s.Users != 2 || s.Forwarded != 2 || s.Assigned != 1 || s.Unowned != 6 || s.Remembered != 2+1+2+2 {
		t.Errorf("%+v", s)
	}
}

// Over sockets the owner of the query is whose memory it is, for both protocols; a
// query of nobody's fails.
func TestUsersServe(t *testing.T) {
	u := newUsers(t, Config{ResolvFile: resolvFile(t, "", newResolver(t, func(q dnsmessage.Message, _ []byte, _ bool) []byte {
		var i int
		fmt.Sscanf(q.Questions[0].Name.String(), "n%d.", &i)
		return respond(q, dnsmessage.RCodeSuccess, a(fmt.Sprintf("10.0.%d.%d", i>>8, i&255)))
	}))})
	server := serve(t, u, "127.0.0.1")
	var wg sync.WaitGroup
	for host := 1; host <= 6; host++ {
		for _, network := range []string{"udp", "tcp"} {
			wg.Go(func() {
				for i := range 50 {
					name := fmt.Sprintf("n%d.corp.", host<<8+i)
					if network == "tcp" {
						name = fmt.Sprintf("n%d.corp.", host<<8+i+100)
					}
					c, err := dialFrom(network, fmt.Sprintf("127.0.0.%d", host), server)
					if err != nil {
						t.Error(err)
						return
					}
					want := "Success 10.0."
					if host == 1 {
						want = "ServerFailure"
					}
					if got := exchange(t, c, network, name); !strings.HasPrefix(got, want) {
						t.Errorf("%s over %s: %s", name, network, got)
					}
					c.Close()
				}
			})
		}
	}
	wg.Wait()
	for host := 1; host <= 6; host++ {
		for asked := 1; asked <= 6; asked++ {
			for i := range 150 {
				if i >= 50 && i < 100 {
					continue
				}
				at := netip.AddrFrom4([4]byte{10, 0, byte(asked), byte(i)})
				want := "[]"
				if host == asked && host > 1 {
					want = fmt.Sprintf("[n%d.corp]", asked<<8+i)
				}
				if got := fmt.Sprint(u.For(uint32(host)).Lookup(at)); got != want {
					t.Errorf("%d: %v is %s, want %s", host, at, got, want)
				}
			}
		}
	}
	if s := u.Stats(); s.Users != 5 || s.Unowned != 100 || s.Forwarded != 500 || s.Remembered != 500 || s.Dropped != 0 {
		t.Errorf("%+v", s)
	}
}

func dialFrom(network, host, server string) (net.Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second}
	if network == "udp" {
		d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(host)}
	} else {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(host)}
	}
	return d.Dial(network, server)
}

// exchange asks for an address; "" when there was no answer.
func exchange(t *testing.T, c net.Conn, network, name string) string {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	msg := question(t, name, dnsmessage.TypeA)
	var answer []byte
	var err error
	if network == "tcp" {
		writeFramed(c, msg)
		answer, err = readFramed(c)
	} else {
		c.Write(msg)
		answer = make([]byte, udpPlain)
		var n int
		n, err = c.Read(answer)
		answer = answer[:n]
	}
	if err != nil {
		return ""
	}
	return show(unpack(t, answer))
}

// One user's flood, at resolvers that are silent, leaves room for the others.
func TestUsersDoNotStarveEachOther(t *testing.T) {
	stuck := make(chan struct{}, 10_000)
	u := newUsers(t, Config{ResolvFile: resolvFile(t, "options timeout:10", newResolver(t, func(q dnsmessage.Message, _ []byte, _ bool) []byte {
		if strings.HasSuffix(q.Questions[0].Name.String(), ".stuck.") {
			stuck <- struct{}{}
			return nil
		}
		return respond(q, dnsmessage.RCodeSuccess, a("192.0.2.1"))
	}))})
	server := serve(t, u, "127.0.0.1")
	flood, err := dialFrom("udp", "127.0.0.2", server)
	if err != nil {
		t.Fatal(err)
	}
	defer flood.Close()
	dropped := func() bool { return u.Stats().Dropped > 0 }
	for i := 0; !dropped(); i++ {
		if i == 100*userInFlight {
			t.Fatal("nothing is dropped")
		}
		flood.Write(question(t, fmt.Sprintf("n%d.stuck.", i), dnsmessage.TypeA))
	}
	for range userUpstream {
		<-stuck
	}
	if a := u.asker(2, false); len(a.waiting) != userInFlight || len(a.upstream) != userUpstream || len(u.up.slots) != userUpstream {
		t.Errorf("%d wait, %d of %d are at the resolvers", len(a.waiting), len(a.upstream), len(u.up.slots))
	}
	var idle []net.Conn
	for range userConnections {
		c, err := dialFrom("tcp", "127.0.0.2", server)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		idle = append(idle, c)
	}
	for len(u.connections) < len(idle) {
		time.Sleep(time.Millisecond)
	}
	over, err := dialFrom("tcp", "127.0.0.2", server)
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	if got := exchange(t, over, "tcp", "x.far."); got != "" {
		t.Errorf("one connection too many was answered: %s", got)
	}
	for _, network := range []string{"udp", "tcp"} {
		for host, want := range map[string]string{"127.0.0.3": "Success 192.0.2.1", "127.0.0.1": "ServerFailure"} { // of nobody's as well
			c, err := dialFrom(network, host, server)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if got := exchange(t, c, network, "other.corp."); got != want || time.Since(start) > 5*time.Second {
				t.Errorf("%s over %s: %q after %v", host, network, got, time.Since(start))
			}
			c.Close()
		}
	}
	if got := exchange(t, flood, "udp", "local.far."); got != "Success 198.18.0.1" {
		t.Errorf("what needs no resolver waits: %s", got)
	}
}

func TestUsersAreBounded(t *testing.T) {
	u := newUsers(t, Config{ResolvFile: corp(t), MaxUsers: 3, UserNames: 20})
	for uid := range uint32(3) {
		askAs(t, u, u.asker(uid, true), "x.corp.", dnsmessage.TypeA)
	}
	u.For(0).Lookup(addr("192.0.2.1")) // its flows keep it, too
	u.asker(3, true)
	for uid, want := range []string{"[x.corp]", "[]", "[x.corp]", "[]"} {
		if got := fmt.Sprint(u.For(uint32(uid)).Lookup(addr("192.0.2.1"))); got != want {
			t.Errorf("%d knows %s, want %s", uid, got, want)
		}
	}
	for i := range 100 {
		u.asker(3, true).remember(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), "n.corp")
	}
	if s := u.Stats(); s.Users != 3 || s.Remembered != 2+20 || len(u.byUID) != 3 {
		t.Errorf("%+v", s)
	}
	if u.For(0).Lookup(addr("192.0.2.1")) == nil {
		t.Error("one user's names pushed another's out")
	}
}

// One user cannot use the pool up; its own addresses serve it again after quarantine.
func TestUsersShareThePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUsers(t, Config{UserNames: 3, Quarantine: time.Hour})
		want := func(uid uint32, name, want string) {
			t.Helper()
			if got := askAs(t, u, u.asker(uid, true), name, dnsmessage.TypeA); got != want {
				t.Errorf("%d asks %s: %s, want %s", uid, name, got, want)
			}
		}
		want(alice, "a1.far.", "Success 198.18.0.1")
		want(alice, "a2.far.", "Success 198.18.0.2")
		want(alice, "a3.far.", "Success 198.18.0.3")
		want(alice, "a4.far.", "ServerFailure")
		want(bob, "b1.far.", "Success 198.18.0.4")
		want(alice, "b1.far.", "Success 198.18.0.4") // there already: takes nothing
		release := u.For(alice).Hold(addr("198.18.0.1"))
		time.Sleep(59 * time.Minute)
		want(bob, "a3.far.", "Success 198.18.0.3") // in use again, whoever asks
		time.Sleep(time.Minute)
		want(alice, "a4.far.", "Success 198.18.0.2")
		want(alice, "a5.far.", "ServerFailure")
		release()
		want(alice, "a5.far.", "ServerFailure") // just released
		time.Sleep(time.Hour)
		want(alice, "a5.far.", "Success 198.18.0.3")
		want(alice, "a6.far.", "Success 198.18.0.2")
		want(bob, "b2.far.", "Success 198.18.0.5")
		if s := u.Stats(); s.Assigned != 5 || s.Exhausted != 3 {
			t.Errorf("%+v", s)
		}
	})
}

// A restart keeps every address with its name, for all users, and what was given up
// stays unused for the quarantine, before a restart and after it.
func TestUsersRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "names")
		cfg := Config{Journal: path, Pool4: netip.MustParsePrefix("10.9.8.0/30"), Quarantine: time.Hour} // two addresses
		u := newUsers(t, cfg)
		want := func(uid uint32, name, want string) {
			t.Helper()
			if got := askAs(t, u, u.asker(uid, true), name, dnsmessage.TypeA); got != want {
				t.Errorf("%d asks %s: %s, want %s", uid, name, got, want)
			}
		}
		want(alice, "one.far.", "Success 10.9.8.1")
		want(bob, "two.far.", "Success 10.9.8.2")
		release := u.For(alice).Hold(addr("10.9.8.1"))
		time.Sleep(time.Hour)
		release()
		time.Sleep(59 * time.Minute)
		want(bob, "two.far.", "Success 10.9.8.2")
		want(alice, "three.far.", "ServerFailure") // 59 minutes after the release
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
		if err := u.Close(); err != nil {
			t.Fatal(err)
		}

		u = newUsers(t, cfg)
		if got := fmt.Sprint(u.For(bob).Lookup(addr("10.9.8.1"))); got != "[one.far]" || !u.For(bob).Asked(addr("10.9.8.1"), "one.far") {
			t.Errorf("10.9.8.1 is %s", got)
		}
		want(bob, "1.8.9.10.in-addr.arpa.", "NameError") // not known to have asked
		want(alice, "three.far.", "ServerFailure")
		time.Sleep(59 * time.Minute)
		want(alice, "three.far.", "ServerFailure") // as nobody knows when it was used last
		want(bob, "one.far.", "Success 10.9.8.1")
		time.Sleep(time.Minute)
		want(alice, "three.far.", "Success 10.9.8.2")
		want(bob, "one.far.", "Success 10.9.8.1")
		if got := fmt.Sprint(u.For(bob).Lookup(addr("10.9.8.2"))); got != "[three.far]" {
			t.Errorf("10.9.8.2 is %s", got)
		}
	})
}

func TestNewUsersRefuses(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	if _, err := NewUsers(Config{AllPseudo: true, Logger: log}, nil); err == nil {
		t.Error("no owners were taken")
	}
	if _, err := NewUsers(Config{Logger: log}, byAddress{}); err == nil {
		t.Error("no policy was taken")
	}
	u := newUsers(t, Config{})
	if err := u.Serve(context.Background(), nil, nil); err == nil {
		t.Error("no sockets, no error")
	}
}
