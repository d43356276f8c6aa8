package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"sshbroker/broker/config"
	"sshbroker/profiles"
	"sshbroker/profiles/creds"
)

var errNoConfiguration = errors.New("the configuration cannot be loaded")

// keyList are the keys that some profile may be tried with, read from their files and from
// the agents.
func (v *visit) keyList(ctx context.Context) (*config.Config, []profiles.KeyInfo, []string, error) {
	c, err := v.configured()
	if err != nil {
		return nil, nil, nil, errNoConfiguration
	}
	var all []*profiles.Profile
	for _, id := range slices.Sorted(maps.Keys(c.Profiles)) {
		all = append(all, c.Profiles[id])
	}
	if c.Defaults != nil {
		all = append(all, c.Defaults)
	}
	keys, notes := new(creds.Keyring).List(ctx, all)
	return c, keys, notes, nil
}

func (v *visit) keys(ctx context.Context) []Result {
	_, keys, notes, err := v.keyList(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	var list []Result
	usable := 0
	for _, k := range keys {
		if k.State != profiles.KeyUnusable {
			usable++
			continue
		}
		list = append(list, warning(cureKey(k), "%s is not used: %s", k.File, k.Problem)...)
	}
	for _, n := range notes {
		list = append(list, warning("ssh-broker-ctl list-keys shows what is used", "%s", n)...)
	}
	switch {
	case usable == 0 && len(list) == 0:
		return skipped("there are no keys: logins go by password, or by questions")
	}
	return or(list, "%d can be used", usable)
}

func cureKey(k profiles.KeyInfo) string {
	if k.File == "" {
		return "ssh-add -l shows the agent's"
	}
	return "chmod go= " + k.File + ", or see ssh-keygen -y -f " + k.File
}

// soon is how long before its end a certificate is warned of.
const soon = 14 * 24 * time.Hour

func (v *visit) certificates(ctx context.Context) []Result {
	c, keys, _, err := v.keyList(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	var all []Certificate
	for _, k := range keys {
		if k.Certificate != nil {
			all = append(all, Certificate{What: fmt.Sprintf("certificate %q of %s", k.Certificate.KeyID, nameOf(k)), After: k.Certificate.ValidAfter,
				Before: k.Certificate.ValidBefore, Problem: k.Certificate.Problem, Cure: "have its authority sign the key anew (ssh-keygen -s)"})
		}
	}
	var list []Result
	for _, source := range v.Certificates {
		more, err := source(ctx, c)
		if err != nil {
			list = append(list, unknown("%v", err)...)
		}
		all = append(all, more...)
	}
	for _, cert := range all {
		list = append(list, cert.judge(v.Now())...)
	}
	if len(all) == 0 && len(list) == 0 {
		return skipped("there are none")
	}
	return or(list, "%d are valid for %d days and more", len(all), int(soon.Hours()/24))
}

func nameOf(k profiles.KeyInfo) string {
	if k.File != "" {
		return k.File
	}
	return "the agent's key " + k.Fingerprint
}

func (c Certificate) judge(now time.Time) []Result {
	switch {
	case !c.After.IsZero() && now.Before(c.After):
		return failed("see the check clock; else wait, or "+c.Cure, "%s is not valid before %s", c.What, stamp(c.After))
	case !c.Before.IsZero() && !now.Before(c.Before):
		return failed(c.Cure, "%s has expired at %s", c.What, stamp(c.Before))
	case c.Problem != "":
		return failed(c.Cure, "%s is not used: %s", c.What, c.Problem)
	case !c.Before.IsZero() && c.Before.Sub(now) < soon:
		return warning(c.Cure, "%s expires at %s", c.What, stamp(c.Before))
	}
	return nil
}
