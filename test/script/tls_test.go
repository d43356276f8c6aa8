package script

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"sshbroker/profiles/tlstun/wire"
	"sshbroker/profiles/tuntest"
)

// TestTLSTunnel: a captured program's flow goes through a gateway by mutual TLS, and both
// ends record it under one id; what the gateway refuses the program is refused, with the
// gateway's words in the record; a server that is not trusted is never gone around in
// clear; and the list of connections tells what they are.
func TestTLSTunnel(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		authority, other := tuntest.NewAuthority(t, "ours"), tuntest.NewAuthority(t, "theirs")
		var mu sync.Mutex
		var asked []wire.Request
		decide := func(_ context.Context, r wire.Request) (a wire.Answer) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, r)
			if r.Host == "forbidden.example" {
				a = wire.Answer{Status: wire.Prohibited, Detail: "not for you", Rule: "rule-7"}
			}
			return a
		}
		gateway := tuntest.StartGateway(t, authority, &tuntest.Gateway{Decide: decide})
		proxy := tuntest.StartProxy(t, authority, &tuntest.Proxy{})
		strange := tuntest.StartGateway(t, authority, &tuntest.Gateway{TLS: other.Server(t, wire.ALPN)})
		t.Cleanup(p.stopBroker)
		for name, from := range map[string]string{"ca.pem": authority.File, "me.pem": gateway.TLS.Certificate, "me.key": gateway.TLS.Key} {
			text, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			p.write(".ssh2/"+name, string(text), 0o600)
		}
		host, port, _ := net.SplitHostPort(p.echo())
		profile := func(id string, port uint16, more string) string {
			return fmt.Sprintf(`<profile id="%s" host="127.0.0.1" port="%d" protocol="tls">
				<tls ca-file="ca.pem" certificate="me.pem" key="me.key"%s/></profile>`, id, port, more)
		}
		rule := func(address, profile, destination string) string {
			return fmt.Sprintf(`<rule ip-address="%s/32" action="TUNNEL" profile-id="%s" destination="%s" destination-port="%s" fallback-to-plain="yes"/>`, address, profile, destination, port)
		}
		p.write(".ssh2/ssh-broker-config.xml", `<secsh-broker><profiles>`+
			profile("gw", gateway.Port, ` service="any"`)+profile("proxy", proxy.Port, ` carrier="connect"`)+profile("strange", strange.Port, "")+
			`</profiles><filter-engine>`+
			rule("192.0.2.7", "gw", host)+rule("192.0.2.8", "proxy", host)+rule("192.0.2.9", "strange", host)+
			strings.Replace(rule("192.0.2.10", "gw", "forbidden.example"), ` fallback-to-plain="yes"`, "", 1)+
			`</filter-engine></secsh-broker>`, 0o600)
		p.run("ssh-broker-ctl", "check-config", ".ssh2/ssh-broker-config.xml").require(t, 0).prints(t, ".ssh2/ssh-broker-config.xml: good\n")
		p.run("ssh-broker-ctl", "start").require(t, 0)
		say := func(address string) result {
			return p.run("ssh-capture", "bash", "-c", `exec 3<>/dev/tcp/`+address+`/7 && echo hello >&3 && read line <&3 && echo $line`)
		}

		say("192.0.2.7").require(t, 0).prints(t, "hello\n")
		carried := p.waitAudit(func(r map[string]any) bool { return r["reason"] == "carried" && r["profile"] == "gw" })
		mu.Lock()
		if len(asked) != 1 || asked[0].Flow == "" || asked[0].Flow != carried["flow_id"] || asked[0].Service != "any" {
			t.Errorf("the gateway was asked %+v, recorded is %v", asked, carried)
		}
		mu.Unlock()

		say("192.0.2.10").require(t, 1).says(t, "No route to host")
		refused := p.waitAudit(func(r map[string]any) bool { return r["reason"] == "prohibited" })
		if text := fmt.Sprint(refused["error"]); !strings.Contains(text, "not for you (rule rule-7)") {
			t.Errorf("recorded error %q", text)
		}

		say("192.0.2.8").require(t, 0).prints(t, "hello\n")
		say("192.0.2.9").require(t, 1).says(t, "No route to host")
		distrusted := p.waitAudit(func(r map[string]any) bool { return r["reason"] == "host-key" })
		if text := fmt.Sprint(distrusted["error"]); !strings.Contains(text, "comes from no authority that the profile trusts") {
			t.Errorf("recorded error %q", text)
		}

		list := p.run("ssh-broker-ctl", "list-connections", "-s").require(t, 0).stdout
		notes := make(map[string]map[string]any)
		for line := range strings.Lines(list) {
			var row map[string]any
			if err := json.Unmarshal([]byte(line), &row); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			notes[fmt.Sprint(row["profile"])] = row
		}
		if row := notes["gw"]; row["version"] != "TLS 1.3 ssh-broker/1" || row["expires"] == nil || row["note"] != nil {
			t.Errorf("gateway: %v", row)
		}
		if row := notes["proxy"]; row["note"] != "the proxy passes no end of one direction on" {
			t.Errorf("proxy: %v", row)
		}
	})
}
