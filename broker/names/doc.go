// Package names owns what one capture knows about names: the resolver that its
// programs talk to, the pool of pseudo addresses, and the memory of which name stands
// behind which address.
//
// A name that the policy calls pseudo gets an address of the pool and is resolved by
// nobody on this host; the name itself travels through the tunnel. Every other query
// goes to the host's resolvers, and the addresses in the answer are remembered under
// the name that was asked before the program sees them. So a connection's address
// leads back to the name that the program meant.
//
// One Names belongs to one capture: nothing that one capture asked is ever told to
// another. The package does not decide which names are pseudo (Policy does), nor what
// becomes of a flow, and it makes no sockets of its own but those to the resolvers.
// It imports nothing of this module.
//
// Bounds, all per capture: DefaultMaxNames pseudo addresses and as many remembered
// names, maxInFlight queries at once of which maxUpstream at the resolvers,
// maxConnections over TCP.
package names
