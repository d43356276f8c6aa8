package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"sshbroker/broker/control"
	"sshbroker/profiles"
	"sshbroker/profiles/proxy"
)

// write writes a configuration as a whole.
func (b *bench) write(format string, args ...any) {
	b.t.Helper()
	text := `<secsh-broker><profiles><profile id="gw" host="192.0.2.10" user="tunnel"/><profile id="up" host="192.0.2.11" user="u" %s</profiles>%s</secsh-broker>`
	if err := os.WriteFile(b.file, fmt.Appendf(nil, text, args[0], fmt.Sprintf(format, args[1:]...)), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) reload() {
	b.t.Helper()
	if _, err := one[control.ReloadResult](b, control.OpReload, nil); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) listeners() []control.ListenerRow {
	b.t.Helper()
	return all[control.ListenerRow](b, control.OpListeners)
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// echoes says something by a new connection and wants it back, with its end.
func echoes(c net.Conn, err error) error {
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(c, "hello")
	c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
		return fmt.Errorf("echo %q, %w", got, err)
	}
	return nil
}

const noTunnels = `/>`

// A static tunnel is there from the start; its server is connected to at first use; what
// comes through it is recorded as everything else.
func TestStaticTunnel(t *testing.T) {
	b := prepare(t, "", "")
	port := freePort(t)
	b.write(`<static-tunnels><tunnel listen-port="%d" dst-host="db.internal" dst-port="5432" profile="gw"/></static-tunnels>`, noTunnels, port)
	if err := b.start(nil); err != nil {
		t.Fatal(err)
	}
	at := fmt.Sprintf("127.0.0.1:%d", port)
	if l := b.listeners(); len(l) != 1 || !l[0].Open { // at the first answer of the broker
		t.Fatalf("listeners %+v", l)
	}
	if n := len(b.pool.List()); n != 0 {
		t.Errorf("%d connections before the first use", n)
	}
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	// A program that is gone before it was found has no name in the record.
	eventually(t, "the program to be found", func() bool { f := b.broker.Flows(); return len(f) == 1 && f[0].Record.Program != "" })
	if err := echoes(c, nil); err != nil {
		t.Fatal(err)
	}
	r := b.records(1)[0]
	exe, _ := os.Executable()
	if r["reason"] != "carried" || r["action"] != "TUNNEL" || r["profile"] != "gw" || r["target"] != "db.internal:5432" || r["server"] != "tunnel@192.0.2.10:22" ||
		r["backend"] != "listener" || r["capture"] != "listener-1" || r["program"] != exe || r["bytes_up"] != 5.0 || r["up_end"] != "eof" {
		t.Errorf("record %v", r)
	}
	if l := b.listeners()[0]; l.Type != "tcp" || l.Listen != at || l.Destination != "db.internal:5432" || l.Profile != "gw" || l.Accepted != 1 || !strings.HasPrefix(l.Source, b.file) {
		t.Errorf("row %+v", l)
	}
	if row, err := one[control.StatusRow](b, control.OpStatus, nil); err != nil || row.Listeners != 1 || len(row.ListenerErrors) != 0 {
		t.Errorf("status %+v, %v", row, err)
	}

	// The far side's no is a reset.
	b.tunnels.mu.Lock()
	b.tunnels.err = errors.New("no")
	b.tunnels.mu.Unlock()
	b.pool.Retire(func(profiles.Key) bool { return false })
	eventually(t, "the end of the transport", func() bool { return len(b.pool.List()) == 0 || !b.pool.List()[0].Connected })
	if err := echoes(net.Dial("tcp", at)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a tunnel that fails: %v", err)
	}

	// A reload opens and closes what has changed, and nothing else.
	second := freePort(t)
	b.write(`<static-tunnels><tunnel listen-port="%d" dst-host="db.internal" dst-port="5432" profile="gw"/><tunnel type="socks-proxy" listen-port="%d"/></static-tunnels><filter-engine/>`, noTunnels, port, second)
	b.reload()
	eventually(t, "the second listener", func() bool { l := b.listeners(); return len(l) == 2 && l[1].Open })
	if l := b.listeners(); l[0].ID != 1 || l[0].Accepted != 2 {
		t.Errorf("the first was opened anew: %+v", l)
	}
	b.write(``, noTunnels)
	b.reload()
	if l := b.listeners(); len(l) != 0 {
		t.Errorf("left %+v", l)
	}

	// A port that is taken is said to be, and opened once it is free.
	taken, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	b.write(`<static-tunnels><tunnel listen-port="%d" dst-host="d" dst-port="1" profile="gw"/></static-tunnels>`, noTunnels, port)
	b.reload()
	eventually(t, "the error", func() bool {
		l := b.listeners()
		return len(l) == 1 && strings.Contains(l[0].Error, "address already in use")
	})
	if row, err := one[control.StatusRow](b, control.OpStatus, nil); err != nil || len(row.ListenerErrors) != 1 || !strings.Contains(row.ListenerErrors[0], at) {
		t.Errorf("status %+v, %v", row, err)
	}
	taken.Close()
	eventually(t, "the port", func() bool { return b.listeners()[0].Open })
}

// Programs of a proxy's are judged as captured ones.
func TestJudgedTunnels(t *testing.T) {
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	go func() {
		for {
			c, err := target.Accept()
			if err != nil {
				return
			}
			io.Copy(c, c)
			c.Close()
		}
	}()
	_, direct, _ := net.SplitHostPort(target.Addr().String())
	b := prepare(t, "", "")
	socks, connect, own := freePort(t), freePort(t), freePort(t)
	tunnels := fmt.Sprintf(`<static-tunnels><tunnel type="socks-proxy" listen-port="%d" dst-port="0" profile=""/><tunnel type="http-connect" listen-port="%d"/>
		<tunnel type="socks" listen-port="%d" profile="up"/></static-tunnels>`, socks, connect, own)
	b.write(tunnels+`<filter-engine>
		<rule host="db\.internal" action="TUNNEL" profile-id="gw" destination-port="77"/>
		<rule host="blocked\..*" action="BLOCK"/>
		<rule ip-address="127.0.0.0/8" ports="%s" action="DIRECT"/>
		<rule ip-address="10.0.0.0/8" action="TUNNEL" profile-id="up"/>
		<rule ip-address=".*" ports="9" action="TUNNEL" profile-id="gw" username="other"/>
		<rule ip-address=".*" action="BLOCK"/></filter-engine>`, noTunnels, direct)
	names := map[string]string{"ten.example": "10.1.2.3", "loop.example": "127.0.0.1"}
	if err := b.start(nil); err != nil {
		t.Fatal(err)
	}
	b.broker.Resolve = func(_ context.Context, name string) ([]netip.Addr, error) {
		if a, ok := names[name]; ok {
			return []netip.Addr{netip.MustParseAddr(a)}, nil
		}
		return nil, errors.New("no such name")
	}
	eventually(t, "the listeners", func() bool { l := b.listeners(); return len(l) == 3 && l[0].Open && l[1].Open && l[2].Open })
	n := 0
	for _, tt := range []struct {
		target string
		reason string
		record string // server, target, dst, name
	}{
		{"db.internal:5432", "carried", "tunnel@192.0.2.10:22 db.internal:77 0.0.0.0:5432 db.internal"},
		{"blocked.example:80", "blocked", "<nil> <nil> 0.0.0.0:80 blocked.example"},
		{"127.0.0.1:" + direct, "direct", "<nil> <nil> 127.0.0.1:" + direct + " <nil>"},
		{"loop.example:" + direct, "direct", "<nil> <nil> 127.0.0.1:" + direct + " loop.example"},
		{"10.9.9.9:80", "carried", "u@192.0.2.11:22 10.9.9.9:80 10.9.9.9:80 <nil>"},
		{"ten.example:80", "carried", "u@192.0.2.11:22 ten.example:80 10.1.2.3:80 ten.example"},
		{"unknown.example:9", "carried", "other@192.0.2.10:22 unknown.example:9 0.0.0.0:9 unknown.example"},
		{"unknown.example:80", "blocked", "<nil> <nil> 0.0.0.0:80 unknown.example"},
	} {
		for _, way := range []string{fmt.Sprintf("socks4a://127.0.0.1:%d/", socks), fmt.Sprintf("socks5://127.0.0.1:%d/", socks), fmt.Sprintf("http-connect://127.0.0.1:%d/", connect)} {
			set, err := proxy.Parse(way)
			if err != nil {
				t.Fatal(err)
			}
			err = echoes(proxy.Dialer{Dial: (&net.Dialer{}).DialContext}.DialContext(t.Context(), set, "tcp", tt.target))
			if (err == nil) == (tt.reason == "blocked") {
				t.Errorf("%s by %s: %v", tt.target, way, err)
			}
			n++
			r := b.records(n)[n-1]
			if got := fmt.Sprint(r["server"], " ", r["target"], " ", r["dst"], " ", r["name"]); r["reason"] != tt.reason || got != tt.record || r["backend"] != "listener" {
				t.Errorf("%s by %s: recorded %v %s, want %s %s", tt.target, way, r["reason"], got, tt.reason, tt.record)
			}
		}
	}
	// socks without the rules: all of it through its profile.
	set, _ := proxy.Parse(fmt.Sprintf("socks5://127.0.0.1:%d/", own))
	if err := echoes(proxy.Dialer{Dial: (&net.Dialer{}).DialContext}.DialContext(t.Context(), set, "tcp", "blocked.example:80")); err != nil {
		t.Error(err)
	}
	if r := b.records(n + 1)[n]; r["reason"] != "carried" || r["server"] != "u@192.0.2.11:22" || r["target"] != "blocked.example:80" {
		t.Errorf("recorded %v", r)
	}
}

// A name that cannot be looked up, while a rule may ask for its address, is not dialled in
// clear.
func TestJudgedUnknownName(t *testing.T) {
	b := prepare(t, "", "")
	socks := freePort(t)
	b.write(`<static-tunnels><tunnel type="socks-proxy" listen-port="%d"/></static-tunnels><filter-engine><rule ip-address="10.0.0.0/8" action="BLOCK"/></filter-engine>`, noTunnels, socks)
	if err := b.start(nil); err != nil {
		t.Fatal(err)
	}
	b.broker.Resolve = func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("not today") }
	eventually(t, "the listener", func() bool { return b.listeners()[0].Open })
	set, _ := proxy.Parse(fmt.Sprintf("socks5://127.0.0.1:%d/", socks))
	if err := echoes(proxy.Dialer{Dial: (&net.Dialer{}).DialContext}.DialContext(t.Context(), set, "tcp", "localhost:1")); err == nil || !strings.Contains(err.Error(), "host unreachable") {
		t.Error(err)
	}
	if r := b.records(1)[0]; r["reason"] != "name-not-found" || !strings.Contains(fmt.Sprint(r["error"]), "look up localhost: not today") {
		t.Errorf("recorded %v", r)
	}
}

