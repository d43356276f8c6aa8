// Package cgroup makes the cgroup of a capture, moves processes into it, and tells
// whether any is left. A capture is one leaf of the cgroup2 hierarchy:
//
//   - Where systemd is PID 1, a transient scope in the user's slice, so that limits stay
//     in force and systemd's tree is systemd's. A scope cannot be without a process, yet
//     the rules need its id before the first connection. So a placeholder, a shell that
//     waits for the end of its input, is in it until another process has entered; it ends
//     by itself when ssh-captured dies. The scope is delegated, without controllers:
//     what is in it is ours to move. systemd removes it when it is empty.
//   - Elsewhere a directory of our own below the root, without limits. We remove it.
//
// Either way the leaf is root's: its user can neither leave it nor bring others in.
//
// Processes are named by pidfd, but the kernel moves them by number: that the pidfd is
// still alive afterwards is the proof that it was the right one.
//
// The package needs uid 0, CAP_DAC_OVERRIDE and, under hidepid, CAP_SYS_PTRACE. It does
// not know what a capture is for, and ends nothing but its placeholder.
package cgroup
