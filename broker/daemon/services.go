package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"sshbroker/broker/control"
	"sshbroker/broker/listeners"
	"sshbroker/profiles"
	"sshbroker/profiles/tlstun/wire"
)

// gateway is a transport to an ssh-gateway, which says what it offers.
type gateway interface {
	Services(ctx context.Context) ([]wire.Service, error)
}

// servicesTime is how long a gateway may take to say what it offers, its connection
// included.
const servicesTime = 30 * time.Second

func (d *Daemon) handleServices(ctx context.Context, call *control.Call) error {
	var args control.ServicesArgs
	if err := call.Decode(&args); err != nil {
		return err
	}
	asked, err := d.gateways(args.Profile)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, servicesTime, fmt.Errorf("no list of services within %s", servicesTime))
	defer cancel()
	found := make([][]control.ServiceRow, len(asked))
	var all sync.WaitGroup
	for i, p := range asked {
		all.Go(func() {
			list, err := d.services(ctx, p)
			if err != nil {
				found[i] = []control.ServiceRow{{Profile: p.ID, Error: err.Error()}}
				return
			}
			found[i] = d.ports.offers(p.ID, list)
		})
	}
	all.Wait()
	for _, row := range slices.Concat(found...) {
		if err := call.Send(row); err != nil {
			return err
		}
	}
	return nil
}

// gateways are the profiles that lead to one, or the one of that id or name.
func (d *Daemon) gateways(name string) ([]*profiles.Profile, error) {
	known := d.broker.Policy().Profiles
	var list []*profiles.Profile
	for _, id := range slices.Sorted(maps.Keys(known)) {
		p := known[id]
		switch {
		case name != "" && id != name && p.Name != name:
		case p.HasServices():
			list = append(list, p)
		case name != "":
			return nil, &control.Error{Code: control.CodeBadRequest, Message: fmt.Sprintf("profile %q leads to no ssh-gateway, which alone has services", name),
				Hint: `such a profile has protocol="tls" and no carrier="connect"`}
		}
	}
	switch {
	case len(list) > 0:
		return list, nil
	case name != "":
		return nil, &control.Error{Code: control.CodeBadRequest, Message: fmt.Sprintf("there is no profile %q", name), Hint: "ssh-broker-ctl list-profiles has all of them"}
	}
	return nil, &control.Error{Code: control.CodeBadRequest, Message: "no profile leads to an ssh-gateway, which alone has services",
		Hint: `such a profile has protocol="tls" and no carrier="connect"`}
}

// services asks p's gateway.
func (d *Daemon) services(ctx context.Context, p *profiles.Profile) (list []wire.Service, err error) {
	err = d.pool.With(ctx, p, nil, func(t profiles.Transport) error {
		g, ok := t.(gateway)
		if !ok {
			return errors.New("it is no ssh-gateway")
		}
		list, err = g.Services(ctx)
		return err
	})
	return list, err
}

// maxServiceText bounds each text of a service, in bytes.
const maxServiceText = 500

// offers are the services of a profile's gateway, with the listeners that lead to each and
// the command that opens one.
func (t *ports) offers(profile string, list []wire.Service) []control.ServiceRow {
	fit := func(text string) string { return profiles.RemoteText(text, maxServiceText, false) }
	rows := make([]control.ServiceRow, 0, len(list))
	for _, s := range list {
		row := control.ServiceRow{Profile: profile, Name: fit(s.Name), Kind: fit(s.Kind), Target: fit(s.Target), Port: s.Port,
			Overridable: s.Overridable, Description: fit(s.Description)}
		for _, h := range s.Hosts {
			row.Hosts = append(row.Hosts, fit(h))
		}
		kind, word := listeners.HTTPConnect, "http-connect-chain"
		if s.Target != "" {
			kind, word = listeners.TCP, "tcp"
		}
		for _, in := range t.set.List() {
			if in.Open && in.Spec.Kind == kind && !in.Spec.Judged && profileOf(in.Spec) == profile &&
				(in.Spec.Service == s.Name || in.Spec.Service == "" && s.Target == "") {
				row.Listen = append(row.Listen, in.At.String())
			}
		}
		if profiles.CheckHost(s.Name) == nil { // of which no shell makes anything else
			row.Open = []string{"open-tunnel-listener", strconv.Itoa(int(s.Port)), profile, "--type", word, "--service", s.Name}
		}
		rows = append(rows, row)
	}
	return rows
}

func profileOf(s listeners.Spec) string {
	if s.Way != nil {
		return s.Way.ID
	}
	return s.Profile
}
