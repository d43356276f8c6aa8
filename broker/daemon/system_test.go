package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sshbroker/broker"
	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/capture"
	"sshbroker/capture/capturetest"
	"sshbroker/capture/service"
	"sshbroker/profiles"
)

// asSystem makes the rules those of the whole host.
func asSystem(o *Options) {
	o.System, o.Admins = true, -1
	o.Config.GlobalFile, o.Config.File = o.Config.File, ""
}

func TestSystemServes(t *testing.T) {
	b := begin(t, `capture-users="1000-2000,70000"`, direct+tunnel, asSystem)
	s := b.captured.source(t, service.System)
	spec := s.options.Spec
	want := capture.Spec{Pools: prefixes("198.18.0.0/15"), Rest: capture.Ask, RefuseUDP: true,
		Exempt: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.10:22"), netip.MustParseAddrPort("192.0.2.11:22")},
		Users:  []capture.UIDRange{{Lo: 1000, Hi: 2000}, {Lo: 70000, Hi: 70000}},
		Rules:  []capture.SpecRule{{Prefixes: prefixes("203.0.113.0/24"), Outcome: capture.Pass, Number: 1}}}
	if !reflect.DeepEqual(spec, want) {
		t.Errorf("spec %+v\nwant %+v", spec, want)
	}
	a := capturetest.NewAttempt("192.0.2.7:23")
	a.At.UID = 3999999999
	s.Offer(a)
	if !a.Outcome().Admitted {
		t.Fatal("not admitted")
	}

	rows := func() (row control.ChannelRow) {
		row, err := one[control.ChannelRow](b, control.OpChannels, nil)
		if err != nil {
			t.Fatal(err)
		}
		return row
	}
	if row := rows(); row.Owner != "3999999999" || row.Capture != "system" {
		t.Errorf("channel %+v", row)
	}
	eventually(t, "status", func() bool {
		row, err := one[control.StatusRow](b, control.OpStatus, nil)
		if err != nil {
			t.Fatal(err)
		}
		return row.Mode == control.ModeSystem && row.HeldSYN && row.Captures == 1 &&
			*row.Captured == control.CapturedStatus{Connected: true, Enabled: true, Held: true, Origins: true, Policy: "closed"}
	})

	b.rules(`capture-users="1000"`, block)
	if _, err := b.Reload(); err != nil {
		t.Fatal(err)
	}
	if got := within(t, s.specs); !slices.Equal(got.Users, []capture.UIDRange{{Lo: 1000, Hi: 1000}}) || got.Rules[0].Outcome != capture.Reset || got.Rest != capture.Pass {
		t.Errorf("spec after the reload %+v", got)
	}
	talk(t, a)
	if r := b.records(1)[0]; r["reason"] != "carried" || r["user"] != "3999999999" || r["generation"] != 1.0 || r["backend"] != "system" {
		t.Errorf("recorded %v", r)
	}
}

// A system broker is started before ssh-captured, or outlives it.
func TestSystemWaits(t *testing.T) {
	b := prepare(t, "", tunnel)
	b.captured.set(true)
	if err := b.start(asSystem); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if id := within(t, b.captured.tries); id != service.System {
			t.Errorf("asked for %q", id)
		}
	}
	row, err := one[control.StatusRow](b, control.OpStatus, nil)
	if err != nil || row.Captured == nil || row.Captured.Connected || !strings.Contains(row.Captured.Error, "not running") || row.HeldSYN {
		t.Errorf("status %+v, %v", row.Captured, err)
	}
	b.captured.set(false)
	s := b.captured.source(t, service.System)
	s.end(service.CodeReleased)
	b.captured.source(t, service.System)
}

