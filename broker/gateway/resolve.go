package gateway

import (
	"context"
	"net/netip"
	"strings"
	"unicode"

	"sshbroker/broker/gateway/policy"
)

// once asks for each name once, for a flow for which several services are asked: all of
// them judge the same answers.
type once struct {
	resolver policy.Resolver
	answers  map[string]answer
}

type answer struct {
	addrs []netip.Addr
	err   error
}

func (o *once) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if a, ok := o.answers[host]; ok {
		return a.addrs, a.err
	}
	var a answer
	a.addrs, a.err = o.resolver.LookupNetIP(ctx, network, host)
	if o.answers == nil {
		o.answers = map[string]answer{}
	}
	o.answers[host] = a
	return a.addrs, a.err
}

// same answers every name with one address: the one that a flow goes to.
type same netip.Addr

func (s same) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.Addr(s)}, nil
}

// Bounds of what a client says of itself, in bytes.
const (
	maxFlowID  = 64
	maxProgram = 1 << 10
)

// printable makes text of a client's fit for a record.
func printable(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return s
}
