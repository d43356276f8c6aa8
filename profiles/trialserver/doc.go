// Package trialserver is an SSH server for a trial of the way through a tunnel: on loopback,
// with a key that nobody has seen before, for as long as the trial goes on.
//
// It owns its listener and its key. It lets anybody in, as a trial has no secret, and for the
// same reason leads to one address alone, which its owner names: whoever else finds its port
// gets no further than they could by themselves. It runs no commands.
package trialserver
