package main

import (
	"context"
	"strings"
	"testing"

	"sshbroker/broker/control"
)

func TestServices(t *testing.T) {
	var asked shared[control.ServicesArgs]
	offered := []control.ServiceRow{
		{Profile: "office", Name: "db", Kind: "postgresql", Target: "10.0.0.5:5432", Port: 15432, Description: "Production",
			Listen: []string{"127.0.0.1:15432"}, Open: []string{"open-tunnel-listener", "15432", "office", "--type", "tcp", "--service", "db"}},
		{Profile: "office", Name: "desktops", Kind: "rdp", Hosts: []string{"*.example.com", "10.1.0.0/16"}, Port: 8081, Overridable: true},
		{Profile: "office", Name: "rest", Kind: "http-connect", Hosts: []string{"*"}},
	}
	serve := func(rows ...control.ServiceRow) string {
		return fakeBroker(t, func(s *control.Server, _ func()) {
			s.Handle(control.OpServices, func(_ context.Context, c *control.Call) error {
				var args control.ServicesArgs
				if err := c.Decode(&args); err != nil {
					return err
				}
				asked.set(args)
				for _, r := range rows {
					if err := c.Send(r); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
	address := serve(offered...)
	code, out, errs := ctl(t, address, "services", "-v", "--profile", "office")
	if code != exitDone || errs != "" || asked.get().Profile != "office" {
		t.Errorf("code %d, %q, asked for %+v", code, errs, asked.get())
	}
	wants(t, out, "PROFILE  SERVICE", "10.0.0.5:5432", "127.0.0.1:15432", "Production", "*.example.com, 10.1.0.0/16", "8081 or another", "any",
		"ssh-broker-ctl open-tunnel-listener 15432 office --type tcp --service db")
	code, out, _ = ctl(t, address, "services", "-s")
	if n := strings.Count(out, "\n"); code != exitDone || n != len(offered) {
		t.Errorf("code %d, %d lines", code, n)
	}
	wants(t, out, `{"profile":"office","name":"rest","kind":"http-connect","hosts":["*"]}`)

	// One of two gateways cannot be asked: what the other offers is shown, and it has failed.
	code, out, errs = ctl(t, serve(append(offered, control.ServiceRow{Profile: "lab", Error: `profile "lab": cannot be reached`})...), "services")
	if code != exitFailed || !strings.Contains(errs, `profile "lab": cannot be reached`) || strings.Contains(out, "lab") {
		t.Errorf("code %d, %q, %q", code, out, errs)
	}
	wants(t, out, "desktops")
	if code, out, _ := ctl(t, serve(), "services"); code != exitDone || out != "no services are offered\n" {
		t.Errorf("code %d, %q", code, out)
	}
	if code, _, errs := ctl(t, address, "services", "office"); code != exitUsage {
		t.Errorf("code %d, %q", code, errs)
	}
}
