// Package names owns what is known about names: the resolver that captured programs
// talk to, the pool of pseudo addresses, and the memory of which name stands behind
// which address.
//
// A name that the policy calls pseudo gets an address of the pool and is resolved by
// nobody on this host; the name itself travels through the tunnel. It has no records
// but that address. Every other query goes to the host's resolvers, and the addresses
// in the answer, hints of HTTPS and SVCB records included, are remembered under the
// name that was asked before the program sees them. So a connection's address leads
// back to the name that the program meant. Addresses that were not asked for are taken
// out of the answer.
//
// One Names belongs to one capture: nothing that one capture asked is ever told to
// another. Users is the same for all users of a host, each with a memory of its own,
// over one pool; who asks it is told by Owners, and where nobody knows, the query fails.
// The package does not decide which names are pseudo (Policy does), nor what becomes of
// a flow, and it makes no sockets of its own but those to the resolvers. It imports
// nothing of this module.
//
// Bounds of a Names or a Users: DefaultMaxNames pseudo addresses, maxInFlight queries
// at once of which maxUpstream at the resolvers, maxConnections over TCP. A Names
// remembers DefaultMaxNames names. A Users remembers DefaultMaxUsers uids, and each of
// them has DefaultUserNames names and as many pseudo addresses, and may have
// userInFlight queries at once, userUpstream of them at the resolvers, and
// userConnections.
package names
