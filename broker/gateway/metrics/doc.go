// Package metrics counts what a gateway does and shows it to Prometheus, at a Unix
// socket or a loopback address.
//
// Labels come from the configuration and from this program's own words alone: nothing
// that a client sends becomes one.
package metrics