// Tunnels of a profile come and go with its connection.
func TestLocalTunnel(t *testing.T) {
	b := prepare(t, "", "")
	port := freePort(t)
	b.write(``, fmt.Sprintf(`connect-on-startup="yes"><tunnels><local-tunnel listen-port="%d" dst-host="imap" dst-port="143"/></tunnels></profile>`, port))
	b.tunnels.err = errors.New("not yet")
	if err := b.start(nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an attempt", func() bool { l := b.pool.List(); return len(l) == 1 && l[0].Failures > 0 })
	if l := b.listeners(); len(l) != 0 {
		t.Errorf("open without a connection: %+v", l)
	}
	b.tunnels.mu.Lock()
	b.tunnels.err = nil
	b.tunnels.mu.Unlock()
	eventually(t, "the listener", func() bool { l := b.listeners(); return len(l) == 1 && l[0].Open })
	if err := echoes(net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))); err != nil {
		t.Error(err)
	}
	if r := b.records(1)[0]; r["profile"] != "up" || r["target"] != "imap:143" {
		t.Errorf("recorded %v", r)
	}
	b.write(``, fmt.Sprintf(`><tunnels><local-tunnel listen-port="%d" dst-host="imap" dst-port="143"/></tunnels></profile>`, port))
	b.reload() // nothing keeps the connection any more
	eventually(t, "its end", func() bool { return len(b.listeners()) == 0 })
}

