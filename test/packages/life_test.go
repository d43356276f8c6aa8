package packages

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sshbroker/test/netns"
)

// Where the flows go: an address that only the server reaches, by the tunnel, and one
// that the client has a route to.
const (
	private  = "10.20.0.5:7000"
	public   = "10.99.1.2:7001"
	byTunnel = "10.20.0.5" // who has come there: the server itself
	inClear  = "10.99.1.1" // or the client
)

const systemRules = `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE secsh-broker SYSTEM "ssh-broker-ng-config-1.dtd">
<secsh-broker version="1.0">
  <profiles>
    <profile id="bastion" host="10.99.1.2" user="%s">
      <server-authentication-methods><auth-server-publickey policy="strict" /></server-authentication-methods>
    </profile>
  </profiles>
  <filter-engine crash-policy="closed">
    <rule ip-address="10.20.0.5/32" action="TUNNEL" profile-id="bastion" />
  </filter-engine>
</secsh-broker>
`

// TestLife follows the package on a Debian system, from its installation to its purge:
// the first captured command, rules for the whole host, dead daemons, an upgrade with
// live flows, a boot, the removal. The units are run by that system's systemd.
func TestLife(t *testing.T) {
	needLong(t)
	netns.RequireRoot(t)
	dir := t.TempDir()
	old, next := buildDeb(t, filepath.Join(dir, "old"), "1.0"), buildDeb(t, filepath.Join(dir, "new"), "1.1")
	for _, release := range []string{"bookworm", "trixie"} { // systemd 252 and 257
		t.Run(release, func(t *testing.T) {
			l := &life{debian: newDebian(t, release)}
			for to, from := range map[string]string{"old.deb": old["ssh-broker"], "new.deb": next["ssh-broker"],
				"old-gateway.deb": old["ssh-gateway"], "new-gateway.deb": next["ssh-gateway"]} {
				run(t, "/", nil, "cp", from, filepath.Join(l.root, "root", to))
			}
			run(t, "/", nil, "chroot", l.root, "useradd", "--create-home", "--shell", "/bin/bash", "alice")
			l.prepare(t)
			l.boot(t)
			l.before = l.state(t)
			l.install(t)
			l.firstCommand(t)
			l.usersUnit(t)
			l.wholeHost(t)
			l.deadDaemon(t)
			l.cannotStart(t)
			l.upgrade(t)
			l.reboot(t)
			l.remove(t)
			l.purge(t)
			l.gateway(t)
			l.leavesNothing(t)
			l.powerOff(t)
		})
	}
}

type life struct {
	*debian
	sshd   *netns.SSHD
	wire   *netns.Wire
	before []string // of state
}

// prepare furnishes the server.
func (l *life) prepare(t *testing.T) {
	t.Helper()
	if r := l.Server.Run(t, netns.Cmd{Args: []string{"ip", "addr", "add", "10.20.0.5/32", "dev", "lo"}}); r.Code != 0 {
		t.Fatal(r)
	}
	l.sshd = l.Server.StartSSHD(t, netns.SSHDOptions{})
	l.echo(t, private)
	l.echo(t, public)
	l.wire = l.Client.Capture(t, "to-server")
	l.write(t, "usr/local/bin/talk", talk, 0o755)
}

// syns are those that have left the client for the private address.
func (l *life) syns(t *testing.T) int {
	t.Helper()
	return len(l.wire.Packets(t, func(p netns.Packet) bool { return netns.NewConnections(p) && p.Outgoing && p.Dst.String() == private }))
}

// state is what a package could leave: files, units that are enabled, accounts, rules.
func (l *life) state(t *testing.T) []string {
	t.Helper()
	list := l.must(t, `find /etc /usr /var /opt /root /boot -xdev \( -path /var/log/journal -o -path /var/lib/dpkg -o -path /var/cache -o -path /var/lib/systemd -o -path /usr/local/bin \) -prune -o -print
ls /run; getent passwd; getent group; nft list tables; cat /proc/sys/net/ipv4/icmp_ratemask`)
	var kept []string
	passing := regexp.MustCompile(`-$|/\.pwd\.lock$|/ld\.so\.cache$|/machine-id$|/var/log/(dpkg\.log|lastlog|[bw]tmp|faillog)|/var/(spool|lib)/.*linger|alternatives\.log|^(user|systemd|log)$|/var/tmp/systemd-private-`)
	for line := range strings.SplitSeq(list, "\n") {
		if !passing.MatchString(line) {
			kept = append(kept, line)
		}
	}
	slices.Sort(kept)
	return kept
}

