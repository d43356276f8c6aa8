package doctor

import (
	"fmt"
	"os"
	"testing"
	"time"

	"sshbroker/broker/doctor"
	"sshbroker/test/netns"
)

func TestClock(t *testing.T) {
	h := bare(t)
	file := configure(t, h.Alice, rules)
	for _, r := range examine(t, h, h.Alice, "clock").list {
		if r.Status == doctor.Failed {
			t.Errorf("%+v", r)
		}
	}
	future := time.Now().Add(time.Hour)
	if err := os.Chtimes(file, future, future); err != nil {
		t.Fatal(err)
	}
	examine(t, h, h.Alice, "clock").says(t, "clock", doctor.Failed, file+" was written at "+future.UTC().Format("2006-01-02"), "timedatectl set-ntp true")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	bin := installed(t, h, h.Alice)
	if err := os.Chtimes(bin+"/ssh-broker-ctl", future, future); err != nil {
		t.Fatal(err)
	}
	read(t, h.Run(t, h.Alice, bin+"/ssh-broker-ctl", "doctor", "-s", "--check", "clock")).says(t, "clock", doctor.Failed, "this program was made at")
}

func TestFiles(t *testing.T) {
	h := bare(t)
	secret := h.Alice.Write(t, "password", "x\n", 0o600)
	file := configure(t, h.Alice, fmt.Sprintf(`<profiles><profile id="p" name="p" host="10.99.1.2" port="22"><authentication-methods><auth-password><password file=%q/></auth-password></authentication-methods></profile></profiles>
<filter-engine><rule ip-address=".*" action="TUNNEL" profile-id="p"/></filter-engine>`, secret))
	audit := h.Alice.Write(t, ".ssh2/ssh-broker-audit.jsonl", "", 0o600)
	examine(t, h, h.Alice, "files").well(t)
	for _, c := range []struct {
		path     string
		bad, mod os.FileMode
		words    []string
	}{
		{file, 0o620, 0o600, []string{"mode 0620: others may change it", "chmod go-w " + file}},
		{h.Alice.Path(".ssh2"), 0o777, 0o700, []string{"mode 0777: others may change it"}},
		{audit, 0o644, 0o600, []string{"mode 0644: others may read it", "chmod go= " + audit}},
		{secret, 0o640, 0o600, []string{secret + " has mode 0640: others may read it"}},
	} {
		if err := os.Chmod(c.path, c.bad); err != nil {
			t.Fatal(err)
		}
		examine(t, h, h.Alice, "files").says(t, "files", doctor.Failed, c.words...)
		if err := os.Chmod(c.path, c.mod); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(file, int(h.Bob.UID), int(h.Alice.GID)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	examine(t, h, h.Alice, "files").says(t, "files", doctor.Failed, fmt.Sprintf("%s belongs to uid %d, who may change it", file, h.Bob.UID), "chown")
}

func TestKeys(t *testing.T) {
	h := bare(t)
	key := h.Alice.Path(".ssh/id_ed25519")
	f := examine(t, h, h.Alice, "keys,certificates")
	f.says(t, "keys", doctor.OK, "1 can be used")
	f.says(t, "certificates", doctor.Skipped, "there are none")
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	examine(t, h, h.Alice, "keys").says(t, "keys", doctor.Warning, key, "chmod go= "+key)
	if err := os.Chmod(key, 0o600); err != nil {
		t.Fatal(err)
	}
	h.Alice.Write(t, ".ssh/id_rsa", "nonsense\n", 0o600)
	examine(t, h, h.Alice, "keys").says(t, "keys", doctor.Warning, "id_rsa")
	if err := os.Remove(h.Alice.Path(".ssh/id_rsa")); err != nil {
		t.Fatal(err)
	}

	netns.RequireProgram(t, "ssh-keygen", "openssh-client")
	ca := h.Alice.Path("ca")
	h.Client.Output(t, h.Alice, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", ca)
	for _, c := range []struct {
		valid  string
		status doctor.Status
		words  []string
	}{
		{"-2d:+30d", doctor.OK, []string{"1 are valid for 14 days and more"}},
		{"always:forever", doctor.OK, nil},
		{"-2d:+3d", doctor.Warning, []string{`certificate "alice's" of ` + key + " expires at ", "ssh-keygen -s"}},
		{"-2d:-1d", doctor.Failed, []string{"has expired at "}},
		{"+1d:+30d", doctor.Failed, []string{"is not valid before ", "see the check clock"}},
	} {
		h.Client.Output(t, h.Alice, "ssh-keygen", "-q", "-s", ca, "-I", "alice's", "-n", h.Alice.Name, "-V", c.valid, key+".pub")
		f := examine(t, h, h.Alice, "certificates,keys")
		f.says(t, "certificates", c.status, c.words...)
		f.says(t, "keys", doctor.OK)
	}
	configure(t, h.Alice, "<profiles>")
	f = examine(t, h, h.Alice, "keys,certificates")
	f.says(t, "keys", doctor.Unknown, "configuration")
	f.says(t, "certificates", doctor.Unknown, "configuration")
}
