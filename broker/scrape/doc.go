// Package scrape has metrics read by HTTP, from a Unix socket or a port of the loopback,
// and says who may. What the metrics are is its callers' business. It imports nothing of
// this module.
package scrape