// install expects a service that runs, captures nothing, and has its directories.
func (l *life) install(t *testing.T) {
	t.Helper()
	l.must(t, "dpkg -i /root/old.deb")
	for script, want := range map[string]string{
		"systemctl is-active ssh-captured.socket ssh-captured.service":      "active\nactive",
		"systemctl is-enabled ssh-captured.socket ssh-captured.service":     "enabled\nenabled",
		"systemctl is-enabled ssh-broker-system.service || true":            "disabled",
		"systemctl --quiet --no-legend --failed":                            "",
		"nft list tables":                                                   "",
		"ssh-broker-g3 --version":                                           "ssh-broker 1.0",
		"stat -c '%U %a' /var/lib/ssh-broker-system /etc/ssh2":              "ssh-broker 700\nroot 755",
		"stat -c '%U %a' /run/ssh-captured /run/ssh-captured/socket":        "root 755\nroot 666",
		"ssh-broker-ctl connector status | sed -n 's/.*kept by: //p'":       "service manager",
		"/var/lib/dpkg/info/ssh-broker.postinst configure 1.0 && echo done": "done", // again does no harm
	} {
		if got := l.must(t, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	if _, err := os.Stat(filepath.Join(l.root, "etc/apparmor.d/abi/4.0")); err == nil {
		l.must(t, "apparmor_parser --skip-kernel-load --skip-cache /usr/share/ssh-broker/apparmor.d/ssh-capture")
	}
}

// firstCommand is what a new user does first: capture a command by cgroup, which PID 1
// makes a scope of the user's for.
func (l *life) firstCommand(t *testing.T) {
	t.Helper()
	key, err := os.ReadFile(l.Alice.Path(".ssh/id_ed25519"))
	if err != nil {
		t.Fatal(err)
	}
	known := l.sshd.KnownHosts()
	l.write(t, "home/alice/.ssh/id_ed25519", string(key), 0o600)
	l.write(t, "home/alice/.ssh/known_hosts", known, 0o600)
	l.write(t, "root/id_ed25519", string(key), 0o600)
	l.write(t, "root/known_hosts", known, 0o600)
	l.must(t, "chown -R alice: /home/alice; loginctl enable-linger alice")
	l.until(t, "alice's service manager", func() bool { return l.try(t, l.user("systemctl --user is-system-running")).Code == 0 })
	via := "ssh-capture --via " + l.Alice.Name + "@10.99.1.2"
	if got := l.must(t, l.user(via+" sed -n s/^0:://p /proc/self/cgroup")); !regexp.MustCompile(`^/user\.slice/user-1000\.slice/.*ssh-capture-1000-\w+\.scope$`).MatchString(got) {
		t.Errorf("the command is in cgroup %q", got)
	}
	f := l.connect(t, via, private)
	f.WaitFor(t, "open")
	f.say(t, "first", byTunnel)
	f.end(t)
	if n := l.syns(t); n != 0 {
		t.Errorf("%d connections left in clear", n)
	}
}

// usersUnit has alice's own service manager run a broker.
func (l *life) usersUnit(t *testing.T) {
	t.Helper()
	l.must(t, l.user("ssh-broker-ctl stop")) // that of the first command
	l.write(t, "home/alice/.ssh2/ssh-broker-config.xml", "<secsh-broker><filter-engine /></secsh-broker>", 0o644)
	l.must(t, "chown -R alice: /home/alice")
	l.must(t, l.user("systemctl --user start ssh-broker && ssh-broker-ctl -q status && systemctl --user reload ssh-broker && systemctl --user stop ssh-broker"))
	if r := l.try(t, l.user("ssh-broker-ctl -q status")); r.Code != 3 {
		t.Errorf("after the stop: %v", r)
	}
	l.must(t, "rm -r /home/alice/.ssh2")
}

// wholeHost switches the rules for all users on.
func (l *life) wholeHost(t *testing.T) {
	t.Helper()
	l.write(t, "etc/ssh2/ssh-broker-config.xml", "<secsh-broker>", 0o644)
	// A file that cannot be used is told where it is started.
	if r := l.try(t, "systemctl start ssh-broker-system"); r.Code == 0 {
		t.Error("it started with a broken configuration")
	}
	l.must(t, "systemctl stop ssh-broker-system; systemctl reset-failed")
	l.write(t, "etc/ssh2/ssh-broker-config.xml", fmt.Sprintf(systemRules, l.Alice.Name), 0o644)
	l.must(t, `for file in id_ed25519 known_hosts; do install -m 600 -o ssh-broker -g ssh-broker /root/$file /var/lib/ssh-broker-system/.ssh/; done
systemctl enable --now ssh-broker-system
ssh-broker-ctl connector enable`)
	l.until(t, "the rules to be in force", func() bool {
		return strings.Contains(l.try(t, "ssh-broker-ctl connector status").Stdout, "the system broker is connected")
	})
	f := l.connect(t, "", private)
	f.WaitFor(t, "open")
	f.say(t, "system", byTunnel)
	f.end(t)
	l.until(t, "the record of it", func() bool {
		return strings.Contains(l.try(t, "tail -n 1 /var/log/ssh-broker-system/audit.jsonl").Stdout, `"reason":"carried"`)
	})
	l.must(t, `journalctl --no-pager -q -u ssh-captured -u ssh-broker-system | grep -i "permission denied\|operation not permitted" && exit 1 || true`)
}

// deadDaemon kills ssh-captured while a program waits for a broker, restarts and stops
// it, and has nobody notice.
func (l *life) deadDaemon(t *testing.T) {
	t.Helper()
	l.must(t, "systemctl stop ssh-broker-system")
	f := l.connect(t, "", private)
	l.until(t, "the connection to wait", func() bool {
		return regexp.MustCompile(`[1-9]\d* waiting`).MatchString(l.try(t, "ssh-broker-ctl connector status").Stdout)
	})
	pid := l.must(t, "systemctl show --value -p MainPID ssh-captured")
	l.must(t, "systemctl kill --signal=KILL ssh-captured")
	l.until(t, "another process", func() bool {
		now := l.must(t, "systemctl show --value -p MainPID ssh-captured")
		return now != pid && now != "0" && l.try(t, "systemctl is-active ssh-captured").Code == 0
	})
	l.must(t, "systemctl restart ssh-captured; systemctl start ssh-broker-system")
	f.WaitFor(t, "open")
	f.say(t, "late", byTunnel)
	// One that is stopped is started by whoever asks it.
	l.must(t, "systemctl stop ssh-captured.service; ssh-broker-ctl connector status; systemctl is-active ssh-captured")
	f.say(t, "still", byTunnel)
	f.end(t)
	if n := l.syns(t); n != 0 {
		t.Errorf("%d connections left in clear", n)
	}
}

// cannotStart has an ssh-captured that fails at its start: who connects is told so before
// long, nothing tries for ever, and nothing gets out in clear.
func (l *life) cannotStart(t *testing.T) {
	t.Helper()
	l.must(t, `mkdir -p /run/systemd/system/ssh-captured.service.d
printf '[Service]\nExecStart=\nExecStart=/bin/false\n' >/run/systemd/system/ssh-captured.service.d/broken.conf
systemctl daemon-reload; systemctl stop ssh-captured.service`)
	if r := l.try(t, "ssh-broker-ctl connector status"); r.Code != 3 && !strings.Contains(r.Stderr, "connection to ssh-captured lost") {
		t.Errorf("with an ssh-captured that cannot be started: %v", r)
	}
	l.until(t, "the socket to be given up", func() bool { return l.try(t, "systemctl is-failed ssh-captured.socket").Code == 0 })
	if r := l.try(t, "ssh-broker-ctl connector status"); r.Code != 3 {
		t.Errorf("with a socket that was given up: %v", r)
	}
	f := l.connect(t, "", private)
	l.must(t, `rm -r /run/systemd/system/ssh-captured.service.d; systemctl daemon-reload; systemctl reset-failed
systemctl start ssh-captured.socket ssh-captured.service`)
	f.WaitFor(t, "open")
	f.say(t, "mended", byTunnel)
	f.end(t)
	if n := l.syns(t); n != 0 {
		t.Errorf("%d connections left in clear", n)
	}
}

// upgrade replaces the package while a flow ends in good time, one does not, one is in
// clear and one begins.
func (l *life) upgrade(t *testing.T) {
	t.Helper()
	quick, slow, clear := l.connect(t, "", private), l.connect(t, "", private), l.connect(t, "", public)
	for f, from := range map[*flow]string{quick: byTunnel, slow: byTunnel, clear: inClear} {
		f.WaitFor(t, "open")
		f.say(t, "before", from)
	}
	upgrade := l.Client.Start(t, l.command("dpkg -i /root/new.deb"))
	l.until(t, "the system broker to drain", func() bool {
		return l.must(t, "systemctl show --value -p ActiveState ssh-broker-system") == "deactivating"
	})
	quick.say(t, "drained", byTunnel)
	quick.end(t)
	begun := l.connect(t, "", private)
	slow.say(t, "drained too", byTunnel)
	if r := upgrade.Wait(t); r.Code != 0 {
		t.Fatalf("upgrade: %v", r)
	}
	begun.WaitFor(t, "open")
	begun.say(t, "after", byTunnel)
	begun.end(t)
	fmt.Fprintln(slow.in, "too late")
	slow.WaitFor(t, "cut")
	clear.say(t, "after", inClear)
	clear.end(t)
	for _, unit := range []string{"ssh-captured", "ssh-broker-system"} {
		if got := l.must(t, "readlink /proc/$(systemctl show --value -p MainPID "+unit+")/exe"); strings.Contains(got, "deleted") {
			t.Errorf("%s runs the old program", unit)
		}
	}
	if got := l.must(t, "ssh-captured --version"); got != "ssh-captured 1.1" {
		t.Errorf("%s", got)
	}
	if n := l.syns(t); n != 0 {
		t.Errorf("%d connections left in clear", n)
	}
}

// reboot boots without a broker: the table is there before the network, and closed.
func (l *life) reboot(t *testing.T) {
	t.Helper()
	l.must(t, "systemctl disable ssh-broker-system")
	l.powerOff(t)
	// The network is another one after a boot; this one outlives its system.
	if r := l.Client.Run(t, netns.Cmd{Args: []string{"nft", "flush", "ruleset"}}); r.Code != 0 {
		t.Fatal(r)
	}
	l.boot(t)
	at := func(unit, what string) int {
		n, err := strconv.Atoi(l.must(t, "systemctl show --value -p "+what+"TimestampMonotonic "+unit))
		if err != nil || n == 0 {
			t.Fatalf("%s of %s: %d, %v", what, unit, n, err)
		}
		return n
	}
	if ours, network := at("ssh-captured.service", "ActiveEnter"), at("network-pre.target", "ActiveEnter"); ours > network {
		t.Errorf("the table was loaded %d us after network-pre.target", ours-network)
	}
	if got := l.must(t, "nft list tables"); !strings.Contains(got, "ssh_captured") {
		t.Errorf("tables: %s", got)
	}
	f := l.connect(t, "", private)
	l.until(t, "the connection to wait", func() bool {
		return regexp.MustCompile(`[1-9]\d* waiting`).MatchString(l.try(t, "ssh-broker-ctl connector status").Stdout)
	})
	if n := l.syns(t); n != 0 {
		t.Errorf("%d connections left in clear", n)
	}
	l.must(t, "systemctl enable --now ssh-broker-system")
	f.WaitFor(t, "open")
	f.say(t, "booted", byTunnel)
	f.end(t)
}

// remove leaves nothing in the kernel and the configuration where it is.
func (l *life) remove(t *testing.T) {
	t.Helper()
	clear := l.connect(t, "", public)
	clear.WaitFor(t, "open")
	l.must(t, "dpkg -r ssh-broker")
	clear.say(t, "removed", inClear)
	clear.end(t)
	for script, want := range map[string]string{
		"nft list tables": "",
		"pgrep --list-full '^ssh-(broker|capture)' || true": "",
		"systemctl --quiet --no-legend --failed":            "",
		"ls /run | grep -E '^ssh-(broker|capture)' || true": "",
		"ls /etc/ssh2":                         "ssh-broker-config.xml",
		"ls /var/lib/ssh-broker-system/.ssh":   "id_ed25519\nknown_hosts",
		"cat /proc/sys/net/ipv4/icmp_ratemask": "6168", // the kernel's own value
	} {
		if got := l.must(t, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	// And back: what is there counts, but not that rules were on.
	l.must(t, "dpkg -i /root/new.deb && systemctl is-active ssh-captured ssh-captured.socket")
	if got := l.must(t, "nft list tables"); got != "" {
		t.Errorf("installed again, it captures: %s", got)
	}
}

// purge leaves what was there before the installation, and the administrator's rules.
func (l *life) purge(t *testing.T) {
	t.Helper()
	l.must(t, "dpkg --purge ssh-broker")
	rules := []byte(fmt.Sprintf(systemRules, l.Alice.Name))
	if b, err := os.ReadFile(filepath.Join(l.root, "etc/ssh2/ssh-broker-config.xml")); err != nil || !bytes.Equal(b, rules) {
		t.Errorf("the rules: %v\n%s", err, b)
	}
	l.must(t, "rm -r /etc/ssh2 /root/id_ed25519 /root/known_hosts")
}

// gateway installs the other package, has its unit serve, upgrades and purges it.
func (l *life) gateway(t *testing.T) {
	t.Helper()
	l.must(t, "dpkg -i /root/old-gateway.deb")
	if got := l.must(t, "systemctl is-enabled ssh-gateway || true"); got != "disabled" {
		t.Errorf("without a configuration it is %s", got)
	}
	l.must(t, `umask 022; mkdir -p /etc/ssh-gateway && cd /etc/ssh-gateway
ssh-gateway ca init && ssh-gateway ca issue --server --dns gateway.test --out server && cp ca/ca.crt .`)
	l.write(t, "etc/ssh-gateway/ssh-gateway.yaml", gatewayConfig, 0o644)
	l.write(t, "etc/systemd/system/ssh-gateway.service.d/key.conf", "[Service]\nLoadCredential=server.key:/etc/ssh-gateway/server.key\n", 0o644)
	l.must(t, "systemctl daemon-reload && systemctl enable --now ssh-gateway && systemctl reload ssh-gateway && test $(ss -Hltn 'sport = :8443' | wc -l) = 1")
	l.must(t, "dpkg -i /root/new-gateway.deb && systemctl is-active ssh-gateway")
	if got := l.must(t, "readlink /proc/$(systemctl show --value -p MainPID ssh-gateway)/exe"); strings.Contains(got, "deleted") {
		t.Error("the old gateway runs")
	}
	l.must(t, "dpkg --purge ssh-gateway && ! systemctl is-active ssh-gateway && test -e /etc/ssh-gateway/server.key")
	l.must(t, "rm -r /etc/ssh-gateway /etc/systemd/system/ssh-gateway.service.d")
}

const gatewayConfig = `listen: ":8443"
certificates:
  - certificate: server.crt
    key: /run/credentials/ssh-gateway.service/server.key
client_ca: ca.crt
audit:
  file: /var/log/ssh-gateway/audit.jsonl
services:
  - name: echo
    tls_sni: echo.gw.test
    backend:
      target: {name: 10.99.1.2, port: 7001}
    policy: staff
roles:
  - name: staff
    groups: [staff]
policies:
  - name: staff
    roles: [staff]
`

// leavesNothing holds what is there now to what was there before the installation.
func (l *life) leavesNothing(t *testing.T) {
	t.Helper()
	after := l.state(t)
	for _, line := range after {
		if !slices.Contains(l.before, line) {
			t.Errorf("left behind: %s", line)
		}
	}
	for _, line := range l.before {
		if !slices.Contains(after, line) {
			t.Errorf("gone: %s", line)
		}
	}
}
