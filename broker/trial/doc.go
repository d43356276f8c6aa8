// Package trial has a capture to try things in: a broker of its own, by rules of its own,
// in a directory of its own, that knows nothing of the user's configuration and touches no
// broker that runs. What is tried is what is installed: the programs themselves.
//
// It owns the directory, the broker's process and the rules of the trials that there are:
// that of leaks, where everything is for a tunnel that is down, so that whatever arrives in
// the clear has leaked; and that of connections, whose outcome is known beforehand. The
// probes are capture/leak's, and what is made of the findings is the business of
// ssh-broker-ctl, ssh-capture and broker/doctor.
package trial
