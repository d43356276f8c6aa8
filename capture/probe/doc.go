// Package probe finds out what this kernel can do for captures, and what on this host stands
// in their way. Each answer comes from doing what it speaks of: tables are loaded, in a
// network namespace that is made for that and gone afterwards.
//
// It owns the questions to the kernel: features of netfilter, other programs' rules and
// routing policies, connection tracking, reverse path filters and the clock. It changes
// nothing of the host's, though the kernel may load a module for what it is asked, as it
// would for a capture. What the answers mean for a user is said by broker/doctor.
package probe
