package script

import (
	"slices"
	"testing"
)

// inUserNamespace are the words that run a command in a user namespace of its own, as
// its root, after the shell code: settings made there hold for that namespace alone.
func inUserNamespace(code string, command ...string) []string {
	return slices.Concat([]string{"unshare", "--user", "--map-root-user", "--mount", "sh", "-c", code + `; exec "$@"`, "sh"}, command)
}

func TestNamespacesForbidden(t *testing.T) {
	aboutNamespaces(t)
	eachAccount(t, func(t *testing.T, p *place) {
		if r := p.run(inUserNamespace(":", "true")...); r.code != 0 {
			skip(t, "needs user namespaces: "+r.stderr)
		}
		for _, c := range []struct{ setting, says, cure string }{
			{"user.max_user_namespaces", "forbidden here by the sysctl user.max_user_namespaces=0", "sysctl -w user.max_user_namespaces=10000"},
			{"user.max_net_namespaces", "forbidden here by the sysctl user.max_net_namespaces=0", "sysctl -w user.max_net_namespaces=10000"},
			{"user.max_mnt_namespaces", "forbidden here by the sysctl user.max_mnt_namespaces=0", "sysctl -w user.max_mnt_namespaces=10000"},
		} {
			path := "/proc/sys/" + map[string]string{
				"user.max_user_namespaces": "user/max_user_namespaces",
				"user.max_net_namespaces":  "user/max_net_namespaces",
				"user.max_mnt_namespaces":  "user/max_mnt_namespaces",
			}[c.setting]
			// The ordinary account loses its privilege over the namespace first.
			words := []string{"ssh-capture", "--allow-direct", "true"}
			if c.setting == "user.max_user_namespaces" {
				words = slices.Concat([]string{"setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"}, words)
			}
			p.run(inUserNamespace("echo 0 >"+path, words...)...).require(t, 125).says(t,
				"ssh-capture: namespaces are "+c.says, "ssh-capture: hint: as root: "+c.cure)
		}
	})
}

// TestRootOfContainer: with the capabilities that some containers give, and without
// those for namespaces.
func TestRootOfContainer(t *testing.T) {
	aboutNamespaces(t)
	requireRoot(t)
	for _, drop := range []string{"-sys_admin", "-net_admin", "-sys_admin,-net_admin,-setuid,-setgid,-setpcap"} {
		t.Run(drop, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t, 0, 0)
			r := p.run("setpriv", "--bounding-set="+drop, "--inh-caps="+drop, "ssh-capture", "--allow-direct", "sh", "-c",
				"id -u; grep -E '^CapEff' /proc/self/status")
			r.require(t, 0).prints(t, "0\nCapEff:\t0000000000000000\n")
		})
	}

	t.Run("none at all", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t, 0, 0)
		p.run("setpriv", "--bounding-set=-all", "--inh-caps=-all", "ssh-capture", "--allow-direct", "true").require(t, 125).says(t,
			"root lacks CAP_SETFCAP here", "hint: run ssh-capture as an ordinary user")
	})
}
