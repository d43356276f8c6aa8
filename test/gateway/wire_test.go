package gateway

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"sshbroker/broker/gateway/gatewaytest"
	"sshbroker/profiles"
	"sshbroker/profiles/tuntest"
	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

const secret = "TOP-SECRET-TEXT"

// Between client and gateway the wire shows TLS, and nothing of what is carried, for
// each way to ask; the same text in clear shows that it would have been found.
func TestWire(t *testing.T) {
	netns.RequireRoot(t)
	netns.RequireProgram(t, "curl", "curl")
	n := netns.New(t)
	site := n.Server.Listen(t, "tcp", "127.0.0.1:0")
	open := n.Server.Listen(t, "tcp", netip.AddrPortFrom(n.Server.Addr4, 8080).String())
	for _, l := range []net.Listener{site, open} {
		go answerAll(l)
	}
	ca := gatewaytest.NewAuthority(t, "authority", nil)
	dir := n.Bob.Home
	files := map[string]string{}
	put := func(u *netns.User, name string, content []byte) {
		files[name] = u.Write(t, name, string(content), 0o600)
	}
	put(n.Alice, "ca.pem", gatewaytest.PEM("CERTIFICATE", ca.Cert.Raw))
	put(n.Bob, "ca.pem", gatewaytest.PEM("CERTIFICATE", ca.Cert.Raw))
	tmp := t.TempDir()
	for name, pair := range map[string]func() (string, string){
		"server": func() (string, string) {
			return gatewaytest.WritePair(t, tmp, "server", ca.Server(n.Server.Addr4.String(), "web.test"))
		},
		"anna": func() (string, string) { return gatewaytest.WritePair(t, tmp, "anna", ca.Client("anna@example.com")) },
	} {
		cert, key := pair()
		owner := n.Alice
		if name == "server" {
			owner = n.Bob
		}
		put(owner, name+".pem", readAll(t, cert))
		put(owner, name+".key", readAll(t, key))
	}
	gateway := netip.AddrPortFrom(n.Server.Addr4, 8443)
	put(n.Bob, "gateway.yaml", fmt.Appendf(nil, `listen: %q
certificates: [{certificate: server.pem, key: server.key}]
client_ca: ca.pem
audit: {file: audit.jsonl}
services:
%s%s
roles: [{name: staff, email_domains: [example.com]}]
policies: [{name: staff, roles: [staff]}]
`, gateway, collection, target("web", "web.test", site.Addr())))
	program := n.Server.Start(t, netns.Cmd{Args: []string{sut.Program(t, "ssh-gateway"), "-f", dir + "/gateway.yaml"}, User: n.Bob, Limit: -1})
	program.WaitFor(t, "configuration in force")
	wire := n.Client.Capture(t, "to-server")
	curl := func(args ...string) {
		t.Helper()
		r := n.Client.Run(t, netns.Cmd{Args: append([]string{"curl", "-sS", "--max-time", "10"}, args...), User: n.Alice})
		if r.Code != 0 || r.Stdout != secret {
			t.Errorf("curl %q: %v", args, r)
		}
	}
	home := n.Alice.Path
	curl("--cacert", home("ca.pem"), "--cert", home("anna.pem"), "--key", home("anna.key"), "--connect-to", "web.test:8443:"+gateway.String(), "https://web.test:8443/")
	curl("-p", "--proxy", "https://"+gateway.String(), "--proxy-cacert", home("ca.pem"), "--proxy-cert", home("anna.pem"), "--proxy-key", home("anna.key"), "http://"+site.Addr().String()+"/")

	c := connector(t)
	c.Dial = func(_ context.Context, network, address string) (net.Conn, error) {
		return n.Client.Dial(network, address)
	}
	p := tuntest.ProfileFor(gateway.String(), "", "", "")
	p.Identities, p.KnownHosts = nil, nil
	p.Protocol = profiles.TLS
	p.TLS.CAFiles, p.TLS.Certificate, p.TLS.Key = []string{home("ca.pem")}, home("anna.pem"), home("anna.key")
	transport, err := c.Connect(t.Context(), p, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer transport.Close()
	s, err := transport.Open(t.Context(), profiles.Destination{Host: "127.0.0.1", Port: uint16(site.Addr().(*net.TCPAddr).Port)})
	if err != nil {
		t.Fatal(err)
	}
	s.SetDeadline(time.Now().Add(patience))
	io.WriteString(s, "GET / HTTP/1.0\r\n\r\n")
	text, err := io.ReadAll(s)
	if err != nil || len(text) < len(secret) || string(text[len(text)-len(secret):]) != secret {
		t.Errorf("our own client: %q, %v", text, err)
	}
	s.Close()
	if wire.Contains(t, []byte(secret)) || wire.Contains(t, []byte("HTTP/1.")) {
		t.Error("what is carried is on the wire in clear")
	}
	for _, stream := range wire.Streams(t) {
		if b := stream.Bytes; len(b) > 2 && (b[0] != 0x16 || b[1] != 3) {
			t.Errorf("a stream does not begin with a handshake of TLS: %x", b[:3])
		}
	}
	curl("http://" + open.Addr().String() + "/")
	if !wire.Contains(t, []byte(secret)) {
		t.Error("text in clear is not found on the wire: this test sees nothing")
	}
	program.Signal(t, 15)
	if r := program.Wait(t); r.Code != 0 {
		t.Errorf("ssh-gateway: %v", r)
	}
}

// answerAll answers each connection with the secret, in HTTP, once it has asked.
func answerAll(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			c.Read(make([]byte, 4096))
			fmt.Fprintf(c, "HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(secret), secret)
		}()
	}
}

func readAll(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