// Listeners by command.
func TestOpenListener(t *testing.T) {
	b := begin(t, "", tunnel, nil)
	open := func(args control.OpenListenerArgs) (control.ListenerRow, error) {
		return one[control.ListenerRow](b, control.OpOpenListener, args)
	}
	for _, bad := range []control.OpenListenerArgs{
		{Listen: ":0"}, {Type: "ftp", Listen: ":0"}, {Type: "tcp", Listen: ":0", Server: "h"}, {Type: "tcp", Listen: ":0", Host: "-x", Port: 1, Server: "h"},
		{Type: "tcp", Listen: "0", Host: "h", Port: 1, Server: "h"}, {Type: "tcp", Listen: ":x", Host: "h", Port: 1, Server: "h"},
		{Type: "tcp", Listen: "eth0:0", Host: "h", Port: 1, Server: "h"}, {Type: "tcp", Listen: ":0", Host: "h", Port: 1},
		{Type: "tcp", Listen: ":0", Host: "h", Port: 1, Server: "-h"}, {Type: "tcp", Listen: ":0", Host: "h", Port: 1, Server: "h", User: "a;b"},
		{Type: "socks", Listen: ":0", Host: "h", Server: "h"}, {Type: "socks-proxy", Listen: ":0", Server: "h"},
	} {
		var failure *control.Error
		if row, err := open(bad); !errors.As(err, &failure) || failure.Code != control.CodeBadRequest {
			t.Errorf("%+v: %+v, %v", bad, row, err)
		}
	}
	row, err := open(control.OpenListenerArgs{Type: "tcp", Listen: ":0", Host: "d", Port: 7, Server: "gw", User: "you", ServerPort: 2222})
	if err != nil || !row.Open || row.Profile != "gw" || row.Source != "open-tunnel-listener" || !strings.HasPrefix(row.Listen, "127.0.0.1:") {
		t.Fatalf("%+v, %v", row, err)
	}
	if err := echoes(net.Dial("tcp", row.Listen)); err != nil {
		t.Error(err)
	}
	if r := b.records(1)[0]; r["server"] != "you@192.0.2.10:2222" || r["target"] != "d:7" {
		t.Errorf("recorded %v", r)
	}
	if _, err := open(control.OpenListenerArgs{Type: "socks-proxy", Listen: row.Listen}); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a port that is taken: %v", err)
	}
	host, err := open(control.OpenListenerArgs{Type: "socks", Listen: ":0", Server: "bastion.example"})
	if err != nil || host.Server != "me@bastion.example:22" {
		t.Errorf("%+v, %v", host, err)
	}
	b.reload()
	if l := b.listeners(); len(l) != 2 {
		t.Errorf("after a reload: %+v", l)
	}
	_, port, _ := net.SplitHostPort(row.Listen)
	c := b.dial()
	defer c.Close()
	if err := c.Call(t.Context(), control.OpCloseListener, control.CloseListenerArgs{Listen: ":" + port}, nil, nil, nil); err != nil {
		t.Error(err)
	}
	if err := c.Call(t.Context(), control.OpCloseListener, control.CloseListenerArgs{ID: host.ID}, nil, nil, nil); err != nil {
		t.Error(err)
	}
	if err := c.Call(t.Context(), control.OpCloseListener, control.CloseListenerArgs{ID: host.ID}, nil, nil, nil); err == nil || !strings.Contains(err.Error(), "no such listener") {
		t.Error(err)
	}
	if l := b.listeners(); len(l) != 0 {
		t.Errorf("left %+v", l)
	}
}

