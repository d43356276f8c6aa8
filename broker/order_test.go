package broker

import (
	"slices"
	"strings"
	"testing"

	"sshbroker/profiles"
)

// Servers that stand in travel with the order, and have no password that was not for them.
func TestCarrierHasSpares(t *testing.T) {
	theirs := Policy{Profiles: map[string]*profiles.Profile{"gw": {ID: "gw", Host: "a", Port: 22, More: []profiles.Server{{Host: "b", Port: 2222}}}}}
	order := theirs.orderServer(theirs.Profiles["gw"])
	mine := Policy{Defaults: &profiles.Profile{User: "me"}, Profiles: map[string]*profiles.Profile{
		"gw": {ID: "gw", Host: "a", Port: 22, User: "me", PasswordText: "secret", More: []profiles.Server{{Host: "b", Port: 2222}, {Host: "c", Port: 1}}}}}
	p, err := mine.ordered(&order)
	if err != nil || p.Host != "a" || !slices.Equal(p.More, theirs.Profiles["gw"].More) || p.PasswordText != "secret" {
		t.Errorf("%+v, %v", p, err)
	}
	order.More[0].Port = 2223
	if p, err := mine.ordered(&order); err != nil || p.PasswordText != "" || p.More[0].Port != 2223 {
		t.Errorf("%+v, %v", p, err)
	}
	for _, more := range []string{`{"host":"-x","port":1}`, `{"host":"x"}`, strings.Repeat(`{"host":"x","port":1},`, maxSpares) + `{"host":"x","port":1}`} {
		text := `{"v":1,"profile":{"id":"gw","host":"h","port":22,"more":[` + more + `]},"destination":{"host":"d","port":1}}`
		if o, err := ParseOrder([]byte(text)); err == nil {
			t.Errorf("%.60s: %+v", more, o)
		}
	}
}
