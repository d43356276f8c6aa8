package broker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sshbroker/broker"
	"sshbroker/broker/audit"
	"sshbroker/capture"
	"sshbroker/capture/capturetest"
	"sshbroker/capture/service"
	"sshbroker/filter"
	"sshbroker/profiles"
)

// newSystemBench is a broker with a capture of the whole host.
func newSystemBench(t *testing.T, rules *filter.Set) *bench {
	t.Helper()
	b := newBench(t, rules)
	p := *b.Policy()
	p.UserBrokers = true
	p.Profiles = map[string]*profiles.Profile{
		"gw":    {ID: "gw", Host: "gw.example", Port: 2222, User: "service"},
		"named": {ID: "named", Host: "gw.example", Port: 22, User: "tunnel"},
		"any":   {ID: "any", Host: "*", Port: 22, User: "service"},
		"inner": {ID: "inner", Host: "inner.example", Port: 22, User: "service", Gateway: &profiles.Profile{ID: "gw", Host: "gw.example", Port: 2222, User: "service"}},
	}
	p.Logins = map[string]string{"named": "tunnel"}
	b.SetPolicy(&p)
	b.capture.WayOut = true
	return b
}

func reply(reason audit.Reason) string {
	text, err := json.Marshal(broker.Reply{Reason: reason.String(), Error: "the server's words"})
	if err != nil {
		panic(err)
	}
	return string(text)
}

// What a carrier says becomes of the flow what the rule allows.
func TestHandOver(t *testing.T) {
	refused := func(r capture.Refusal, text string) service.Handed {
		return service.Handed{Outcome: service.HandRefused, Refusal: r, Text: text}
	}
	none := &service.Error{Code: service.CodeNoCarrier, Message: "none"}
	for _, c := range []struct {
		name     string
		handed   service.Handed
		err      error
		fallback bool
		want     capturetest.Outcome
		reason   audit.Reason
		carried  bool // by the system broker itself
	}{
		{"admitted", service.Handed{Outcome: service.HandAdmitted}, nil, true, capturetest.Outcome{Handed: true}, audit.HandedOver, false},
		{"lost", service.Handed{Outcome: service.HandLost}, nil, true, capturetest.Outcome{Handed: true}, audit.Abandoned, false},
		{"no carrier", service.Handed{}, none, false, capturetest.Outcome{Admitted: true}, audit.Carried, true},
		{"gone", service.Handed{Outcome: service.HandGone}, nil, false, capturetest.Outcome{Refusal: capture.Unreachable}, audit.CarrierGone, false},
		{"gone, fallback", service.Handed{Outcome: service.HandGone}, nil, true, capturetest.Outcome{Passed: true}, audit.Fallback, false},
		{"no login", refused(capture.Unreachable, reply(audit.AuthFailed)), nil, false, capturetest.Outcome{Refusal: capture.Unreachable}, audit.RefusedByCarrier, false},
		{"no login, fallback", refused(capture.Unreachable, reply(audit.AuthFailed)), nil, true, capturetest.Outcome{Passed: true}, audit.Fallback, false},
		{"host key, fallback", refused(capture.Unreachable, reply(audit.HostKey)), nil, true, capturetest.Outcome{Refusal: capture.Unreachable}, audit.RefusedByCarrier, false},
		{"destination, fallback", refused(capture.Refused, reply(audit.RefusedByDestination)), nil, true, capturetest.Outcome{Refusal: capture.Refused}, audit.RefusedByCarrier, false},
		{"unknown reason, fallback", refused(capture.Unreachable, `{"reason":"a-new-one"}`), nil, true, capturetest.Outcome{Refusal: capture.Unreachable}, audit.RefusedByCarrier, false},
		{"no reason, fallback", refused(capture.Unreachable, "host-key"), nil, true, capturetest.Outcome{Refusal: capture.Unreachable}, audit.RefusedByCarrier, false},
		{"abandoned there", refused(capture.Silent, reply(audit.Abandoned)), nil, true, capturetest.Outcome{Refusal: capture.Silent}, audit.Abandoned, false},
		{"program gave up", service.Handed{}, capture.ErrAbandoned, true, capturetest.Outcome{Refusal: capture.Silent}, audit.Abandoned, false},
		{"another error", service.Handed{}, errors.New("broken"), true, capturetest.Outcome{Refusal: capture.Unreachable}, audit.Internal, false},
		{"unknown outcome", service.Handed{Outcome: "new"}, nil, true, capturetest.Outcome{Refusal: capture.Unreachable}, audit.Internal, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newSystemBench(t, set(t, filter.Direct, filter.Rule{Action: filter.Tunnel, Profile: "gw", FallbackToPlain: c.fallback}))
			a := capturetest.NewAttempt("203.0.113.7:23")
			a.CanPass = true
			a.Carrier = func([]byte) (service.Handed, error) { return c.handed, c.err }
			b.source.Offer(a)
			if got := a.Outcome(); got != c.want {
				t.Errorf("outcome %+v, want %+v", got, c.want)
			}
			if c.carried {
				talk(t, a)
			}
			rec := <-b.records.ch
			if rec.Reason != c.reason || rec.Rule != 1 {
				t.Errorf("recorded %+v", rec)
			}
			if c.handed.Text == reply(audit.HostKey) && !strings.Contains(rec.Error, "host-key: the server's words") {
				t.Errorf("recorded %q", rec.Error)
			}
			if (len(b.opener.opened) > 0) != c.carried {
				t.Errorf("opened %q", b.opener.opened)
			}
		})
	}
}

