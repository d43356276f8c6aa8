// Package explain tells what would become of a flow that nobody has opened, and why:
// the rules that are looked at, the one that decides, the server and the destination;
// and of a flow that is open what decided it, and what would now.
//
// It decides nothing by itself: it has the filter decide, with somebody watching, and
// asks the policy for the way, by the code that a flow would meet. It puts the answer
// into the rows of the control protocol, for a running broker and for a file alike.
package explain
