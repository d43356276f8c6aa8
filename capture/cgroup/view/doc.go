// Package view is what everybody may know of a cgroup by its path: when the last process
// in it has ended, and whose it is in the eyes of systemd. It needs no privilege, and
// package cgroup, which does, does not need it.
package view