// Another user's program gets nowhere, unless the listener is for everybody.
func TestListenerIsItsOwners(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	b := begin(t, "", tunnel, nil)
	for relay, want := range map[bool]string{false: "", true: "hello"} {
		row, err := one[control.ListenerRow](b, control.OpOpenListener, control.OpenListenerArgs{Type: "tcp", Listen: "127.0.0.1:0", Host: "d", Port: 7, Server: "gw", Relay: relay})
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(row.Listen)
		cmd := exec.Command("/bin/bash", "-c", `exec 3<>/dev/tcp/127.0.0.1/`+port+` && echo hello >&3 && head -1 <&3`)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65533, Gid: 65533}}
		out, _ := cmd.Output()
		if got := strings.TrimSpace(string(out)); got != want {
			t.Errorf("relay %t: %q", relay, got)
		}
		if l := b.listeners(); l[len(l)-1].Refused != 1 && !relay {
			t.Errorf("%+v", l)
		}
	}
	if r := b.records(1)[0]; r["uid"] != 65533.0 || r["user"] == "me" {
		t.Errorf("recorded %v", r)
	}
}

// Who may use a listener that is for everybody does not get to the others through it, as
// the program that connects to them would be the broker.
func TestRelayLeadsToNoOtherListener(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	b := begin(t, "", `<rule ip-address="127.0.0.0/8" action="DIRECT"/>`, nil)
	var rows [2]control.ListenerRow
	for i, args := range []control.OpenListenerArgs{{Type: "tcp", Listen: ":0", Host: "d", Port: 7, Server: "gw"}, {Type: "socks-proxy", Listen: "127.0.0.1:0", Relay: true}} {
		row, err := one[control.ListenerRow](b, control.OpOpenListener, args)
		if err != nil {
			t.Fatal(err)
		}
		rows[i] = row
	}
	own, relay := netip.MustParseAddrPort(rows[0].Listen).Port(), netip.MustParseAddrPort(rows[1].Listen).Port()
	for uid, want := range map[uint32]string{65533: "5b", 0: "5a"} { // rejected, granted
		cmd := exec.Command("/bin/bash", "-c", fmt.Sprintf(`exec 3<>/dev/tcp/127.0.0.1/%d && printf '\x04\x01\x%02x\x%02x\x7f\0\0\x01\0' >&3 && head -c 2 <&3 | od -An -tx1`, relay, own>>8, own&0xff))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.Output()
		if got := strings.TrimSpace(string(out)); got != "00 "+want {
			t.Errorf("uid %d: %q, %v", uid, got, err)
		}
	}
	b.Stop(0)
}

