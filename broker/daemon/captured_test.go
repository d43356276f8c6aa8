package daemon

import (
	"errors"
	"net/netip"
	"path/filepath"
	"testing"

	"sshbroker/broker/config"
	"sshbroker/broker/plan"
	"sshbroker/capture"
	"sshbroker/capture/service/client"
	"sshbroker/filter"
)

// A source that could not be had is nil, whatever its type.
func TestDialed(t *testing.T) {
	c := dialed(client.Dialer{Path: filepath.Join(t.TempDir(), "socket")})
	if s, err := c.serve(t.Context(), client.Options{Capture: "abcd"}); s != nil || !errors.Is(err, client.ErrNotRunning) {
		t.Errorf("serve: %v, %v", s, err)
	}
	if s, err := c.carry(t.Context(), client.Options{}); s != nil || !errors.Is(err, client.ErrNotRunning) {
		t.Errorf("carry: %v, %v", s, err)
	}
	if _, err := c.status(t.Context()); !errors.Is(err, client.ErrNotRunning) {
		t.Errorf("status: %v", err)
	}
}

// Rules that do not fit a message are asked about, all of them.
func TestTooManyRules(t *testing.T) {
	b := begin(t, "", direct, nil)
	var rules []filter.Rule
	for i := range 40000 {
		rules = append(rules, filter.Rule{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), 32), Action: filter.Action(i % 2)})
	}
	set, err := filter.NewSet(rules, filter.Direct)
	if err != nil {
		t.Fatal(err)
	}
	spec := b.compile(set, plan.Options{Local: true}, config.Host{})
	if len(spec.Rules) != 0 || spec.Rest != capture.Ask || !spec.Local {
		t.Errorf("%d rules, the rest: %v", len(spec.Rules), spec.Rest)
	}
	few, err := filter.NewSet(rules[:100], filter.Direct)
	if err != nil {
		t.Fatal(err)
	}
	if spec := b.compile(few, plan.Options{}, config.Host{}); len(spec.Rules) == 0 || spec.Rest != capture.Pass {
		t.Errorf("%d rules, the rest: %v", len(spec.Rules), spec.Rest)
	}
}
