// Package cgroups tests captures by cgroup from end to end: ssh-captured without rules
// for the whole host, ssh-capture of ordinary users, their brokers and a real server.
//
// What is said of a flow is proven by the far end, which says who called, and by what
// was on the wire.
package cgroups
