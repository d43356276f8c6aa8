package script

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sshbroker/profiles/tuntest"
)

// TestAuthHandler: two connections of a capture wait while their owner is asked for the
// user name, the host key and the passphrase of the key, once each, in another terminal
// where ssh-broker-ctl auth-handler runs. What was answered is remembered until it is
// taken back.
func TestAuthHandler(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		key, err := tuntest.NewKeyPair("open sesame")
		if err != nil {
			t.Fatal(err)
		}
		_, server := tuntest.StartServer(t, &tuntest.Server{Authorized: []string{key.Public}})
		t.Cleanup(p.stopBroker)
		host, port, _ := net.SplitHostPort(p.echo())
		p.write("key", string(key.Private), 0o600)
		p.write(".ssh2/ssh-broker-config.xml", fmt.Sprintf(`<secsh-broker>
			<general><known-hosts directory="%%D/known" filename-format="plain"/></general>
			<default-settings><idle-timeout time="0"/></default-settings>
			<profiles><profile id="gw" host="127.0.0.1" port="%d" user="*">
				<user-identities><identity identity-file="%%D/key"/></user-identities></profile></profiles>
			<filter-engine><rule ip-address="192.0.2.7" action="TUNNEL" profile-id="gw" destination="%s" destination-port="%s"/></filter-engine>
			</secsh-broker>`, server.Port, host, port), 0o600)
		flow := `(exec 3<>/dev/tcp/192.0.2.7/7 && echo hello >&3 && read line <&3 && echo $line)`

		p.run("ssh-broker-ctl", "start").require(t, 0)
		p.run("ssh-capture", "bash", "-c", flow).require(t, 1) // nobody is there to ask
		tty := p.openShell()
		tty.say("ssh-broker-ctl auth-handler")
		tty.expect("questions of the broker come here")

		capture := p.command("ssh-capture", "bash", "-c", flow+" & "+flow+" & wait")
		out := start(t, capture)
		tty.expect("User name at 127.0.0.1:")
		tty.say("tester")
		tty.expect("is not known yet")
		tty.expect("SHA256:")
		tty.say("yes")
		tty.expect("Passphrase for key " + filepath.Join(p.home, "key") + ":")
		tty.say("open sesame")
		out.line("hello")
		out.line("hello")
		if err := capture.Wait(); err != nil {
			t.Error(err)
		}
		if !exists(filepath.Join(p.home, "known", fmt.Sprintf("key_%d_127.0.0.1.pub", server.Port))) {
			t.Error("the host key was not stored")
		}
		tty.press(ctrlC)
		tty.expect("out> ")

		// With nobody there any more, but what was said is remembered.
		p.run("ssh-capture", "bash", "-c", flow).require(t, 0).prints(t, "hello\n")
		if list := p.run("ssh-broker-ctl", "list-keys").require(t, 0).stdout; !strings.Contains(list, "open") {
			t.Errorf("keys:\n%s", list)
		}
		p.run("ssh-broker-ctl", "key-passphrase", "--clear", "key").require(t, 0).prints(t, "locked "+filepath.Join(p.home, "key")+"\n")
		p.run("ssh-capture", "bash", "-c", flow).require(t, 1)
		p.run("ssh-broker-ctl", "key-passphrase", "--passphrase-string=open sesame", "key").require(t, 0)
		p.run("ssh-capture", "bash", "-c", flow).require(t, 0).prints(t, "hello\n")

		probed := p.run("ssh-broker-ctl", "probe-key", fmt.Sprintf("127.0.0.1#%d", server.Port)).require(t, 0).stdout
		if strings.Count(probed, "\n") != 1 || !strings.Contains(probed, "SHA256:") || !strings.Contains(probed, "ssh-ed25519") {
			t.Errorf("probed %q", probed)
		}
		tty.say("exit")
		tty.wait()
	})
}

// TestChangedHostKey: a server with another key than the one on file gets no login and
// no connection, in clear neither, whatever the rule says of falling back; the record
// has the fingerprints of both keys.
func TestChangedHostKey(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		_, old := tuntest.StartServer(t, nil)
		_, server := tuntest.StartServer(t, nil)
		t.Cleanup(p.stopBroker)
		p.stored(old.KnownHosts[0], server.Port)
		host, port, _ := net.SplitHostPort(p.echo())
		for _, policy := range []string{"strict", "ask", "tofu"} {
			p.write(".ssh2/ssh-broker-config.xml", fmt.Sprintf(`<secsh-broker>
				<profiles><profile id="gw-%s" host="127.0.0.1" port="%d" user="tester">
					<server-authentication-methods><auth-server-publickey policy="%s"/></server-authentication-methods></profile></profiles>
				<filter-engine><rule ip-address="192.0.2.7" action="TUNNEL" profile-id="gw-%s" fallback-to-plain="yes" destination="%s" destination-port="%s"/></filter-engine>
				</secsh-broker>`, policy, server.Port, policy, policy, host, port), 0o600)
			p.run("ssh-broker-ctl", "start")
			p.run("ssh-broker-ctl", "reload").require(t, 0)
			p.run("ssh-capture", "bash", "-c", ": </dev/tcp/192.0.2.7/7").require(t, 1).says(t, "No route to host")
			p.waitAudit(func(r map[string]any) bool {
				text := fmt.Sprint(r["error"])
				return r["reason"] == "host-key" && r["profile"] == "gw-"+policy && strings.Contains(text, "THE HOST KEY HAS CHANGED") && strings.Count(text, "SHA256:") == 2
			})
		}
	})
}

// stored puts the key of a line of known_hosts where the broker looks for that of the
// server at a port of 127.0.0.1.
func (p *place) stored(knownHosts string, port uint16) {
	p.t.Helper()
	text, err := os.ReadFile(knownHosts)
	if err != nil {
		p.t.Fatal(err)
	}
	_, key, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	p.write(fmt.Sprintf(".ssh2/hostkeys/key_%d_127.0.0.1.pub", port), key+"\n", 0o600)
}
