package probe

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"sshbroker/capture/netns"
)

// TestMain is ssh-capture's part as well.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case netns.InsideArg:
			netns.Inside(os.Args[2:])
		case InsideArg:
			if err := Inside(os.Stdout); err != nil {
				os.Exit(1)
			}
			os.Exit(0)
		case ReportArg:
			self, _ := os.Executable()
			_ = json.NewEncoder(os.Stdout).Encode(Here(context.Background(), self))
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// TestHere asks the kernel that runs the tests: whatever it can do, a namespace and its
// features go together.
func TestHere(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, err := Ask(t.Context(), self)
	if err != nil {
		t.Fatal(err)
	}
	if r.Namespace.Error != "" {
		if os.Getenv("CI") == "true" {
			t.Fatal(r.Namespace)
		}
		t.Skip(r.Namespace.Error)
	}
	if r.Probed.Error != "" || r.Held != (r.Features.Queue != QueueNone) || r.Features.Persist && !r.Features.Owner {
		t.Errorf("%+v", r)
	}
	t.Logf("%+v", r)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Ask(ctx, self); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for _, program := range []string{"/no/such/program", "/bin/false", "/bin/echo"} {
		if _, err := Ask(t.Context(), program); err == nil {
			t.Errorf("%s has made a report", program)
		}
	}
}

func TestOverlaps(t *testing.T) {
	for _, c := range []struct {
		mark, mask uint32
		want       bool
	}{
		{0xca6c, ^uint32(0), false},   // wg-quick
		{0x80000, 0xff0000, true},     // Tailscale
		{0x4000, 0x4000, false},       // kube-proxy
		{0x100000, ^uint32(0), true},  // ours
		{0, 0x00f00000, true},         // none of ours
		{0x1000000, 0xf000000, false}, // beside ours
		{0x20000000, ^uint32(0), false} /* beyond */} {
		if got := overlaps(c.mark, c.mask); got != c.want {
			t.Errorf("%#x/%#x: %t", c.mark, c.mask, got)
		}
	}
}

// sys is a directory in the place of /proc/sys.
func sys(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestStrictPaths(t *testing.T) {
	conf := func(all, allMark, eth, ethMark, wlan string) map[string]string {
		const dir = "net/ipv4/conf/"
		return map[string]string{dir + "all/rp_filter": all, dir + "all/src_valid_mark": allMark, dir + "eth0/rp_filter": eth, dir + "eth0/src_valid_mark": ethMark,
			dir + "wlan0/rp_filter": wlan, dir + "wlan0/src_valid_mark": "0", dir + "lo/rp_filter": "1", dir + "default/rp_filter": "1"}
	}
	for _, c := range []struct {
		files map[string]string
		want  []string
	}{
		{conf("0", "0", "0", "0", "0"), nil},
		{conf("1", "0", "0", "0", "0"), []string{"eth0", "wlan0"}},
		{conf("1", "0", "0", "1", "2"), nil}, // the looser of two counts, and marks
		{conf("0", "0", "1", "0", "0"), []string{"eth0"}},
		{conf("1", "1", "1", "0", "1"), nil},
		{conf("2", "0", "1", "0", "1"), nil},
	} {
		if got, err := StrictPaths(sys(t, c.files)); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, %v", c.files, got, err)
		}
	}
	if _, err := StrictPaths(t.TempDir()); err == nil {
		t.Error("nothing is there, and that is no error")
	}
	bad := conf("1", "0", "x", "0", "0")
	if _, err := StrictPaths(sys(t, bad)); err == nil {
		t.Error("no number, and that is no error")
	}
}

func TestTracked(t *testing.T) {
	const dir = "net/netfilter/"
	if count, most, ok, err := Tracked(sys(t, map[string]string{dir + "nf_conntrack_count": "7", dir + "nf_conntrack_max": "9"})); count != 7 || most != 9 || !ok || err != nil {
		t.Error(count, most, ok, err)
	}
	if _, _, ok, err := Tracked(t.TempDir()); ok || err != nil {
		t.Error(ok, err)
	}
	if _, _, _, err := Tracked(sys(t, map[string]string{dir + "nf_conntrack_count": "x"})); err == nil {
		t.Error("no number, and that is no error")
	}
}

func TestLegacyTables(t *testing.T) {
	dir := sys(t, map[string]string{"ip_tables_names": "filter\nnat", "ip6_tables_names": "mangle"})
	got, err := legacyTables(dir)
	slices.Sort(got)
	if want := []string{"table mangle of ip6tables-legacy", "table nat of iptables-legacy"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := legacyTables(t.TempDir()); err != nil || len(got) > 0 {
		t.Errorf("%q, %v", got, err)
	}
}

// TestTrouble: chains may jump in circles, and to ones that are gone.
func TestTrouble(t *testing.T) {
	rule := func(exprs ...expr.Any) *nftables.Rule { return &nftables.Rule{Exprs: exprs} }
	jump := func(to string) expr.Any { return &expr.Verdict{Kind: expr.VerdictJump, Chain: to} }
	set := &ruleset{rules: map[string][]*nftables.Rule{
		"out": {rule(jump("a")), rule(jump("gone"))}, "a": {rule(jump("b"))}, "b": {rule(jump("a")), rule(&expr.Target{Name: "CONNMARK"})},
		"reads": {rule(&expr.Meta{Key: expr.MetaKeyMARK, Register: 1})},
	}}
	for _, c := range []struct {
		name     string
		priority nftables.ChainPriority
		hook     *nftables.ChainHook
		typ      nftables.ChainType
		want     Trouble
	}{
		{"out", -120, nftables.ChainHookOutput, nftables.ChainTypeFilter, TakesMark},
		{"out", -150, nftables.ChainHookOutput, nftables.ChainTypeRoute, 0},
		{"out", 0, nftables.ChainHookOutput, nftables.ChainTypeFilter, 0},
		{"out", -120, nftables.ChainHookForward, nftables.ChainTypeFilter, 0},
		{"reads", -120, nftables.ChainHookOutput, nftables.ChainTypeFilter, 0},
	} {
		if got := set.trouble(&nftables.Chain{Name: c.name, Hooknum: c.hook, Priority: &c.priority, Type: c.typ}); got != c.want {
			t.Errorf("%s at %d: %d", c.name, c.priority, got)
		}
	}
}