// The order names the server, the destination and the rule, and a user only where
// somebody has chosen one.
func TestOrder(t *testing.T) {
	nameFile := filepath.Join(t.TempDir(), "name")
	if err := os.WriteFile(nameFile, []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		rule filter.Rule
		want string // "" is not handed over
	}{
		{"user is not chosen", filter.Rule{Profile: "gw", Source: "f.xml:3"},
			`{"v":1,"flow":1,"profile":{"id":"gw","host":"gw.example","port":2222},"destination":{"host":"db.example","port":5432},"name":"db.example","rule":1,"rule_source":"f.xml:3"}`},
		{"user of the profile", filter.Rule{Profile: "named", DestinationPort: 1},
			`{"v":1,"flow":1,"profile":{"id":"named","host":"gw.example","port":22,"user":"tunnel"},"destination":{"host":"db.example","port":1},"name":"db.example","rule":1}`},
		{"user of the rule", filter.Rule{Profile: "named", Username: "x", Destination: "d"},
			`{"v":1,"flow":1,"profile":{"id":"named","host":"gw.example","port":22,"user":"x"},"destination":{"host":"d","port":5432},"name":"db.example","rule":1}`},
		{"user in a file", filter.Rule{Profile: "gw", UsernameFile: nameFile},
			`{"v":1,"flow":1,"profile":{"id":"gw","host":"gw.example","port":2222,"user":"x"},"destination":{"host":"db.example","port":5432},"name":"db.example","rule":1}`},
		{"gateway", filter.Rule{Profile: "inner"},
			`{"v":1,"flow":1,"profile":{"id":"inner","host":"inner.example","port":22,"gateway":{"id":"gw","host":"gw.example","port":2222}},"destination":{"host":"db.example","port":5432},"name":"db.example","rule":1}`},
		{"server from the program", filter.Rule{Profile: "gw", HostnameFromApp: true}, ""},
		{"profile without a server", filter.Rule{Profile: "any"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.rule.Action = filter.Tunnel
			b := newSystemBench(t, set(t, filter.Direct, c.rule))
			a := capturetest.NewAttempt("203.0.113.7:5432")
			var order string
			a.Carrier = func(p []byte) (service.Handed, error) {
				order = string(p)
				return service.Handed{Outcome: service.HandAdmitted}, nil
			}
			b.source.Offer(a)
			if a.Outcome().Admitted {
				talk(t, a)
			}
			rec := <-b.records.ch
			if order != c.want {
				t.Errorf("order %s\nwant  %s", order, c.want)
			}
			if order == "" && rec.Reason != audit.Carried {
				t.Errorf("recorded %+v", rec)
			}
			if order != "" {
				if _, err := broker.ParseOrder([]byte(order)); err != nil {
					t.Error(err)
				}
				if strings.HasPrefix(rec.Server, "service@") {
					t.Errorf("recorded the server %q, and who logs in there is not known", rec.Server)
				}
			}
		})
	}
}

// Only a policy that says so hands over.
func TestNotHandedOver(t *testing.T) {
	b := newBench(t, set(t, filter.Direct, filter.Rule{Action: filter.Tunnel, Profile: "gw"}))
	a := capturetest.NewAttempt("203.0.113.7:5432")
	a.Carrier = func([]byte) (service.Handed, error) {
		t.Error("handed over")
		return service.Handed{Outcome: service.HandAdmitted}, nil
	}
	b.source.Offer(a)
	a.Outcome()
	talk(t, a)
	if rec := <-b.records.ch; rec.Reason != audit.Carried {
		t.Errorf("recorded %+v", rec)
	}
}

