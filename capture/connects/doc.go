// Package connects remembers which process called connect() on which socket, by two
// small BPF programs on a cgroup, so that the process behind a connection is found in
// microseconds instead of by a search through /proc.
//
// It owns the programs and their map, which are gone from the kernel when the process
// that attached them is. It needs CAP_BPF and CAP_NET_ADMIN, and CAP_SYS_PTRACE to read
// the executables of other users' processes. What it cannot say, package origin searches.
package connects
