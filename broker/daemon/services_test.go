package daemon

import (
	"context"
	"slices"
	"strings"
	"testing"

	"sshbroker/broker/control"
	"sshbroker/profiles"
	"sshbroker/profiles/tlstun/wire"
)

// offering is a gateway's transport.
type offering struct {
	*transport
	list []wire.Service
}

func (o offering) Services(context.Context) ([]wire.Service, error) { return o.list, nil }

// gateways makes transports of both kinds.
type gateways struct {
	*connector
	list []wire.Service
}

func (g gateways) Connect(ctx context.Context, p *profiles.Profile, via profiles.DialFunc, ask profiles.Prompter) (profiles.Transport, error) {
	t, err := g.connector.Connect(ctx, p, via, ask)
	if err != nil || !p.HasServices() {
		return t, err
	}
	return offering{t.(*transport), g.list}, nil
}

// What gateways offer is listed with the listeners that are there for it, and what they
// say of themselves can be shown on a terminal. A profile that leads to none says so.
func TestServices(t *testing.T) {
	b := prepare(t, "", "")
	b.write("", `/><profile id="tls" name="office" protocol="tls" host="192.0.2.11"><tls system-ca="yes" certificate="c" key="k"/></profile>`)
	list := []wire.Service{
		{Name: "db", Kind: "tcp", Target: "10.0.0.5:5432", Port: 15432},
		{Name: "web", Kind: "http-connect", Hosts: []string{"*.example.com", "\x1b[2J"}, Overridable: true, Description: "two\nlines"},
		{Name: "$(reboot)", Kind: "tcp", Target: "x:1"},
	}
	if err := b.start(func(o *Options) { o.Tunnels = gateways{b.tunnels, list} }); err != nil {
		t.Fatal(err)
	}
	ask := func(profile string) ([]control.ServiceRow, error) {
		return rows[control.ServiceRow](b, control.OpServices, control.ServicesArgs{Profile: profile})
	}
	opened, err := one[control.ListenerRow](b, control.OpOpenListener, control.OpenListenerArgs{Type: "tcp", Listen: ":0", Server: "tls", Service: "db"})
	if err != nil || opened.Service != "db" || opened.Destination != "" {
		t.Fatalf("%+v, %v", opened, err)
	}
	chain, err := one[control.ListenerRow](b, control.OpOpenListener, control.OpenListenerArgs{Type: "http-connect-chain", Listen: ":0", Server: "office"})
	if err != nil || chain.Type != "http-connect-chain" {
		t.Fatalf("%+v, %v", chain, err)
	}
	for _, profile := range []string{"", "tls", "office"} {
		offered, err := ask(profile)
		if err != nil || len(offered) != 3 {
			t.Fatalf("profile %q: %+v, %v", profile, offered, err)
		}
		if db := offered[0]; db.Name != "db" || db.Profile != "tls" || !slices.Equal(db.Listen, []string{opened.Listen}) ||
			strings.Join(db.Open, " ") != "open-tunnel-listener 15432 tls --type tcp --service db" {
			t.Errorf("db: %+v", db)
		}
		if web := offered[1]; web.Hosts[1] != "?[2J" || web.Description != "two lines" || !web.Overridable || !slices.Equal(web.Listen, []string{chain.Listen}) {
			t.Errorf("web: %+v", web)
		}
		if odd := offered[2]; odd.Open != nil {
			t.Errorf("a command for the shell: %q", odd.Open)
		}
	}
	for profile, want := range map[string]string{"gw": `profile "gw" leads to no ssh-gateway`, "none": `there is no profile "none"`} {
		if offered, err := ask(profile); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("profile %q: %+v, %v", profile, offered, err)
		}
	}
	for want, args := range map[string]control.OpenListenerArgs{
		"a service is the gateway's": {Type: "tcp", Listen: ":0", Server: "tls", Service: "db", Host: "h", Port: 1},
		"it has no service db":       {Type: "tcp", Listen: ":0", Server: "gw", Service: "db"},
		"neither the rules nor":      {Type: "http-connect", Listen: ":0", Service: "db"},
		"has":                        {Type: "tcp", Listen: ":0", Server: "tls", Service: "a b"},
	} {
		if _, err := one[control.ListenerRow](b, control.OpOpenListener, args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", args, err)
		}
	}
}
