package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"sshbroker/broker/control"
)

var listenerRows = []control.ListenerRow{
	{ID: 1, Type: "tcp", Listen: "127.0.0.1:1143", Destination: "imap.example.com:143", Profile: "paper", Source: "/home/ann/.ssh2/ssh-broker-config.xml:12", Open: true, Since: since, Accepted: 7, Refused: 2, Live: 1},
	{ID: 3, Type: "socks-proxy", Listen: "[::]:1080", Relay: true, Source: "open-tunnel-listener", Error: "address already in use"},
	{ID: 4, Type: "socks", Listen: "127.0.0.1:1081", Server: "me@bastion:22", Source: "open-tunnel-listener", Open: true, Since: since},
}

func TestListListeners(t *testing.T) {
	address := fakeBroker(t, func(s *control.Server, _ func()) { s.Handle(control.OpListeners, rows(listenerRows...)) })
	code, out, errs := ctl(t, address, "list-tunnel-listeners", "-v")
	if code != exitDone || errs != "" {
		t.Errorf("code %d, %s", code, errs)
	}
	wants(t, out, "ID  TYPE", "127.0.0.1:1143", "imap.example.com:143", "paper", "its user", "2 connections were refused", "wanted by /home/ann",
		"the rules decide", "everybody", "not open: address already in use", "me@bastion:22")
	code, out, _ = ctl(t, address, "list-tunnel-listeners", "-s")
	if n := strings.Count(out, "\n"); code != exitDone || n != 3 {
		t.Errorf("code %d, %d lines", code, n)
	}
	wants(t, out, `"id":3,"type":"socks-proxy","listen":"[::]:1080","relay":true`)
	address = fakeBroker(t, func(s *control.Server, _ func()) { s.Handle(control.OpListeners, rows[control.ListenerRow]()) })
	if code, out, _ := ctl(t, address, "list-tunnel-listeners"); code != exitDone || out != "no listeners\n" {
		t.Errorf("code %d, %q", code, out)
	}
}

func TestOpenListener(t *testing.T) {
	var got shared[control.OpenListenerArgs]
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpOpenListener, func(_ context.Context, c *control.Call) error {
			var args control.OpenListenerArgs
			if err := c.Decode(&args); err != nil {
				return err
			}
			got.set(args)
			return c.Send(listenerRows[0])
		})
	})
	for line, want := range map[string]control.OpenListenerArgs{
		"1143 paper imap 143":                               {Type: "tcp", Listen: ":1143", Server: "paper", Host: "imap", Port: 143},
		"192.0.2.1:1143 me@b#2222 imap imap2 --allow-relay": {Type: "tcp", Listen: "192.0.2.1:1143", Server: "b", User: "me", ServerPort: 2222, Host: "imap", Port: 143, Relay: true},
		"0 a@b@c --type socks":                              {Type: "socks", Listen: ":0", Server: "c", User: "a@b"},
		"*:1080 --type socks-proxy":                         {Type: "socks-proxy", Listen: "*:1080"},
		"3128 gw --type http-connect-chain --service c":     {Type: "http-connect-chain", Listen: ":3128", Server: "gw", Service: "c"},
		"0 gw --service db":                                 {Type: "tcp", Listen: ":0", Server: "gw", Service: "db"},
		"[::1]:3128 --type http-connect":                    {Type: "http-connect", Listen: "[::1]:3128"},
	} {
		code, out, errs := ctl(t, address, append([]string{"open-tunnel-listener"}, strings.Fields(line)...)...)
		if code != exitDone || out != "listener 1 at 127.0.0.1:1143\n" || got.get() != want {
			t.Errorf("%s: code %d, %q, %q\n got %+v\nwant %+v", line, code, out, errs, got.get(), want)
		}
	}
	for line, want := range map[string]string{
		"":                                   "--type tcp takes: [ADDRESS:]PORT [USER@]SERVER[#PORT] HOST PORT",
		"1 b h":                              "--type tcp takes",
		"1 b h x":                            `"x" is not a port`,
		"1 b#0 h 1":                          `"0" is not a port`,
		"1 @b h 1":                           "names no user",
		"1 u@ h 1":                           "names no server",
		"1 b --type socks-proxy":             "--type socks-proxy takes: [ADDRESS:]PORT",
		"1 --type socks":                     "--type socks takes",
		"1 gw h 1 --service db":              "--type tcp takes: [ADDRESS:]PORT SERVER",
		"1 --type http-connect --service db": "the rules decide",
		"1 --type ftp":                       "not built yet",
		"1 --type remote":                    "it is one of tcp, socks",
	} {
		code, _, errs := ctl(t, address, append([]string{"open-tunnel-listener"}, strings.Fields(line)...)...)
		if code != exitUsage || !strings.Contains(errs, want) {
			t.Errorf("%s: code %d, %q", line, code, errs)
		}
	}
}

