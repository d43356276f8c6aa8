package creds

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
	"sshbroker/profiles/keyfile"
)

// List returns every key that one of ps may be tried with, each once, those of the
// first profile first; and notes on what could not be read.
func (r *Keyring) List(ctx context.Context, ps []*profiles.Profile) (list []profiles.KeyInfo, notes []string) {
	keys, notes := r.all(ctx, ps)
	for _, k := range keys {
		list = append(list, r.info(k))
	}
	return list, notes
}

// all gathers the keys of all profiles. The agents' signers among them are not to be
// used any more.
func (r *Keyring) all(ctx context.Context, ps []*profiles.Profile) (keys []*candidate, notes []string) {
	note := func(text string) {
		if !slices.Contains(notes, text) {
			notes = append(notes, text)
		}
	}
	agents := make(map[string][]agentKey)
	seen := make(map[string]bool)
	for _, p := range ps {
		if _, asked := agents[p.Agent]; !asked && p.Agent != "" {
			conn, inAgent, err := dialAgent(ctx, p.Agent)
			if err != nil {
				note(err.Error())
			} else {
				conn.Close()
			}
			agents[p.Agent] = inAgent
		}
		for _, k := range gather(p, agents[p.Agent], r.addedFiles(), func(err error) { note(err.Error()) }) {
			id := k.id() + fmt.Sprint(k.cert != nil && k.file == "")
			if !seen[id] {
				seen[id] = true
				keys = append(keys, k)
			}
		}
	}
	return keys, notes
}

func (r *Keyring) info(k *candidate) profiles.KeyInfo {
	in := profiles.KeyInfo{ID: k.id(), Comment: profiles.RemoteText(k.comment, 200, false), File: k.file, Added: k.added}
	if k.public != nil {
		plain := keyfile.Plain(parsedKey(k.public))
		in.Type, in.Fingerprint, in.Public = plain.Type(), ssh.FingerprintSHA256(plain), publicLine(plain)
	}
	r.mu.Lock()
	if o := r.openLocked(k.digest); o != nil && k.private != nil {
		in.State, in.Until = profiles.KeyOpen, o.until()
	}
	r.mu.Unlock()
	switch {
	case k.err != nil:
		in.State, in.Problem = profiles.KeyUnusable, k.err.Error()
	case k.held != nil:
		in.State = profiles.KeyInAgent
	case in.State == profiles.KeyOpen:
	case k.private == nil:
		in.State, in.Problem = profiles.KeyUnusable, "only its public half is here and the agent does not have it"
	case k.private.Elsewhere:
		in.State, in.Problem = profiles.KeyUnusable, "it is in a security key: add it to the agent with ssh-add"
	case k.private.Locked:
		in.State = profiles.KeyLocked
	default:
		in.State = profiles.KeyReady
	}
	if k.cert != nil || k.certErr != nil {
		in.Certificate = certInfo(k)
	}
	return in
}

func publicLine(key ssh.PublicKey) string {
	line := ssh.MarshalAuthorizedKey(key)
	return string(line[:len(line)-1])
}

func certInfo(k *candidate) *profiles.CertificateInfo {
	in := new(profiles.CertificateInfo)
	if k.cert != nil {
		*in = DescribeCertificate(k.cert)
	}
	in.File = k.certFile
	if k.certErr != nil {
		in.Problem = k.certErr.Error()
	}
	return in
}

// DescribeCertificate is a certificate as people see it, a user's or a host's.
func DescribeCertificate(c *ssh.Certificate) profiles.CertificateInfo {
	in := profiles.CertificateInfo{KeyID: profiles.RemoteText(c.KeyId, 200, false), Serial: c.Serial, Authority: ssh.FingerprintSHA256(c.SignatureKey)}
	for _, p := range c.ValidPrincipals {
		in.Principals = append(in.Principals, profiles.RemoteText(p, 200, false))
	}
	if c.ValidAfter > 0 {
		in.ValidAfter = time.Unix(int64(c.ValidAfter), 0)
	}
	if c.ValidBefore != ssh.CertTimeInfinity {
		in.ValidBefore = time.Unix(int64(c.ValidBefore), 0)
	}
	return in
}

func (r *Keyring) find(ctx context.Context, ps []*profiles.Profile, name string) (*candidate, error) {
	keys, _ := r.all(ctx, ps)
	for _, k := range keys {
		if k.id() == name || k.file == name && name != "" || k.public != nil && keyfile.Matches(k.public, name) {
			return k, nil
		}
	}
	return nil, fmt.Errorf("there is no key %s; list-keys has those that there are", name)
}