func TestSystemRefusesToStart(t *testing.T) {
	for _, c := range []struct {
		name, attrs, rules, want string
	}{
		{"malformed", "", `<rule acton="BLOCK"/>`, "acton is not an attribute"},
		{"uids", `capture-users="1000-"`, block, "neither a uid nor a range"},
		{"root by its uid", `capture-users="0-2000"`, block, "has root, uid 0, in it"},
	} {
		b := prepare(t, c.attrs, c.rules)
		if err := b.start(asSystem); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	b := prepare(t, "", "")
	if err := os.WriteFile(b.file, []byte("<secsh-broker/>"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.start(asSystem); err == nil || !strings.Contains(err.Error(), "no filter-engine") {
		t.Errorf("no rules: %v", err)
	}
}

// A configuration that cannot be a system broker's does not replace one that can.
func TestSystemReload(t *testing.T) {
	b := begin(t, "", tunnel, asSystem)
	s := b.captured.source(t, service.System)
	for _, text := range []string{"<secsh-broker/>", `<secsh-broker><filter-engine><rule/></filter-engine></secsh-broker>`} {
		if err := os.WriteFile(b.file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Reload(); err == nil {
			t.Errorf("%s came into force", text)
		}
	}
	if b.broker.Policy().Generation != 1 || len(s.specs) > 0 {
		t.Error("something has changed")
	}
	b.rules(`ip-generate-start="198.19.0.0"`, tunnel)
	r, err := b.Reload()
	if err != nil || !slices.ContainsFunc(r.Warnings, func(w string) bool { return strings.Contains(w, "started again") }) {
		t.Errorf("other pool: %+v, %v", r, err)
	}
}

func TestForSystem(t *testing.T) {
	b := begin(t, "", block, nil)
	root := &loaded{present: true, host: config.Host{CaptureRoot: true}, policy: &broker.Policy{}}
	var answer *control.Error
	if err := b.forSystem(root, 0); !errors.As(err, &answer) || !strings.Contains(answer.Message, "runs as root") || answer.Hint == "" {
		t.Errorf("as root: %v", err)
	}
	if err := b.forSystem(root, 999); err != nil || root.users[0] != (capture.UIDRange{}) {
		t.Errorf("as a service: %v, %v", err, root.users)
	}
	own := &loaded{present: true, host: config.Host{CaptureUsers: []config.IDRange{{Lo: 900, Hi: 1100}}, UserBrokers: true}, policy: &broker.Policy{}}
	if err := b.forSystem(own, 999); err != nil || len(own.warn) != 1 || !own.policy.UserBrokers ||
		!slices.Equal(own.users, []capture.UIDRange{{Lo: 900, Hi: 998}, {Lo: 1000, Hi: 1100}}) {
		t.Errorf("as one of them: %v, %v, %v", err, own.users, own.warn)
	}
}

func TestSystemRefusesCaptures(t *testing.T) {
	b := begin(t, "", tunnel, asSystem)
	var answer *control.Error
	if err := within(t, b.capture(cgroupArgs()).done); !errors.As(err, &answer) || answer.Code != control.CodeForbidden || answer.Hint == "" {
		t.Errorf("refused with %v", err)
	}
}

// A user's own broker carries, unless the file says no.
func TestSystemHandsOver(t *testing.T) {
	for attrs, handed := range map[string]bool{"": true, `user-brokers="no"`: false} {
		b := begin(t, attrs, `<rule host="db\.example" action="TUNNEL" profile-id="plain"/>`+tunnel, asSystem)
		s := b.captured.source(t, service.System)
		a := capturetest.NewAttempt("192.0.2.7:23")
		var order broker.Order
		a.Carrier = func(p []byte) (service.Handed, error) {
			if err := json.Unmarshal(p, &order); err != nil {
				t.Error(err)
			}
			return service.Handed{Outcome: service.HandAdmitted}, nil
		}
		s.Offer(a)
		if got := a.Outcome(); got.Handed != handed {
			t.Errorf("%s: %+v", attrs, got)
		}
		if !handed {
			talk(t, a)
		} else if !reflect.DeepEqual(order.Profile, broker.OrderServer{ID: "gw", Host: "192.0.2.10", Port: 22, User: "tunnel"}) || order.Rule != 2 {
			t.Errorf("order %+v", order)
		}
		if r := b.records(1)[0]; (r["reason"] == "handed-over") != handed || len(b.records(1)) != 1 {
			t.Errorf("%s: recorded %v", attrs, r)
		}
	}
}

// One user's flows do not take what all share.
func TestSystemUserLimit(t *testing.T) {
	b := begin(t, "", tunnel, func(o *Options) { asSystem(o); o.MaxFlows = 5 })
	if b.MaxUserFlows != 2 {
		t.Fatalf("%d flows of one user", b.MaxUserFlows)
	}
	s := b.captured.source(t, service.System)
	var live []*capturetest.Attempt
	for i := range 3 {
		a := capturetest.NewAttempt("192.0.2.7:23")
		s.Offer(a)
		if got := a.Outcome(); got.Admitted != (i < 2) {
			t.Errorf("flow %d: %+v", i, got)
		} else if got.Admitted {
			live = append(live, a)
		}
	}
	if r := b.records(1)[0]; r["reason"] != "limit" {
		t.Errorf("recorded %v", r)
	}
	for _, a := range live {
		talk(t, a)
	}
}

// Explain in a system broker is for whoever asks, or for the user that is named.
func TestSystemExplains(t *testing.T) {
	b := begin(t, "", `<rule users="nobody" action="BLOCK"/>`+tunnel, asSystem)
	result := func(user string) (r *control.ExplainResult) {
		c := b.dial()
		defer c.Close()
		err := c.Call(t.Context(), control.OpExplain, control.ExplainArgs{User: user, Host: "192.0.2.7", Port: 23}, nil, func(m json.RawMessage) error {
			var row control.ExplainRow
			if err := json.Unmarshal(m, &row); err != nil {
				return err
			}
			if row.Result != nil {
				r = row.Result
			}
			return nil
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	own := ownAccount().name
	for user, want := range map[string][2]string{"": {own, "TUNNEL"}, "nobody": {"nobody", "BLOCK"}, "65534": {accountOf(65534).name, "BLOCK"}, "strange": {"strange", "TUNNEL"}} {
		if r := result(user); r.Owner != want[0] || r.Action != want[1] {
			t.Errorf("%q: %+v", user, r)
		}
	}
}

// Names are told to nobody who has not asked, and the socket's owner is who asked.
func TestSystemNames(t *testing.T) {
	b := begin(t, "", name+tunnel, asSystem)
	s := b.captured.source(t, service.System)
	p, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.options.Names(s.Served(), []net.PacketConn{p}, nil)
	addr := query(t, p.LocalAddr().String(), "db.example.")
	a := capturetest.NewAttempt(addr.String() + ":5432")
	a.At.UID = uint32(os.Getuid())
	s.Offer(a)
	if !a.Outcome().Admitted {
		t.Fatal("not admitted")
	}
	talk(t, a)
	if r := b.records(1)[0]; r["target"] != "db.example:5432" {
		t.Errorf("recorded %v", r)
	}
}

// A user's own broker carries what a system broker hands over, and stays for that.
func TestCarries(t *testing.T) {
	b := begin(t, "", block, func(o *Options) { o.OnDemand = true })
	s := b.captured.source(t, "carried")
	carried := func(host string) *capturetest.Attempt {
		a := capturetest.NewAttempt("203.0.113.7:23")
		a.Order = []byte(`{"v":1,"flow":4,"profile":{"id":"gw","host":"` + host + `","port":2022},"destination":{"host":"db.example","port":23},"rule":9,"rule_source":"system.xml:3"}`)
		s.Offer(a)
		return a
	}
	a := carried("192.0.2.77")
	if got := a.Outcome(); !got.Admitted {
		t.Fatalf("outcome %+v", got)
	}
	b.tunnels.mu.Lock()
	if p := b.tunnels.seen[0]; p.Host != "192.0.2.77" || p.Port != 2022 || p.User != "tunnel" {
		t.Errorf("went to %+v", p)
	}
	b.tunnels.mu.Unlock()
	b.leaveIfIdle()
	if b.ctx.Err() != nil {
		t.Error("left while it carried")
	}
	talk(t, a)
	if r := b.records(1)[0]; r["reason"] != "carried" || r["capture"] != "system" || r["rule"] != 9.0 || r["rule_source"] != "system.xml:3" {
		t.Errorf("recorded %v", r)
	}

	b.tunnels.mu.Lock()
	b.tunnels.err = profiles.ErrHostKey
	b.tunnels.mu.Unlock()
	refused := carried("192.0.2.78").Outcome()
	var reply broker.Reply
	if err := json.Unmarshal([]byte(refused.Text), &reply); err != nil || reply.Reason != "host-key" || refused.Refusal != capture.Unreachable {
		t.Errorf("outcome %+v, %v", refused, err)
	}
	if row, err := one[control.StatusRow](b, control.OpStatus, nil); err != nil || row.Captured == nil || row.Mode != control.ModeOnDemand {
		t.Errorf("status %+v, %v", row, err)
	}
	eventually(t, "the end of the last flow and client", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return !b.carries() && b.clients == 0
	})
	b.leaveIfIdle()
	if b.ctx.Err() == nil {
		t.Error("stays with nothing to do")
	}
}

// Without ssh-captured a broker is what it was.
func TestNothingToCarry(t *testing.T) {
	b := prepare(t, "", block)
	b.captured.set(true)
	if err := b.start(nil); err != nil {
		t.Fatal(err)
	}
	within(t, b.captured.tries)
	if row, err := one[control.StatusRow](b, control.OpStatus, nil); err != nil || row.Captured != nil || row.Mode != control.ModeDaemon {
		t.Errorf("status %+v, %v", row, err)
	}
}

func TestAccounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		a := newAccounts()
		a.find = func(uid uint32) account {
			asked++
			return account{name: "n"}
		}
		for range 3 {
			a.of(1)
		}
		if asked != 1 {
			t.Errorf("asked %d times", asked)
		}
		time.Sleep(accountLife + time.Second)
		if a.of(1); asked != 2 {
			t.Errorf("asked %d times after a minute", asked)
		}
		for uid := range uint32(3 * maxAccounts) {
			a.of(uid + 10)
		}
		if len(a.known) > maxAccounts {
			t.Errorf("%d are remembered", len(a.known))
		}
	})
	if a := accountOf(3999999999); a.name != "3999999999" || len(a.groups) > 0 {
		t.Errorf("an unknown uid is %+v", a)
	}
	if a := accountOf(0); a.name != "root" || !slices.Contains(a.groups, "root") {
		t.Errorf("root is %+v", a)
	}
}

func TestOrdinaryUIDs(t *testing.T) {
	for text, want := range map[string]capture.UIDRange{
		"": {Lo: 1000, Hi: 60000},
		"UID_MIN\t\t 500\n#UID_MAX 7\nUID_MAX 900": {Lo: 500, Hi: 900},
		"UID_MIN 0\nUID_MAX x":                     {Lo: 1000, Hi: 60000},
		"UID_MIN 9\nUID_MAX 8":                     {Lo: 1000, Hi: 60000},
		"UID_MINI 5":                               {Lo: 1000, Hi: 60000},
	} {
		if got := ordinaryUIDs(text); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	all := whoseFlows(config.Host{CaptureUsers: []config.IDRange{{Lo: 1, Hi: 4000000000}}}, 1500)
	for uid, want := range map[uint32]bool{0: false, 1: true, 1499: true, 1500: false, 1501: true, 61183: true, 61184: false, 65519: false, 65520: true,
		65533: true, 65534: false, 65535: true, 4000000000: true, 4000000001: false} {
		if got := slices.ContainsFunc(all, func(r capture.UIDRange) bool { return r.Lo <= uid && uid <= r.Hi }); got != want {
			t.Errorf("uid %d: %v", uid, got)
		}
	}
}

func TestAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAddresses()
		led := map[string]string{"a.example": "192.0.2.1", "b.example": "192.0.2.2"}
		a.lookup = func(_ context.Context, host string) ([]netip.Addr, error) {
			if led[host] == "" {
				return nil, errors.New("no such host")
			}
			return []netip.Addr{netip.MustParseAddr(led[host])}, nil
		}
		list := []server{{"a.example", 22}, {"a.example", 2222}, {"b.example", 22}, {"2001:db8::1", 22}}
		is := func(want string) {
			t.Helper()
			var got []string
			for _, at := range a.list() {
				got = append(got, at.String())
			}
			if strings.Join(got, " ") != want {
				t.Errorf("addresses %s\nwant %s", got, want)
			}
		}
		if errs := a.resolve(t.Context(), list); errs != nil {
			t.Error(errs)
		}
		is("192.0.2.1:22 192.0.2.1:2222 192.0.2.2:22 [2001:db8::1]:22")

		led["a.example"], led["b.example"] = "192.0.2.3", ""
		if errs := a.resolve(t.Context(), list); len(errs) != 1 || !strings.Contains(errs[0].Error(), "b.example") {
			t.Error(errs)
		}
		is("192.0.2.1:22 192.0.2.1:2222 192.0.2.2:22 192.0.2.3:22 192.0.2.3:2222 [2001:db8::1]:22")

		time.Sleep(addressLife + time.Second)
		a.resolve(t.Context(), list)
		is("192.0.2.2:22 192.0.2.3:22 192.0.2.3:2222 [2001:db8::1]:22") // what cannot be resolved stays

		a.resolve(t.Context(), list[:1])
		is("192.0.2.3:22")
	})
	p := &broker.Policy{Profiles: map[string]*profiles.Profile{
		"inner": {Host: "inner", Port: 1, Gateway: &profiles.Profile{Host: "outer", Port: 2}},
		"any":   {Host: "*", Port: 3}, "none": {Port: 4}, "b": {Host: "b", Port: 5, More: []profiles.Server{{Host: "z", Port: 9}}}, "c": {Host: "b", Port: 5, Proxy: "direct:///x;socks5://p:6/;http-connect://q/y"}},
		Defaults: &profiles.Profile{Proxy: "socks://r/"}}
	if got := servers(p); !slices.Equal(got, []server{{"b", 5}, {"outer", 2}, {"p", 6}, {"q", 80}, {"r", 1080}, {"z", 9}}) {
		t.Errorf("servers %v", got)
	}
}

// Administrators reach the control socket of a system broker.
func TestSystemAdmins(t *testing.T) {
	gid := os.Getgid()
	if gid == 0 {
		gid = 54330 // root may give it to any
	}
	b := begin(t, "", tunnel, func(o *Options) { asSystem(o); o.Admins = gid })
	if st, err := os.Stat(b.Listener.Address()); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("the socket has %v, %v", st.Mode(), err)
	}
	if b.server.Admins != gid {
		t.Errorf("gid %d is served", b.server.Admins)
	}
}
