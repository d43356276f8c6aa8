package nft_test

import (
	"strings"
	"testing"

	"sshbroker/capture/netns"
	"sshbroker/capture/nft"
)

func TestNamespaceGolden(t *testing.T) {
	base := netns.RuleSpec{Queue: 7, Form: nft.TargetQueue, TCP: 4001, DNSUDP: 4002, DNSTCP: 4003}
	relay, unheld := base, base
	relay.UDPRelay = 4004
	unheld.Form = nft.NoQueue
	for name, spec := range map[string]netns.RuleSpec{"namespace.nft": base, "namespace-udp.nft": relay, "namespace-unheld.nft": unheld} {
		nft.CompareGolden(t, name, netns.Rules(spec).String())
	}
	if strings.Contains(netns.Rules(base).String(), "bypass") {
		t.Error("the rule set says bypass")
	}
}

func TestNamespaceExpressions(t *testing.T) {
	nft.EveryExpression(t, func(form nft.QueueForm) map[string]nft.Ruleset {
		return map[string]nft.Ruleset{
			"namespace": netns.Rules(netns.RuleSpec{Queue: 7, Form: form, TCP: 1, DNSUDP: 2, DNSTCP: 3, UDPRelay: 4}),
			"unheld":    netns.Rules(netns.RuleSpec{TCP: 1, DNSUDP: 2, DNSTCP: 3}),
		}
	})
}
