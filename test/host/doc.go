// Package host is a machine in a network namespace with ssh-captured, a system broker
// and several users on it, and the server that its tunnels lead to.
//
// It owns the processes and their files. What the flows do is the business of the
// tests that use it: test/system, test/guards, test/bench and the demonstration.
package host
