// Package keep has descriptors kept for the process that comes after this one, by the
// service manager's descriptor store or, where there is none, by a parent of our own.
// Both are spoken to as sd_notify(3) and sd_listen_fds(3) say. Instead of NOTIFY_SOCKET
// and LISTEN_PID, our parent sets a variable of its own and passes, among what it keeps, a
// socket that nobody else can reach: it cannot know the worker's pid before it forks.
//
// The parent runs with the worker's privileges (package privilege comes first in both)
// and never reads what it keeps. One that is killed is not replaced: the worker goes on
// without, and should it die as well, what it had is closed.
package keep
