package bench

import (
	"fmt"
	"testing"

	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

// addGateway adds the way by mutual TLS to an ssh-gateway on the server, which stays
// there for all rounds, as sshd does. Both ends are of Go, whose TLS chooses
// TLS_AES_128_GCM_SHA256 where the processor has AES: the cipher of the other tunnels.
func (w *world) addGateway(t testing.TB) {
	t.Helper()
	u, programs := w.AddUser(t, "erin"), sut.Build(t)
	g := w.Server.StartGateway(t, sut.Program(t, "ssh-gateway"), w.AddUser(t, "gateway"), fmt.Sprintf(`
  - name: target
    backend:
      http_connect: true
      allow_patterns: [{cidrs: [%s/32], ports: {port_list: [%d, %d]}}]
    policy: staff
`, w.Server.Addr4, closedPort, closedPort+1), "limits: {flows: 20000, flows_per_identity: 20000, connects_per_second: 100000}")
	g.Trust(t, u)
	u.Write(t, ".ssh2/ssh-broker-config.xml", "<secsh-broker><profiles>"+g.Profile("p", "")+
		`</profiles><filter-engine><rule action="TUNNEL" profile-id="p"/></filter-engine></secsh-broker>`, 0o600)
	w.ways = append(w.ways, &way{name: byTLS, run: runCapture(u, programs.Dir)})
	t.Cleanup(func() { // after a failure; before the network goes
		w.Client.Run(t, netns.Cmd{Args: []string{programs.Ctl, "stop", "--drain", "0"}, User: u})
	})
}
