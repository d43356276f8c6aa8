package doctor

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"sshbroker/broker/config"
	"sshbroker/broker/regular"
	"sshbroker/profiles"
	"sshbroker/profiles/certfile"
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
		if c.Profiles[id].Protocol == profiles.SSH {
			all = append(all, c.Profiles[id])
		}
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

// certificatesMost is the most of a file of certificates that is read, in bytes: those of a
// whole system's authorities are some 200 KB.
const certificatesMost = 4 << 20

// soon is how long before its end a certificate is warned of.
const soon = 14 * 24 * time.Hour

func (v *visit) certificates(ctx context.Context) []Result {
	c, keys, _, err := v.keyList(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	all, list := tlsCertificates(c)
	for _, k := range keys {
		if k.Certificate != nil {
			all = append(all, certificate{what: fmt.Sprintf("certificate %q of %s", k.Certificate.KeyID, nameOf(k)), after: k.Certificate.ValidAfter,
				before: k.Certificate.ValidBefore, problem: k.Certificate.Problem, cure: "have its authority sign the key anew (ssh-keygen -s)"})
		}
	}
	for _, cert := range all {
		list = append(list, cert.judge(v.Now())...)
	}
	if len(all) == 0 && len(list) == 0 {
		return skipped("there are none")
	}
	return or(list, "%d are valid for %d days and more", len(all), int(soon.Hours()/24))
}

// tlsCertificates are those that profiles of TLS name: ours, and those of authorities, of
// which one file may have several.
func tlsCertificates(c *config.Config) (all []certificate, list []Result) {
	cures := map[string]string{}
	var files []string
	add := func(file, cure string) {
		if file != "" && cures[file] == "" {
			cures[file] = cure
			files = append(files, file)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.Profiles)) {
		p := c.Profiles[id]
		if p.Protocol != profiles.TLS {
			continue
		}
		add(p.TLS.Certificate, "have its authority sign our key anew; the broker reads the file again by itself")
		for _, file := range p.TLS.CAFiles {
			add(file, "get the authority's new certificate from its administrator")
		}
	}
	for _, file := range files {
		text, _, err := regular.Read(file, certificatesMost)
		var certs []*x509.Certificate
		if err == nil {
			certs, err = certfile.Certificates(text)
		}
		if err != nil {
			list = append(list, failed("ssh-broker-ctl check-config tells which profile names it", "%s: %v", file, err)...)
		}
		for _, cert := range certs {
			all = append(all, certificate{what: fmt.Sprintf("certificate %q in %s", cert.Subject, file), after: cert.NotBefore, before: cert.NotAfter, cure: cures[file]})
		}
	}
	return all, list
}

func nameOf(k profiles.KeyInfo) string {
	if k.File != "" {
		return k.File
	}
	return "the agent's key " + k.Fingerprint
}

// certificate is one that may expire.
type certificate struct {
	what          string    // for people: whose it is, and the file
	after, before time.Time // when it is valid; zero: without such a bound
	problem       string    // why it is not used in any case
	cure          string    // how to renew it
}

func (c certificate) judge(now time.Time) []Result {
	switch {
	case !c.after.IsZero() && now.Before(c.after):
		return failed("see the check clock; else wait, or "+c.cure, "%s is not valid before %s", c.what, stamp(c.after))
	case !c.before.IsZero() && !now.Before(c.before):
		return failed(c.cure, "%s has expired at %s", c.what, stamp(c.before))
	case c.problem != "":
		return failed(c.cure, "%s is not used: %s", c.what, c.problem)
	case !c.before.IsZero() && c.before.Sub(now) < soon:
		return warning(c.cure, "%s expires at %s", c.what, stamp(c.before))
	}
	return nil
}
