// Package comparison puts what people use in place of ssh-capture side by side with it:
// each way has the same programs connect to the same services behind the same bastion,
// in namespaces, and what they are told and what is seen on the wire is the table of
// docs/comparison.md, which
//
//	make compare
//
// writes anew. Under SSHBROKER_LONG=1 a run holds the table to what it sees. It measures
// no times; that is test/bench's. The neighbours are Debian's packages, set up as their
// manuals have it; a cell in their disfavour that a better setting would change is a
// mistake of this package's.
package comparison
