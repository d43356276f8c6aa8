// Package netns is the capture backend that needs no privilege: the command runs in
// a user, network and mount namespace of its own, from which nothing leaves but what
// the broker carries.
//
// It has three halves. Start and Child are the caller's: they make the process. Inside
// is the process's own: it builds the network, the rules, the queue and the listeners,
// hands their descriptors out, covers a few files, gives up every capability and
// becomes the command. Adopt is the broker's: it serves those descriptors from outside.
//
// The package knows nothing of rules, names or tunnels.
package netns