// Find returns the one key that name means: its ID, a hash of it, or its file.
func (r *Keyring) Find(ctx context.Context, ps []*profiles.Profile, name string) (profiles.KeyInfo, error) {
	k, err := r.find(ctx, ps, name)
	if err != nil {
		return profiles.KeyInfo{}, err
	}
	return r.info(k), nil
}

// Add has a key file tried with every server that has no identities of its own, for as
// long as the process lives. Where it needs a passphrase, that is asked for.
func (r *Keyring) Add(ctx context.Context, file string, remember profiles.Remember, ask profiles.Prompter) (profiles.KeyInfo, error) {
	if !filepath.IsAbs(file) {
		return profiles.KeyInfo{}, fmt.Errorf("%s: the path is not absolute", file)
	}
	k, err := readKey(file, false)
	if err == nil && k.private == nil {
		err = errors.New("only its public half is here")
	}
	if err == nil && k.private.Elsewhere {
		_, err = k.private.Open("")
	}
	if err != nil {
		return profiles.KeyInfo{}, fmt.Errorf("key %s: %w", file, err)
	}
	k.remember, k.added = remember, true
	if k.locked() {
		if _, err := r.unlock(ctx, k, ask, nil); err != nil {
			return profiles.KeyInfo{}, fmt.Errorf("key %s: %w", file, err)
		}
	}
	r.mu.Lock()
	switch {
	case slices.Contains(r.added, k.file):
	case len(r.added) >= maxAdded:
		err = fmt.Errorf("there are %d added keys already", maxAdded)
	default:
		r.added = append(r.added, k.file)
	}
	r.mu.Unlock()
	return r.info(k), err
}

// Remove takes back what Add did, and forgets the passphrase.
func (r *Keyring) Remove(ctx context.Context, ps []*profiles.Profile, name string) (profiles.KeyInfo, error) {
	// Where a store has the key as well, it is known by that.
	k, err := r.find(ctx, append([]*profiles.Profile{{}}, ps...), name)
	if err != nil {
		return profiles.KeyInfo{}, err
	}
	r.mu.Lock()
	i := slices.Index(r.added, k.file)
	if i >= 0 {
		r.added = slices.Delete(r.added, i, i+1)
	}
	r.mu.Unlock()
	switch {
	case i >= 0:
		r.forget(k.digest)
		return r.info(k), nil
	case k.file == "":
		return profiles.KeyInfo{}, fmt.Errorf("key %s is the agent's: remove it with ssh-add -d", name)
	}
	return profiles.KeyInfo{}, fmt.Errorf("key %s was not added: it comes from %s", name, k.file)
}

// Unlock opens a key with its passphrase, or all locked ones where name is empty. The
// passphrase is asked for where none is given.
func (r *Keyring) Unlock(ctx context.Context, ps []*profiles.Profile, name, passphrase string, ask profiles.Prompter) (opened []profiles.KeyInfo, err error) {
	if passphrase != "" {
		ask = said(passphrase)
	}
	var keys []*candidate
	if name == "" {
		keys, _ = r.all(ctx, ps)
		keys = slices.DeleteFunc(keys, func(k *candidate) bool { return k.err != nil || !k.locked() || r.isOpen(k.digest) })
		if len(keys) == 0 {
			return nil, errors.New("no key waits for a passphrase")
		}
	} else {
		k, err := r.find(ctx, ps, name)
		switch {
		case err != nil:
			return nil, err
		case k.err != nil:
			return nil, fmt.Errorf("key %s: %w", name, k.err)
		case !k.locked():
			return nil, fmt.Errorf("key %s needs no passphrase", name)
		}
		r.forget(k.digest) // a passphrase that was given anew counts anew
		keys = []*candidate{k}
	}
	var failed []error
	for _, k := range keys {
		if _, err := r.unlock(ctx, k, ask, nil); err != nil {
			failed = append(failed, fmt.Errorf("key %s: %w", k.file, err))
			continue
		}
		opened = append(opened, r.info(k))
	}
	return opened, errors.Join(failed...)
}

// Forget locks one key again.
func (r *Keyring) Forget(ctx context.Context, ps []*profiles.Profile, name string) (profiles.KeyInfo, error) {
	k, err := r.find(ctx, ps, name)
	if err == nil && !r.forget(k.digest) {
		err = fmt.Errorf("no passphrase of key %s is remembered", name)
	}
	if err != nil {
		return profiles.KeyInfo{}, err
	}
	return r.info(k), nil
}

// said answers every question with one passphrase.
type said string

func (s said) Ask(context.Context, profiles.Prompt) (string, error) { return string(s), nil }