// connect joins a client's end to a flow.
func TestConnect(t *testing.T) {
	b := begin(t, "", `<rule host="no\.example" action="BLOCK"/>`+tunnel, nil)
	join := func(args control.ConnectArgs) (near *net.TCPConn, rows chan control.ConnectRow, done chan error) {
		near, far := pair()
		f, err := far.File()
		if err != nil {
			t.Fatal(err)
		}
		far.Close()
		rows, done = make(chan control.ConnectRow, 4), make(chan error, 1)
		c := b.dial()
		t.Cleanup(func() { c.Close(); near.Close() })
		go func() {
			defer f.Close()
			done <- c.Call(context.Background(), control.OpConnect, args, []*os.File{f}, func(m json.RawMessage) error {
				var row control.ConnectRow
				err := json.Unmarshal(m, &row)
				rows <- row
				return err
			}, nil)
		}()
		return near, rows, done
	}
	near, rows, done := join(control.ConnectArgs{Host: "db.internal", Port: 5432})
	if !within(t, rows).Connected {
		t.Error("not connected")
	}
	if err := echoes(near, nil); err != nil {
		t.Error(err)
	}
	if err := within(t, done); err != nil {
		t.Error(err)
	}
	r := b.records(1)[0]
	if r["reason"] != "carried" || r["target"] != "db.internal:5432" || r["capture"] != "connect" || r["uid"] != float64(os.Getuid()) || r["pid"] != float64(os.Getpid()) {
		t.Errorf("recorded %v", r)
	}
	_, _, done = join(control.ConnectArgs{Host: "no.example", Port: 1})
	var failure *control.Error
	if err := within(t, done); !errors.As(err, &failure) || failure.Code != control.CodeRefused || !strings.Contains(failure.Message, "BLOCK to no.example") {
		t.Errorf("%v", err)
	}
	for _, bad := range []control.ConnectArgs{{}, {Host: "h"}, {Host: "-h", Port: 1}} {
		_, _, done = join(bad)
		if err := within(t, done); !errors.As(err, &failure) || failure.Code != control.CodeBadRequest {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
