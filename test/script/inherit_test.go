package script

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// wrap puts words in front of a command, as env and nice do.
type wrap []string

// withDescriptors is a shell that changes its descriptors and becomes the rest.
func withDescriptors(redirections string) wrap {
	return wrap{"sh", "-c", "exec " + redirections + `; exec "$@"`, "sh"}
}

// TestInherited runs one probe outside and inside of a capture, started in the same
// way, and wants the same answer.
func TestInherited(t *testing.T) {
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		t.Skip("signals are not inherited on " + runtime.GOARCH)
	}
	status := []string{"grep", "-E", "^(Umask|SigBlk|SigIgn|SigCgt|Cap(Inh|Prm|Eff|Amb)|NoNewPrivs|Seccomp|Cpus_allowed|Uid|Gid|TracerPid|THP)", "/proc/self/status"}
	descriptors := []string{"ls", "-l", "--time-style=+", "/proc/self/fd"}
	limits := []string{"cat", "/proc/self/limits"}
	for _, c := range []struct {
		name  string
		wrap  wrap
		probe []string
	}{
		{"as it comes", nil, status},
		{"SIGPIPE ignored", wrap{"env", "--ignore-signal=PIPE"}, status},
		{"nearly all ignored", wrap{"env", "--ignore-signal"}, status},
		{"real-time signals", wrap{"env", "--ignore-signal=RTMIN+2", "--block-signal=RTMAX"}, status},
		{"SIGHUP ignored", wrap{"nohup"}, status},
		{"background job of a shell", wrap{"env", "--ignore-signal=INT,QUIT"}, status},
		{"SIGCHLD ignored", wrap{"env", "--ignore-signal=CHLD"}, status},
		{"blocked", wrap{"env", "--block-signal=TERM,CHLD,USR1,URG,PROF"}, status},
		{"umask", wrap{"sh", "-c", `umask 0137; exec "$@"`, "sh"}, status},
		{"one processor", wrap{"taskset", "-c", "0"}, status},
		{"no new privileges", wrap{"setpriv", "--no-new-privs"}, status},
		{"descriptors", nil, descriptors},
		{"more descriptors", withDescriptors("5</dev/null 7>&1 9<>/dev/zero"), descriptors},
		{"stdin closed", withDescriptors("0<&-"), descriptors},
		{"stderr closed", withDescriptors("2>&-"), descriptors},
		{"only stdout", withDescriptors("0<&- 2>&-"), descriptors},
		{"limits", nil, limits},
		{"few descriptors allowed", wrap{"bash", "-c", `ulimit -Sn 57; exec "$@"`, "bash"}, limits},
		{"limits lowered", wrap{"bash", "-c", `ulimit -n 300; ulimit -c 0; ulimit -s 4096; exec "$@"`, "bash"}, limits},
		{"nice", wrap{"nice", "-n", "3"}, []string{"nice"}},
		{"out of memory score", wrap{"sh", "-c", `echo 321 >/proc/self/oom_score_adj; exec "$@"`, "sh"}, []string{"cat", "/proc/self/oom_score_adj"}},
		{"personality", wrap{"setarch", "--addr-no-randomize"}, []string{"cat", "/proc/self/personality"}},
		{"environment", wrap{"env", "-i", "B=2", "A=1", "EMPTY=", "C=a b\nc"}, []string{"env", "-0"}},
		{"arguments", nil, []string{"printf", "<%s>", "", "a b", "*", "-x", "--", "é"}},
		{"session and group", nil, []string{"sh", "-c", `cut -d' ' -f5,6 /proc/self/stat | tr -d '\n' | wc -w`}},
		{"directory", wrap{"env", "--chdir=/"}, []string{"pwd", "-P"}},
		{"directory below /tmp", nil, []string{"pwd", "-P"}},
		{"directory that is covered for a moment", wrap{"env", "--chdir=/mnt"}, []string{"ls", "-ai"}},
		{"deleted directory", wrap{"sh", "-c", `mkdir gone && cd gone && rmdir ../gone && exec "$@"`, "sh"}, []string{"readlink", "/proc/self/cwd"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachAccount(t, func(t *testing.T, p *place) {
				for _, word := range []string{"taskset", "setpriv", "setarch"} {
					if slices.Contains(c.wrap, word) {
						p.lookPath(word)
					}
				}
				if c.name == "environment" { // -i takes the place's own
					c.wrap = append(slices.Clone(c.wrap), p.env...)
				}
				outside := p.run(slices.Concat(c.wrap, c.probe)...).require(t, 0)
				inside := p.run(slices.Concat(c.wrap, wrap{"ssh-capture", "--allow-direct"}, c.probe)...)
				if inside.code != 0 {
					t.Fatal(inside)
				}
				if got, want := plain(inside.stdout), plain(outside.stdout); got != want {
					t.Errorf("inside:\n%s\noutside:\n%s", got, want)
				}
			})
		})
	}
}

