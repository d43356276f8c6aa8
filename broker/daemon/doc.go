// Package daemon is what a running ssh-broker has around its flows: it loads the
// configuration and reloads it, serves the control socket, takes captures and gives
// them up when their last process ends, and ends itself when nobody needs it.
//
// It brings into force what of the rules holds where the host is, as package location
// sees it: by location the generation stays the same, by reload there is a new one.
//
// Where ssh-captured captures, it gives it the rules that the kernel can carry out by
// itself, and the newest ones after a reload. As a user's broker it also carries what the
// broker of the whole host hands over; as that one (Options.System) it decides for every
// user, and knows who they are.
//
// It holds the broker, the pool of transports and the audit log together. What
// becomes of a flow is the broker's business, how a message travels is control's.
package daemon
