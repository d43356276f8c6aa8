package doctor

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sshbroker/broker/doctor"
	"sshbroker/test/host"
	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

func TestMain(m *testing.M) { sut.Main(m, nil) }

// bare is a host on which nothing of ours runs.
func bare(t *testing.T) *host.Host {
	t.Helper()
	netns.RequireRoot(t)
	return host.Bare(t, sut.Build(t))
}

// findings are the results of one run.
type findings struct {
	netns.Result
	list []doctor.Result
}

// examine runs the doctor for a user, with these checks alone.
func examine(t *testing.T, h *host.Host, u *netns.User, checks string, more ...string) findings {
	t.Helper()
	return read(t, h.Client.Run(t, h.Cmd(u, append([]string{h.Ctl, "doctor", "-s", "--check", checks}, more...)...)))
}

func read(t *testing.T, r netns.Result) findings {
	t.Helper()
	f := findings{Result: r}
	broken := false
	for d := json.NewDecoder(strings.NewReader(r.Stdout)); ; {
		var one doctor.Result
		if err := d.Decode(&one); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v: %v", err, r)
		}
		ill := one.Status == doctor.Failed || one.Status == doctor.Warning
		if one.Group == "" || one.Check == "" || one.Status == "" || one.Text == "" || (one.Cure != "") != ill {
			t.Errorf("result %+v", one)
		}
		if one.Status == doctor.Unknown && !strings.HasPrefix(one.Text, "unknown, because ") {
			t.Errorf("no reason: %+v", one)
		}
		broken = broken || one.Status == doctor.Failed
		f.list = append(f.list, one)
	}
	if want := map[bool]int{false: 0, true: 1}[broken]; r.Code != want || len(f.list) == 0 {
		t.Errorf("exit code %d, want %d: %v", r.Code, want, r)
	}
	return f
}

// says fails the test unless a check came out so, with these words in its text and cure.
func (f findings) says(t *testing.T, check string, status doctor.Status, words ...string) {
	t.Helper()
	found := slices.ContainsFunc(f.list, func(r doctor.Result) bool {
		return r.Check == check && r.Status == status && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(r.Text+"\n"+r.Cure, w) })
	})
	if !found {
		t.Errorf("not found: %s: %s, %q in %v", check, status, words, f.Result)
	}
}

// well fails the test unless all checks are.
func (f findings) well(t *testing.T) {
	t.Helper()
	for _, r := range f.list {
		if r.Status != doctor.OK && r.Status != doctor.Skipped {
			t.Errorf("%+v", r)
		}
	}
}

// installed copies our programs to a directory of the user's, without some of them.
func installed(t *testing.T, h *host.Host, u *netns.User, without ...string) string {
	t.Helper()
	for _, name := range []string{"ssh-broker", "ssh-capture", "ssh-broker-ctl"} {
		if slices.Contains(without, name) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(filepath.Dir(h.Ctl), name))
		if err != nil {
			t.Fatal(err)
		}
		u.Write(t, "bin/"+name, string(b), 0o755)
	}
	return u.Path("bin")
}
