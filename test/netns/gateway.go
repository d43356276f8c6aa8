package netns

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"sshbroker/broker/gateway/gatewaytest"
)

// GatewayPort is where a Gateway listens.
const GatewayPort = 8443

// Gateway is an ssh-gateway on a machine, and the authority that it believes.
type Gateway struct {
	Addr    netip.AddrPort
	CA      *gatewaytest.Authority
	User    *User // who runs it; its files are in the home directory
	Process *Process

	machine *Machine
	program string
}

// StartGateway starts program, an ssh-gateway, as u on port 8443 of the machine's IPv4
// address. services is what stands below that key of the configuration, where the policy
// staff is for everybody of example.com, and more what stands beside it.
func (m *Machine) StartGateway(t testing.TB, program string, u *User, services, more string) *Gateway {
	t.Helper()
	g := &Gateway{Addr: netip.AddrPortFrom(m.Addr4, GatewayPort), CA: gatewaytest.NewAuthority(t, "authority", nil), User: u, machine: m, program: program}
	u.Write(t, "ca.crt", string(gatewaytest.PEM("CERTIFICATE", g.CA.Cert.Raw)), 0o600)
	g.WritePair(t, u, "server", g.CA.Server(m.Addr4.String(), "gateway.example.com"))
	g.Configure(t, services, more)
	g.Start(t)
	return g
}

// Configure writes the configuration anew.
func (g *Gateway) Configure(t testing.TB, services, more string) {
	t.Helper()
	g.User.Write(t, "gateway.yaml", fmt.Sprintf(`listen: "%s"
certificates: [{certificate: server.crt, key: server.key}]
client_ca: ca.crt
audit: {file: audit.jsonl}
services:
%s
roles: [{name: staff, email_domains: [example.com]}]
policies: [{name: staff, roles: [staff]}]
%s
`, g.Addr, services, more), 0o600)
}

// Start starts it again after its end, and waits until it serves.
func (g *Gateway) Start(t testing.TB) {
	t.Helper()
	g.Process = g.machine.Start(t, Cmd{Args: []string{g.program, "--config", g.User.Path("gateway.yaml")}, User: g.User, Limit: -1})
	g.Process.WaitFor(t, "configuration in force")
}

// Trust gives u the authority's certificate as gateway-ca.crt, and one for ann@example.com
// with its key as gateway.crt and gateway.key, all below .ssh2.
func (g *Gateway) Trust(t testing.TB, u *User) {
	t.Helper()
	u.Write(t, ".ssh2/gateway-ca.crt", string(gatewaytest.PEM("CERTIFICATE", g.CA.Cert.Raw)), 0o600)
	g.WritePair(t, u, ".ssh2/gateway", g.CA.Client("ann@example.com"))
}

// Profile is a profile element for what Trust has written, with more inside of it.
func (g *Gateway) Profile(id, more string) string {
	return fmt.Sprintf(`<profile id="%s" protocol="tls" host="%s" port="%d">%s<tls ca-file="~/.ssh2/gateway-ca.crt" certificate="~/.ssh2/gateway.crt" key="~/.ssh2/gateway.key"/></profile>`,
		id, g.Addr.Addr(), g.Addr.Port(), more)
}

// WritePair writes NAME.crt and NAME.key into a user's home directory.
func (g *Gateway) WritePair(t testing.TB, u *User, name string, pair tls.Certificate) {
	t.Helper()
	cert, key := gatewaytest.WritePair(t, t.TempDir(), "pair", pair)
	for suffix, file := range map[string]string{".crt": cert, ".key": key} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		u.Write(t, name+suffix, string(text), 0o600)
	}
}
