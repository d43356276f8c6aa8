// Package daemon is what a running ssh-broker has around its flows: it loads the
// configuration and reloads it, serves the control socket, takes captures and gives
// them up when their last process ends, and ends itself when nobody needs it.
//
// It holds the broker, the pool of transports and the audit log together. What
// becomes of a flow is the broker's business, how a message travels is control's.
package daemon