func TestCloseListener(t *testing.T) {
	var got shared[string]
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpCloseListener, func(_ context.Context, c *control.Call) error {
			var args control.CloseListenerArgs
			if err := c.Decode(&args); err != nil {
				return err
			}
			if args.ID == 9 {
				return fmt.Errorf("listener 9: there is no such listener")
			}
			got.set(got.get() + fmt.Sprintf("%d %s;", args.ID, args.Listen))
			return nil
		})
	})
	if code, _, errs := ctl(t, address, "close-tunnel-listener", "3", ":1080", "[::1]:9"); code != exitDone || got.get() != "3 ;0 :1080;0 [::1]:9;" {
		t.Errorf("code %d, %q, %q", code, errs, got.get())
	}
	got.set("")
	if code, _, errs := ctl(t, address, "close-tunnel-listener", "9", "3"); code != exitFailed || !strings.Contains(errs, "no such listener") || got.get() != "3 ;" {
		t.Errorf("code %d, %q, %q", code, errs, got.get())
	}
	if code, _, _ := ctl(t, address, "close-tunnel-listener"); code != exitUsage {
		t.Errorf("code %d", code)
	}
}

// farEnd is a broker's side of connect: it answers with far's doing.
func farEnd(t *testing.T, far func(c *net.TCPConn)) string {
	return fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpConnect, func(_ context.Context, call *control.Call) error {
			var args control.ConnectArgs
			if err := call.Decode(&args); err != nil {
				return err
			}
			if args.Host == "blocked" {
				return &control.Error{Code: control.CodeRefused, Message: "BLOCK to blocked: refused"}
			}
			if args.Host != "db" || args.Port != 5432 {
				return fmt.Errorf("asked for %+v", args)
			}
			files := call.Files()
			c, err := net.FileConn(files[0])
			files[0].Close()
			if err != nil {
				return err
			}
			if err := call.Send(control.ConnectRow{Connected: true}); err != nil {
				return err
			}
			far(c.(*net.TCPConn))
			c.Close()
			return nil
		})
	})
}

func TestConnect(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 1<<16)
	run := func(address, host, input string) (int, string, string) {
		var out, errs bytes.Buffer
		code := run(t.Context(), []string{"-a", address, "connect", host, "5432"}, strings.NewReader(input), &out, &errs)
		return code, out.String(), errs.String()
	}
	// The far side answers after it has heard the end.
	address := farEnd(t, func(c *net.TCPConn) {
		all, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		c.Write(all)
	})
	if code, out, errs := run(address, "db", big); code != exitDone || out != big || errs != "" {
		t.Errorf("code %d, %d bytes, %q", code, len(out), errs)
	}
	// It ends its direction first, and hears the rest.
	heard := make(chan string, 1)
	address = farEnd(t, func(c *net.TCPConn) {
		io.WriteString(c, "bye")
		c.CloseWrite()
		all, _ := io.ReadAll(c)
		heard <- string(all)
	})
	if code, out, errs := run(address, "db", big); code != exitDone || out != "bye" || errs != "" || <-heard != big {
		t.Errorf("code %d, %q, %q", code, out, errs)
	}
	address = farEnd(t, func(c *net.TCPConn) {
		c.SetLinger(0)
		c.Close()
	})
	if code, _, errs := run(address, "db", ""); code != exitFailed || !strings.Contains(errs, "reset") {
		t.Errorf("a reset: code %d, %q", code, errs)
	}
	if code, _, errs := run(address, "blocked", ""); code != exitFailed || !strings.Contains(errs, "BLOCK to blocked") {
		t.Errorf("blocked: code %d, %q", code, errs)
	}
	if code, _, _ := ctl(t, address, "connect", "db", "nope"); code != exitUsage {
		t.Errorf("code %d", code)
	}
	if code, _, _ := ctl(t, "/nonexistent/broker", "connect", "db", "1"); code != exitNoBroker {
		t.Errorf("without a broker: code %d", code)
	}
}
