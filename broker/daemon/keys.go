package daemon

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"

	"sshbroker/broker/control"
	"sshbroker/profiles"
)

// hostKeyProber is a connector that can show the keys of a server.
type hostKeyProber interface {
	Probe(ctx context.Context, host string, port uint16) ([]profiles.HostKeyInfo, error)
}

// ways are the profiles of all that is in force, the defaults first.
func (d *Daemon) ways() []*profiles.Profile {
	d.mu.Lock()
	list := []*profiles.Profile{d.loaded.policy.Defaults}
	common := d.loaded.policy.Profiles
	for _, id := range slices.Sorted(maps.Keys(d.captures)) {
		if own := d.captures[id].capture.Policy; own != nil {
			p := own()
			list = append(list, p.Defaults)
			list = slices.AppendSeq(list, maps.Values(p.Profiles))
		}
	}
	d.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(common)) {
		list = append(list, common[id])
	}
	return slices.DeleteFunc(list, func(p *profiles.Profile) bool { return p == nil })
}

// handleListKeys lists the private keys that may be tried.
func (d *Daemon) handleListKeys(ctx context.Context, call *control.Call) error {
	var args control.KeyArgs
	if err := call.Decode(&args); err != nil {
		return err
	}
	if args.Key != "" {
		one, err := d.Keys.Find(ctx, d.ways(), args.Key)
		if err != nil {
			return refusedKey(err)
		}
		return call.Send(keyRow(one))
	}
	list, notes := d.Keys.List(ctx, d.ways())
	for _, k := range list {
		if err := call.Send(keyRow(k)); err != nil {
			return err
		}
	}
	for _, n := range notes {
		if err := call.Send(control.KeyRow{Note: n}); err != nil {
			return err
		}
	}
	return nil
}

// handleAddKey is the owner's and root's alone, as it reads a file of their choice.
func (d *Daemon) handleAddKey(ctx context.Context, call *control.Call) error {
	var args control.KeyArgs
	if err := call.Decode(&args); err != nil {
		return err
	}
	if uid := call.PeerUID(); uid != 0 && uid != os.Geteuid() {
		return &control.Error{Code: control.CodeForbidden, Message: "only root and the broker's own user may add keys"}
	}
	var remember profiles.Remember
	if p := d.ways(); len(p) > 0 {
		remember = p[0].Remember
	}
	return d.oneKey(call)(d.Keys.Add(ctx, args.Key, remember, callPrompter{call}))
}

func (d *Daemon) handleRemoveKey(ctx context.Context, call *control.Call) error {
	var args control.KeyArgs
	if err := call.Decode(&args); err != nil {
		return err
	}
	return d.oneKey(call)(d.Keys.Remove(ctx, d.ways(), args.Key))
}

// oneKey answers with one key.
func (d *Daemon) oneKey(call *control.Call) func(profiles.KeyInfo, error) error {
	return func(k profiles.KeyInfo, err error) error {
		if err != nil {
			return refusedKey(err)
		}
		d.pool.Hasten()
		return call.Send(keyRow(k))
	}
}

func refusedKey(err error) error {
	if errors.Is(err, control.ErrNoPrompt) {
		return &control.Error{Code: control.CodeFailed, Message: err.Error(), Hint: "use a terminal, or SSH_ASKPASS; key-passphrase takes --passphrase-file"}
	}
	return &control.Error{Code: control.CodeFailed, Message: err.Error()}
}

// handlePassphrase takes passphrases, or forgets them.
func (d *Daemon) handlePassphrase(ctx context.Context, call *control.Call) error {
	var args control.PassphraseArgs
	if err := call.Decode(&args); err != nil {
		return err
	}
	switch {
	case args.Clear && args.Key == "":
		d.Keys.ForgetAll()
		return nil
	case args.Clear:
		return d.oneKey(call)(d.Keys.Forget(ctx, d.ways(), args.Key))
	}
	opened, err := d.Keys.Unlock(ctx, d.ways(), args.Key, args.Passphrase, callPrompter{call})
	for _, k := range opened {
		if serr := call.Send(keyRow(k)); serr != nil {
			return serr
		}
	}
	if len(opened) > 0 {
		d.pool.Hasten()
	}
	if err != nil {
		return refusedKey(err)
	}
	return nil
}

// handleProbeKey shows the keys of a server, as the broker reaches it.
func (d *Daemon) handleProbeKey(ctx context.Context, call *control.Call) error {
	var args control.ProbeKeyArgs
	if err := call.Decode(&args); err != nil {
		return err
	}
	prober, ok := d.Tunnels.(hostKeyProber)
	if !ok {
		return &control.Error{Code: control.CodeFailed, Message: "this broker has no way to look at a server's keys"}
	}
	keys, err := prober.Probe(ctx, args.Host, args.Port)
	if err != nil {
		return &control.Error{Code: control.CodeFailed, Message: err.Error()}
	}
	for _, k := range keys {
		if err := call.Send(control.HostKeyRow{Host: args.Host, Port: args.Port, Type: k.Type, Fingerprint: k.Fingerprint, Public: k.Public}); err != nil {
			return err
		}
	}
	return nil
}

func keyRow(k profiles.KeyInfo) control.KeyRow {
	row := control.KeyRow{ID: k.ID, Type: k.Type, Fingerprint: k.Fingerprint, Public: k.Public, Comment: k.Comment, File: k.File,
		Added: k.Added, State: string(k.State), Until: k.Until, Problem: k.Problem}
	if c := k.Certificate; c != nil {
		row.Certificate = &control.CertificateRow{File: c.File, KeyID: c.KeyID, Serial: c.Serial, Principals: c.Principals,
			Authority: c.Authority, ValidAfter: c.ValidAfter, ValidBefore: c.ValidBefore, Problem: c.Problem}
	}
	return row
}
