// Package captured is the server behind ssh-captured: it makes and keeps the cgroups,
// rules, queue and listeners of a host's captures, gives each held SYN to the broker
// that serves its capture, and carries out what that decides.
//
// It owns everything privileged, and who may ask for what. It knows no filter rules
// but those that are compiled (capture.Spec), no names, no tunnels; and it decides
// nothing about a flow: one that nobody decides waits.
package captured
