package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"sshbroker/broker/control"
)

// rows are all that an operation answers with.
func rows[T any](b *bench, op string, args any) (list []T, err error) {
	c := b.dial()
	defer c.Close()
	err = c.Call(b.t.Context(), op, args, nil, func(m json.RawMessage) error {
		var row T
		err := json.Unmarshal(m, &row)
		list = append(list, row)
		return err
	}, nil)
	return list, err
}

// all is rows, of an operation that takes no arguments and does not fail.
func all[T any](b *bench, op string) []T {
	b.t.Helper()
	list, err := rows[T](b, op, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return list
}

func (b *bench) act(op string, id uint64) error {
	c := b.dial()
	defer c.Close()
	return c.Call(b.t.Context(), op, control.IDArgs{ID: id}, nil, nil, nil)
}

// A connection and a channel are closed by their numbers, and what they carry is reset.
func TestCloseByCommand(t *testing.T) {
	b := begin(t, "", tunnel, nil)
	row, err := one[control.ListenerRow](b, control.OpOpenListener, control.OpenListenerArgs{Type: "tcp", Listen: ":0", Host: "d", Port: 7, Server: "gw"})
	if err != nil {
		t.Fatal(err)
	}
	open := func() net.Conn {
		c, err := net.Dial("tcp", row.Listen)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	first, second := open(), open()
	channels := all[control.ChannelRow](b, control.OpChannels)
	if len(channels) != 2 {
		t.Fatalf("%+v", channels)
	}
	if err := b.act(control.OpCloseChannel, channels[0].ID); err != nil {
		t.Error(err)
	}
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a closed channel: %v", err)
	}
	if r := b.records(1)[0]; r["reason"] != "carried" || r["down_end"] != "cancelled" || r["error"] != "closed by command" {
		t.Errorf("recorded %v", r)
	}
	if err := b.act(control.OpCloseChannel, channels[0].ID); err == nil || !strings.Contains(err.Error(), "no such flow") {
		t.Error(err)
	}
	connections := all[control.ConnectionRow](b, control.OpConnections)
	if len(connections) != 1 || connections[0].Channels != 1 {
		t.Fatalf("%+v", connections)
	}
	if err := b.act(control.OpCloseConnection, connections[0].ID); err != nil {
		t.Error(err)
	}
	if err := b.act(control.OpCloseConnection, connections[0].ID); err == nil || !strings.Contains(err.Error(), "no such connection") {
		t.Error(err)
	}
	second.Close() // the transport of this test does not end its streams
	open()
	if n := len(b.tunnels.seen); n != 2 {
		t.Errorf("%d connects", n)
	}
}

func TestListProfiles(t *testing.T) {
	b := prepare(t, "", "")
	b.profilesOf(`<profile id="b" name="B" host="h,i:2222" user="u" transports="4" connect-on-startup="yes"><proxy ruleset="socks://p/"/></profile>
		<profile id="a" host="*" user="v" gateway-profile="b"><exclusive-connection enable="yes"/></profile>`)
	if err := b.start(nil); err != nil {
		t.Fatal(err)
	}
	b.connections("h:22")
	list := all[control.ProfileRow](b, control.OpProfiles)
	if got := fmt.Sprintf("%+v", list); got != "[{ID:a Name: Servers:[] User:v Gateway:b Proxy:false Exclusive:true Transports:1 Startup:false Connected:0} "+
		"{ID:b Name:B Servers:[h:22 i:2222] User:u Gateway: Proxy:true Exclusive:false Transports:4 Startup:true Connected:1}]" {
		t.Error(got)
	}
}

func TestClients(t *testing.T) {
	b := begin(t, "", tunnel, nil)
	c := b.capture(cgroupArgs())
	within(t, c.rows)
	list := all[control.ClientRow](b, control.OpClients)
	exe, _ := os.Executable()
	if len(list) != 2 || list[0].Operation != control.OpCapture || list[1].Operation != control.OpClients || list[0].PID != os.Getpid() || list[0].Program != exe {
		t.Fatalf("%+v", list)
	}
	if err := b.act(control.OpDisconnect, list[0].ID); err != nil {
		t.Error(err)
	}
	if err := within(t, c.done); !errors.Is(err, control.ErrBrokerGone) {
		t.Errorf("%v", err)
	}
	if err := b.act(control.OpDisconnect, list[0].ID); err == nil || !strings.Contains(err.Error(), "no such client") {
		t.Error(err)
	}
}