var changing = []*regexp.Regexp{
	regexp.MustCompile(`/proc/\d+/fd`),
	regexp.MustCompile(`pipe:\[\d+\]`),
	regexp.MustCompile("SSH_CAPTURE=[a-z0-9]+\x00"),
}

// plain takes out what differs from run to run, or is to be there only inside.
func plain(s string) string {
	for _, r := range changing {
		s = r.ReplaceAllString(s, "")
	}
	return s
}

func TestNoCapabilities(t *testing.T) {
	p := ordinary(t)
	r := p.capture("grep", "-E", "^Cap(Inh|Prm|Eff|Amb)", "/proc/self/status").require(t, 0)
	for line := range strings.Lines(r.stdout) {
		if _, set, _ := strings.Cut(line, ":"); strings.Trim(set, "0\t\n") != "" {
			t.Errorf("an ordinary user's command has capabilities: %s", line)
		}
	}
	p.capture("sh", "-c", "ip link set lo down 2>/dev/null || echo denied").require(t, 0).prints(t, "denied\n")
}

// TestGroupsKeepTheirRights: they have no names inside, but count.
func TestGroupsKeepTheirRights(t *testing.T) {
	requireRoot(t)
	p := ordinary(t)
	group := uint32(p.gid + 10000)
	secret := filepath.Join(p.dir, "secret")
	for _, err := range []error{os.WriteFile(secret, []byte("for the group\n"), 0o640), os.Chmod(secret, 0o640), os.Chown(secret, 0, int(group))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	p.capture("cat", secret).require(t, 1)
	p.groups = []uint32{group}
	p.capture("cat", secret).require(t, 0).prints(t, "for the group\n")
	p.run("ssh-capture", "--allow-direct", "ssh-capture", "--allow-direct", "cat", secret).require(t, 0).prints(t, "for the group\n")
	p.capture("id", "-u").require(t, 0).prints(t, fmt.Sprintln(p.uid))
	p.capture("id", "-g").require(t, 0).prints(t, fmt.Sprintln(p.gid))
}

func TestFilesOfTheUser(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		p.capture("sh", "-c", "echo mine >made; stat -c '%u %g' made").require(t, 0).prints(t, fmt.Sprintf("%d %d\n", p.uid, p.gid))
		p.run("cat", "made").require(t, 0).prints(t, "mine\n")
	})
}

// TestNested: the capture inside is one of its own, served by the same broker.
func TestNested(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		script := `echo "$SSH_CAPTURE"; echo $(readlink /proc/self/ns/net),$(sed -n s/^0:://p /proc/self/cgroup)`
		outer := strings.Fields(p.capture("sh", "-c", script+"; ssh-capture --allow-direct sh -c '"+script+"; env | grep -c ^SSH_CAPTURE='").require(t, 0).stdout)
		if len(outer) != 5 || outer[0] == outer[2] || outer[1] == outer[3] || outer[4] != "1" {
			t.Errorf("two captures are %q", outer)
		}
		if brokers := p.processes("--ready-fd"); len(brokers) != 1 {
			t.Errorf("brokers: %v", brokers)
		}
	})
}

// TestNestedStartsNoBroker: one that is started inside could not get out.
func TestNestedStartsNoBroker(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		cmd := p.command("ssh-capture", "true")
		cmd.Env = append(cmd.Env, "SSH_CAPTURE=abcdefgh")
		p.finish(cmd).require(t, 125).says(t, "no broker is running", "none is started inside a capture")
		if p.broker() != 0 {
			t.Error("a broker was started")
		}
		cmd = p.command("ssh-capture", "-F", "sh", "-c", "exit 9")
		cmd.Env = append(cmd.Env, "SSH_CAPTURE=abcdefgh")
		p.finish(cmd).require(t, 9).says(t, "warning: sh runs UNCAPTURED")
	})
}
