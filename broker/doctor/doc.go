// Package doctor says what is wrong on a host, and what would help. Each check does what it
// speaks of: a network is made as for a capture, a program connects in one, a configuration
// is loaded, a key is read.
//
// It owns the list of checks, what each says, and its cure. It changes nothing on the host;
// what it tries it tries in captures of its own (broker/trial) and in namespaces of its own
// (capture/probe). What it cannot know for want of privilege, or in time, is unknown and
// never all right. How it is printed is the business of ssh-broker-ctl.
package doctor
