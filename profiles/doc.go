// Package profiles owns the named ways out of a host: what a profile says, the
// contract that every kind of tunnel fulfils, the errors by which a tunnel fails,
// and the pool that keeps live transports for each way out: one, or a bundle of them.
//
// It does not know which flow uses which profile, nor how a configuration file
// spells one; it imports neither capture nor filter. The kinds of tunnel, host key
// trust and credentials live in the packages below it.
package profiles