// The carrier goes where the order says, and logs in there as its own configuration does.
func TestCarry(t *testing.T) {
	order := func(s broker.OrderServer) []byte {
		o := broker.Order{V: 1, Flow: 9, Profile: s, Name: "db.example", Rule: 7, RuleSource: "system.xml:12"}
		o.Destination.Host, o.Destination.Port = "db.example", 5432
		text, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	for _, c := range []struct {
		name   string
		server broker.OrderServer
		want   string
	}{
		{"profile of our own", broker.OrderServer{ID: "gw", Host: "pinned.example", Port: 2222, User: "theirs"}, "mine@pinned.example -> db.example:5432"},
		{"profile without a login", broker.OrderServer{ID: "plain", Host: "pinned.example", Port: 22, User: "theirs"}, "theirs@pinned.example -> db.example:5432"},
		{"no profile, user given", broker.OrderServer{ID: "x", Host: "pinned.example", Port: 22, User: "theirs"}, "theirs@pinned.example -> db.example:5432"},
		{"no profile, no user", broker.OrderServer{ID: "x", Host: "pinned.example", Port: 22}, "me@pinned.example -> db.example:5432"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, set(t, filter.Block)) // our rules are not asked
			p := *b.Policy()
			p.Logins = map[string]string{"gw": "mine"}
			p.Profiles = map[string]*profiles.Profile{"gw": {ID: "gw", Host: "elsewhere", Port: 22, User: "mine"},
				"plain": {ID: "plain", Host: "elsewhere", Port: 22, User: "me"}}
			b.SetPolicy(&p)
			b.capture.ID, b.capture.Names = service.System, nil
			a := capturetest.NewAttempt("203.0.113.7:5432")
			a.Order = order(c.server)
			b.source.Offer(a)
			if !a.Outcome().Admitted {
				t.Fatal("not admitted")
			}
			if flows := b.Flows(); len(flows) != 1 || flows[0].By != broker.BySystem {
				t.Errorf("listed as %+v", flows)
			}
			talk(t, a)
			rec := <-b.records.ch
			if rec.Reason != audit.Carried || rec.Capture != "system" || rec.Rule != 7 || rec.RuleSource != "system.xml:12" || rec.Name != "db.example" || rec.Action != "TUNNEL" {
				t.Errorf("recorded %+v", rec)
			}
			if !slices.Equal(b.opener.opened, []string{c.want}) {
				t.Errorf("opened %q, want %q", b.opener.opened, c.want)
			}
		})
	}
}

// A password is not sent to another server than the one it was given for.
func TestCarrierKeepsPasswords(t *testing.T) {
	b := newBench(t, nil)
	var seen []*profiles.Profile
	b.opener.seen = func(p *profiles.Profile) { seen = append(seen, p) }
	p := *b.Policy()
	p.Profiles = map[string]*profiles.Profile{"gw": {ID: "gw", Host: "gw.example", Port: 22, User: "u", PasswordText: "secret", Identities: []string{"/k"},
		HostKeyPolicy: profiles.TOFU, Gateway: &profiles.Profile{Host: "not.used"}}}
	b.SetPolicy(&p)
	for _, host := range []string{"gw.example", "other.example"} {
		a := capturetest.NewAttempt("203.0.113.7:5432")
		a.Order = fmt.Appendf(nil, `{"v":1,"profile":{"id":"gw","host":%q,"port":22,"gateway":{"id":"y","host":"bastion","port":24}},"destination":{"host":"d","port":1}}`, host)
		b.source.Offer(a)
		a.Outcome()
		talk(t, a)
		<-b.records.ch
	}
	if len(seen) != 2 || seen[0].PasswordText != "secret" || seen[1].PasswordText != "" || seen[1].HostKeyPolicy != profiles.TOFU ||
		!slices.Equal(seen[1].Identities, []string{"/k"}) {
		t.Fatalf("used %+v", seen)
	}
	if gw := seen[0].Gateway; gw == nil || gw.Host != "bastion" || gw.Port != 24 || gw.User != "me" {
		t.Errorf("went through %+v", gw)
	}
}

