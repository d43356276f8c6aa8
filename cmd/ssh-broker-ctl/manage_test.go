package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"sshbroker/broker/control"
)

func TestListProfiles(t *testing.T) {
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpProfiles, rows(
			control.ProfileRow{ID: "p1", Name: "paper", Servers: []string{"a:22", "b:2222"}, User: "mail", Gateway: "gw", Exclusive: true, Startup: true, Connected: 2},
			control.ProfileRow{ID: "any", Servers: []string{}, User: "me", Proxy: true, Transports: 3}))
	})
	code, out, _ := ctl(t, address, "list-profiles", "-v")
	if code != exitDone {
		t.Errorf("code %d", code)
	}
	wants(t, out, "p1", "paper", "a:22, b:2222", "gw", "as programs ask", "a proxy may lead", "of its own", "up to 3 connections", "from the broker's start")
	if code, out, _ := ctl(t, address, "list-profiles", "-s", "paper"); code != exitDone || strings.Count(out, "\n") != 1 || !strings.Contains(out, `"id":"p1"`) {
		t.Errorf("code %d, %s", code, out)
	}
	if code, _, errs := ctl(t, address, "list-profiles", "x"); code != exitFailed || !strings.Contains(errs, "there is no profile x") {
		t.Errorf("code %d, %s", code, errs)
	}
}

func TestConnectionStatus(t *testing.T) {
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpConnections, rows(control.ConnectionRow{ID: 3, Server: "gw:22", State: "connected", HostKey: "ssh-ed25519 SHA256:x"}, control.ConnectionRow{ID: 4, Server: "other:22"}))
		s.Handle(control.OpChannels, rows(control.ChannelRow{ID: 7, Connection: 3, Dst: "192.0.2.1:23", Program: "/bin/telnet", PID: 9}, control.ChannelRow{ID: 8, Connection: 4, Dst: "192.0.2.1:24"}))
	})
	code, out, _ := ctl(t, address, "connection-status", "3")
	if code != exitDone || strings.Contains(out, "other") || strings.Contains(out, ":24") {
		t.Errorf("code %d\n%s", code, out)
	}
	wants(t, out, "gw:22", "SHA256:x", "channel 7: telnet[9] to 192.0.2.1:23")
	if code, out, _ := ctl(t, address, "connection-status", "-s", "4"); code != exitDone || !strings.Contains(out, `"channel_rows":[{"id":8`) {
		t.Errorf("code %d, %s", code, out)
	}
	if code, _, errs := ctl(t, address, "connection-status", "9"); code != exitFailed || !strings.Contains(errs, "no such connection") {
		t.Errorf("code %d, %s", code, errs)
	}
	if code, _, _ := ctl(t, address, "connection-status", "x"); code != exitUsage {
		t.Errorf("code %d", code)
	}
}

func TestListClients(t *testing.T) {
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpClients, rows(control.ClientRow{ID: 1, PID: 77, UID: 1000, Program: "/usr/bin/ssh-capture", Operation: "capture", Since: since}))
	})
	code, out, _ := ctl(t, address, "list-clients")
	if code != exitDone {
		t.Errorf("code %d", code)
	}
	wants(t, out, "ssh-capture[77]", "1000", "capture")
	if _, out, _ := ctl(t, address, "list-clients", "-s"); strings.Count(out, "\n") != 1 || !strings.Contains(out, `"pid":77`) {
		t.Error(out)
	}
}

func TestCloseByID(t *testing.T) {
	var got shared[string]
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		for _, op := range []string{control.OpCloseConnection, control.OpCloseChannel, control.OpDisconnect} {
			s.Handle(op, func(_ context.Context, c *control.Call) error {
				var args control.IDArgs
				if err := c.Decode(&args); err != nil {
					return err
				}
				if args.ID == 9 {
					return errors.New("there is none")
				}
				got.set(got.get() + fmt.Sprintf("%s %d;", op, args.ID))
				return nil
			})
		}
	})
	for _, name := range []string{"close-connection", "close-channel", "disconnect-client"} {
		got.set("")
		if code, out, errs := ctl(t, address, name, "3", "4"); code != exitDone || out+errs != "" || got.get() != fmt.Sprintf("%s 3;%s 4;", name, name) {
			t.Errorf("%s: code %d, %q, %q", name, code, errs, got.get())
		}
		if code, _, errs := ctl(t, address, name, "9", "4"); code != exitFailed || !strings.Contains(errs, name+": there is none") || !strings.HasSuffix(got.get(), "4;"+name+" 4;") {
			t.Errorf("%s: code %d, %q, %q", name, code, errs, got.get())
		}
		for _, args := range [][]string{{name}, {name, "x"}, {name, "0"}} {
			if code, _, _ := ctl(t, address, args...); code != exitUsage {
				t.Errorf("%v: code %d", args, code)
			}
		}
	}
}
