// Package creds owns the proof of who we are: private key files and their
// certificates, the agent, passwords and where they come from, and the questions
// that a server asks. It decides what is tried in which order and remembers what
// came of it, so that a failure can be explained without a secret in it.
//
// It does not make connections to servers and keeps no secret after an
// authentication.
package creds