// A carrier's refusal says why.
func TestCarrierRefuses(t *testing.T) {
	good := `{"v":1,"profile":{"id":"gw","host":"h","port":22},"destination":{"host":"d","port":1}}`
	for _, c := range []struct {
		order  string
		err    error
		want   capture.Refusal
		reason audit.Reason
	}{
		{good, profiles.ErrHostKey, capture.Unreachable, audit.HostKey},
		{good, profiles.ErrRefused, capture.Refused, audit.RefusedByDestination},
		{good, profiles.ErrAuth, capture.Unreachable, audit.AuthFailed},
		{`{"v":2}`, nil, capture.Unreachable, audit.ProfileError},
		{`{`, nil, capture.Unreachable, audit.ProfileError},
	} {
		b := newBench(t, nil)
		b.opener.err = c.err
		a := capturetest.NewAttempt("203.0.113.7:5432")
		a.Order = []byte(c.order)
		b.source.Offer(a)
		got := a.Outcome()
		var reply broker.Reply
		if err := json.Unmarshal([]byte(got.Text), &reply); err != nil || reply.Reason != c.reason.String() || reply.Error == "" || got.Refusal != c.want {
			t.Errorf("%s, %v: %+v, %v", c.order, c.err, got, err)
		}
		if rec := <-b.records.ch; rec.Reason != c.reason {
			t.Errorf("recorded %+v", rec)
		}
	}
}

