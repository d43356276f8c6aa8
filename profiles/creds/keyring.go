package creds

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
	"sshbroker/profiles/keyfile"
)

// maxAdded bounds the keys that people add to a ring.
const maxAdded = 64

// Keyring is what is known of private keys beside their files: those that a passphrase
// has opened, for as long as that is remembered, and those that people added. It lives
// as long as the process and writes nothing to disk. The zero value is ready; safe for
// concurrent use.
type Keyring struct {
	mu     sync.Mutex
	opened map[digest]*opened
	asking map[digest]*asking
	added  []string // files
}

// digest tells keys apart by what their file says, so that a file with another key in
// it is another key.
type digest [sha256.Size]byte

// opened is a key whose passphrase is remembered.
type opened struct {
	signer   ssh.Signer
	since    time.Time
	used     time.Time
	remember profiles.Remember
	timer    *time.Timer // forgets it; nil: never
}

// until is when the key is forgotten, zero for never.
func (o *opened) until() time.Time {
	var end time.Time
	if o.remember.For > 0 {
		end = o.since.Add(o.remember.For)
	}
	if o.remember.Idle > 0 {
		if idle := o.used.Add(o.remember.Idle); end.IsZero() || idle.Before(end) {
			end = idle
		}
	}
	return end
}

// asking is one question for a passphrase, which everybody waits for who needs it.
type asking struct {
	done   chan struct{}
	signer ssh.Signer
	err    error
	gone   bool // who asked went away without an answer
}

// recall returns an opened key and counts that as a use; nil where it is locked.
func (r *Keyring) recall(d digest) ssh.Signer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.recallLocked(d)
}

func (r *Keyring) recallLocked(d digest) ssh.Signer {
	o := r.openLocked(d)
	if o == nil {
		return nil
	}
	o.used = time.Now()
	r.watchLocked(d, o)
	return o.signer
}

// openLocked returns a key whose time is not over, nil where it is locked.
func (r *Keyring) openLocked(d digest) *opened {
	o := r.opened[d]
	if o == nil || !o.isOver() {
		return o
	}
	o.timer.Stop()
	delete(r.opened, d)
	return nil
}

// isOver tells whether the key is to be forgotten by now. The clock that timers run by
// stands still while the host sleeps, so that of the wall counts too.
func (o *opened) isOver() bool {
	now := time.Now()
	over := func(from time.Time, most time.Duration) bool {
		return most > 0 && (now.Sub(from) >= most || now.Round(0).Sub(from.Round(0)) >= most)
	}
	return over(o.since, o.remember.For) || over(o.used, o.remember.Idle)
}

// keep remembers an opened key.
func (r *Keyring) keep(d digest, signer ssh.Signer, remember profiles.Remember) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.opened == nil {
		r.opened = make(map[digest]*opened)
	}
	if old := r.opened[d]; old != nil && old.timer != nil {
		old.timer.Stop()
	}
	now := time.Now()
	o := &opened{signer: signer, since: now, used: now, remember: remember}
	r.opened[d] = o
	r.watchLocked(d, o)
}

// watchLocked sets the clock by which a key is forgotten.
func (r *Keyring) watchLocked(d digest, o *opened) {
	end := o.until()
	switch {
	case end.IsZero():
	case o.timer != nil:
		o.timer.Reset(time.Until(end))
	default:
		o.timer = time.AfterFunc(time.Until(end), func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.opened[d] == o && o.isOver() {
				delete(r.opened, d)
			}
		})
	}
}

// forget locks a key again and tells whether it was open.
func (r *Keyring) forget(d digest) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.opened[d]
	if o == nil {
		return false
	}
	if o.timer != nil {
		o.timer.Stop()
	}
	delete(r.opened, d)
	return true
}

// ForgetAll locks every key again whose passphrase is remembered, and returns how
// many those were.
func (r *Keyring) ForgetAll() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.opened)
	for _, o := range r.opened {
		if o.timer != nil {
			o.timer.Stop()
		}
	}
	clear(r.opened)
	return n
}

// unlock returns a locked key's private half: at once where it is remembered, else
// when the one who is asked has given the passphrase. Only the first of those who need
// it has the question asked. waiting brackets the time that is spent on another's
// question; it may be nil.
func (r *Keyring) unlock(ctx context.Context, k *candidate, ask profiles.Prompter, waiting func() func()) (ssh.Signer, error) {
	for {
		r.mu.Lock()
		if signer := r.recallLocked(k.digest); signer != nil {
			r.mu.Unlock()
			return signer, nil
		}
		a := r.asking[k.digest]
		if a == nil {
			a = &asking{done: make(chan struct{})}
			if r.asking == nil {
				r.asking = make(map[digest]*asking)
			}
			r.asking[k.digest] = a
			r.mu.Unlock()
			a.signer, a.err = askPassphrase(ctx, k, ask)
			a.gone = ctx.Err() != nil
			if a.err == nil {
				r.keep(k.digest, a.signer, k.remember)
			}
			r.mu.Lock()
			delete(r.asking, k.digest)
			r.mu.Unlock()
			close(a.done)
			return a.signer, a.err
		}
		r.mu.Unlock()
		resume := func() {}
		if waiting != nil {
			resume = waiting()
		}
		select {
		case <-a.done:
			resume()
			if !a.gone {
				return a.signer, a.err
			}
		case <-ctx.Done():
			resume()
			return nil, context.Cause(ctx)
		}
	}
}

// errNoPassphrase: the person passed, or had tries enough.
var errNoPassphrase = errors.New("no right passphrase was given")

// askPassphrase asks until the passphrase fits.
func askPassphrase(ctx context.Context, k *candidate, ask profiles.Prompter) (ssh.Signer, error) {
	if ask == nil {
		return nil, errors.New("needs its passphrase and nobody is there to ask")
	}
	for range personTries {
		phrase, err := ask.Ask(ctx, profiles.Prompt{Text: fmt.Sprintf("Passphrase for key %s: ", k.file), Secret: true})
		if err != nil {
			return nil, fmt.Errorf("passphrase: %w", err)
		}
		if phrase == "" {
			break
		}
		signer, err := k.private.Open(phrase)
		if !errors.Is(err, keyfile.ErrPassphrase) {
			return signer, err
		}
	}
	return nil, errNoPassphrase
}

// addedFiles are the files that people added, in that order.
func (r *Keyring) addedFiles() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.added)
}

// isOpen tells whether a key's passphrase is remembered, without using it.
func (r *Keyring) isOpen(d digest) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.openLocked(d) != nil
}
