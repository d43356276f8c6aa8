// Package leaks has tests of ssh-broker-ctl leak-test and of ssh-capture --strict: in real
// captures of both backends nothing gets out, and each probe is shown to see what does where
// the protection is taken away.
//
// It owns the host with its daemons that answer for names, and the rules by which a command
// is started or not. What a probe is belongs to capture/leak.
package leaks