func FuzzParseOrder(f *testing.F) {
	f.Add([]byte(`{"v":1,"flow":3,"profile":{"id":"gw","host":"h","port":22,"user":"u","gateway":{"id":"","host":"g","port":1}},"destination":{"host":"d","port":1}}`))
	f.Add([]byte(`{"v":1}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		o, err := broker.ParseOrder(payload)
		if err != nil {
			return
		}
		again, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := broker.ParseOrder(again); err != nil {
			t.Fatalf("%s is refused as %s: %v", payload, again, err)
		}
		for s := &o.Profile; s != nil; s = s.Gateway {
			if profiles.CheckHost(s.Host) != nil || s.Port == 0 || s.User != "" && profiles.CheckUser(s.User) != nil {
				t.Fatalf("%+v came through", s)
			}
		}
	})
}

// Where the kernel has a way out, what goes in clear is left to it; but a made-up
// address leads nowhere, so its name is dialed.
func TestWayOut(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed := make(chan string, 1)
	tunnel := filter.Rule{Action: filter.Tunnel, Profile: "gw", FallbackToPlain: true}
	for _, c := range []struct {
		name   string
		rule   filter.Rule
		dst    string
		reason audit.Reason
		dialed string
	}{
		{"direct", filter.Rule{Action: filter.Direct}, "203.0.113.9:80", audit.Passed, ""},
		{"direct by name", filter.Rule{Action: filter.Direct, Host: pattern(t, `db\.example`)}, "203.0.113.7:80", audit.Passed, ""},
		{"fallback", tunnel, "203.0.113.7:80", audit.Fallback, ""},
		{"direct to a made-up address", filter.Rule{Action: filter.Direct}, "198.18.0.1:80", audit.Direct, "in.corp:80"},
		{"fallback from a made-up address", tunnel, "198.18.0.1:80", audit.Fallback, "in.corp:80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newSystemBench(t, set(t, filter.Block, c.rule))
			b.opener.err = profiles.ErrConnect
			b.dial(l.Addr(), dialed)
			a := capturetest.NewAttempt(c.dst)
			a.CanPass = true
			b.source.Offer(a)
			if got := a.Outcome(); got.Passed != (c.dialed == "") {
				t.Errorf("outcome %+v", got)
			}
			if c.dialed != "" {
				if got := <-dialed; got != c.dialed {
					t.Errorf("dialed %s", got)
				}
				far, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				far.Close()
				a.Program().Close()
			}
			if rec := <-b.records.ch; rec.Reason != c.reason {
				t.Errorf("recorded %+v", rec)
			}
		})
	}
}

// One uid's flows are bounded, and another's are not touched by that.
func TestUserLimit(t *testing.T) {
	b := newSystemBench(t, set(t, filter.Direct, filter.Rule{Action: filter.Tunnel, Profile: "gw"}))
	b.MaxUserFlows = 2
	offer := func(uid uint32) (*capturetest.Attempt, bool) {
		a := capturetest.NewAttempt("203.0.113.7:23")
		a.At.UID = uid
		b.source.Offer(a)
		return a, a.Outcome().Admitted
	}
	var live []*capturetest.Attempt
	for range 2 {
		a, ok := offer(1000)
		if !ok {
			t.Fatal("refused below the limit")
		}
		live = append(live, a)
	}
	if _, ok := offer(1000); ok {
		t.Error("admitted beyond the limit")
	}
	if rec := <-b.records.ch; rec.Reason != audit.Limit || !strings.Contains(rec.Error, "uid 1000") {
		t.Errorf("recorded %+v", rec)
	}
	if limits := b.Totals(); limits.LimitedUser != 1 || limits.Limited != 0 {
		t.Errorf("counted %+v", limits)
	}
	other, ok := offer(1001)
	if !ok {
		t.Error("one user's flows count for another")
	}
	talk(t, live[0])
	<-b.records.ch
	// The record is written before the flow is forgotten.
	for deadline := time.Now().Add(10 * time.Second); b.Totals().Live > 2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a flow that has ended is not forgotten")
		}
	}
	again, ok := offer(1000)
	if !ok {
		t.Error("refused although one has ended")
	}
	for _, a := range []*capturetest.Attempt{live[1], other, again} {
		talk(t, a)
		<-b.records.ch
	}
}

// Each flow has the name, the groups and the names of its own uid.
func TestOwners(t *testing.T) {
	b := newSystemBench(t, set(t, filter.Direct,
		filter.Rule{Users: []string{"ann"}, Host: pattern(t, `ann\.example`), Action: filter.Block},
		filter.Rule{Groups: []string{"staff"}, Host: pattern(t, `bob\.example`), Action: filter.Block}))
	b.capture.Account = func(uid uint32) (string, []string) {
		return map[uint32]string{1: "ann", 2: "bob"}[uid], map[uint32][]string{1: {"users"}, 2: {"users", "staff"}}[uid]
	}
	b.capture.NamesOf = func(uid uint32) broker.Names {
		return knownNames{names: map[string][]string{"203.0.113.7": {map[uint32]string{1: "ann.example", 2: "bob.example"}[uid]}}, pool: netip.Prefix{}}
	}
	for uid, rule := range map[uint32]int{1: 1, 2: 2, 3: 0} {
		a := capturetest.NewAttempt("203.0.113.7:23")
		a.At.UID, a.CanPass = uid, true
		b.source.Offer(a)
		if got := a.Outcome(); got.Passed != (rule == 0) {
			t.Errorf("uid %d: %+v", uid, got)
		}
		if rec := <-b.records.ch; rec.Rule != rule || rec.UID != uid || rec.User != map[uint32]string{1: "ann", 2: "bob"}[uid] {
			t.Errorf("uid %d: recorded %+v", uid, rec)
		}
	}
}

// Where looking for the process is expensive, it is done for a rule alone.
func TestOriginOnlyForRules(t *testing.T) {
	for _, cheap := range []bool{true, false} {
		for _, asked := range []bool{true, false} {
			rule := filter.Rule{Action: filter.Direct}
			if asked {
				rule.Application = pattern(t, "telnet")
			}
			b := newSystemBench(t, set(t, filter.Block, rule))
			b.capture.FindOrigin = func() bool { return cheap }
			a := capturetest.NewAttempt("203.0.113.7:23")
			a.CanPass = true
			a.At.Origin = func() capture.Origin { return capture.Origin{Known: true, PID: 5, Exe: "/usr/bin/telnet"} }
			b.source.Offer(a)
			if !a.Outcome().Passed {
				t.Error("not passed")
			}
			if rec := <-b.records.ch; (rec.Program != "") != (cheap || asked) {
				t.Errorf("cheap %v, asked %v: recorded %+v", cheap, asked, rec)
			}
		}
	}
}

// A reload is for flows to come: those that live keep the generation they began with.
func TestOldFlowsKeepTheirRules(t *testing.T) {
	b := newSystemBench(t, set(t, filter.Direct, filter.Rule{Action: filter.Tunnel, Profile: "gw"}))
	old := b.source.Offer(capturetest.NewAttempt("203.0.113.7:23"))
	if !old.Outcome().Admitted {
		t.Fatal("not admitted")
	}
	p := *b.Policy()
	p.Generation, p.Rules = 4, set(t, filter.Block)
	b.SetPolicy(&p)
	fresh := b.source.Offer(capturetest.NewAttempt("203.0.113.7:23"))
	if got := fresh.Outcome(); got != (capturetest.Outcome{Refusal: capture.Refused}) {
		t.Errorf("outcome %+v", got)
	}
	if rec := <-b.records.ch; rec.Generation != 4 || rec.Reason != audit.Blocked {
		t.Errorf("recorded %+v", rec)
	}
	talk(t, old)
	if rec := <-b.records.ch; rec.Generation != 3 || rec.Reason != audit.Carried {
		t.Errorf("recorded %+v", rec)
	}
}
