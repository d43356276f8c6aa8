package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"sshbroker/profiles"
)

// servers reaches the first server of each profile, and judges the certificate that it shows.
func (v *visit) servers(ctx context.Context) []Result {
	if v.Server == nil {
		return skipped("no server is contacted without --servers")
	}
	c, err := v.configured()
	if err != nil {
		return unknown("%v", errNoConfiguration)
	}
	var list []Result
	var asked []*profiles.Profile
	for _, id := range slices.Sorted(maps.Keys(c.Profiles)) {
		switch p := c.Profiles[id]; {
		case p.Host == "" || p.Host == "*": // whatever the program asks for
		case p.Protocol != profiles.SSH:
			list = append(list, unknown("profile %s: a TLS server shows itself to those that log in alone", id)...)
		case p.Gateway != nil:
			list = append(list, unknown("profile %s: its server is reached through profile %s, and that takes a login", id, p.Gateway.ID)...)
		default:
			asked = append(asked, p)
		}
	}
	answers := make([][]Result, len(asked))
	var all sync.WaitGroup
	for i, p := range asked {
		all.Go(func() { answers[i] = v.server(ctx, p) })
	}
	all.Wait()
	for _, a := range answers {
		list = append(list, a...)
	}
	if len(asked) == 0 && len(list) == 0 {
		return skipped("no profile names a server")
	}
	return or(list, "%d answer", len(asked))
}

func (v *visit) server(ctx context.Context, p *profiles.Profile) []Result {
	cert, err := v.Server(ctx, p)
	switch {
	case err != nil:
		return failed("see whether it runs, and whether this host may go there: nc -vz HOST PORT", "profile %s: %v", p.ID, err)
	case cert == nil:
		return nil
	}
	return certificate{what: fmt.Sprintf("certificate %q of the host key of %s", cert.KeyID, profiles.Server{Host: p.Host, Port: p.Port}),
		after: cert.ValidAfter, before: cert.ValidBefore, cure: "have the server's administrator sign its host key anew (ssh-keygen -h -s)"}.judge(v.Now())
}
