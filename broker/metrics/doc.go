// Package metrics counts what a broker does, in the form of Prometheus: the registry,
// what is counted flow by flow, what is read off the broker when somebody asks, and the
// ways by which it is read: a Unix socket, a port of the loopback, a text file for
// node_exporter.
//
// Labels have values from lists of ours, from the configuration (rules, profiles), or
// uids, and never more than a bound. Names of hosts, programs and people are none: the
// audit record has those.
//
// The package decides nothing and knows no file of the configuration. What it reads off
// the broker is handed to it as a Snapshot.
package metrics
