package config

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"sshbroker/filter"
)

func TestNetworks(t *testing.T) {
	c := loadText(t, document(engine(`
<network id="office" address="10.1.0.0/16" domain="Office.Example." ip-generate-start="198.18.128.0"/>
<network id="home" address="192.168.7.0"/>
<network id="six" address="fd00:7::" ip6-generate-start="fd00:8::"/>
<network id="anywhere"/>
<dns id="d" network-id="office" host="a"/><dns id="e" network-id="home"/><dns id="f" network-id="anywhere"/><dns id="g" network-id=""/>
<filter dns-id="d" action="DIRECT"/><filter dns-id="e" action="BLOCK"/><filter dns-id="d" ports="1" action="BLOCK"/>
<filter dns-id="f" action="BLOCK"/><filter dns-id="g" action="BLOCK"/>`)))
	prefix := netip.MustParsePrefix
	want := []Network{
		{ID: "office", Address: prefix("10.1.0.0/16"), Domain: "office.example", Pool4: prefix("198.18.128.0/17")},
		{ID: "home", Address: prefix("192.168.7.0/32"), Exact: true},
		{ID: "six", Address: prefix("fd00:7::/128"), Exact: true, Pool6: prefix("fd00:8::/64")},
		{ID: "anywhere"},
	}
	if !slices.Equal(c.Networks, want) {
		t.Errorf("networks\n got %+v\nwant %+v", c.Networks, want)
	}
	var bound []string
	for _, r := range c.Filter.Rules() {
		bound = append(bound, r.Network)
	}
	if fmt.Sprintf("%q", bound) != `["office" "home" "office" "anywhere" ""]` {
		t.Errorf("rules are for %q", bound)
	}
	if d := c.Filter.Decide(&filter.Flow{Names: []string{"a"}, Port: 2}); d.Rule.Number != 5 {
		t.Errorf("decided by rule %d before anybody looked where the host is", d.Rule.Number)
	}
}

// TestPools: the first network that the host is on and that says anything of pools.
func TestPools(t *testing.T) {
	c := loadText(t, document(engine(`<network id="plain"/><network id="a" ip-generate-start="10.9.0.0"/>
<network id="b" ip-generate-start="10.8.0.0" ip6-generate-start="fd00:8::"/><dns id="d" network-id="plain"/><filter dns-id="d" action="BLOCK"/>`)))
	for _, tt := range []struct {
		on   []string
		want string
	}{
		{nil, "198.18.0.0/15 invalid Prefix"},
		{[]string{"plain"}, "198.18.0.0/15 invalid Prefix"},
		{[]string{"b", "a", "plain"}, "10.9.0.0/16 invalid Prefix"},
		{[]string{"b"}, "10.8.0.0/15 fd00:8::/64"},
	} {
		pool4, pool6 := Pools(c.Networks, c.Pool4, c.Pool6, func(id string) bool { return slices.Contains(tt.on, id) })
		if got := fmt.Sprint(pool4, " ", pool6); got != tt.want {
			t.Errorf("on %v: pools %s, want %s", tt.on, got, tt.want)
		}
	}
}
