// Package leak proves what gets out of a capture. A probe does inside a capture what a
// program might do: connect in an unusual way, send datagrams, ask a daemon for a name.
// Outside, where nothing is captured, a sink sees whether it arrived.
//
// It owns the list of probes, the sinks, the choice of addresses that no test traffic leaves
// the host by, the words between the two halves, and the verdict. What a probe finds counts
// for nothing unless the same probe was seen to arrive without a capture just before: so
// each is tried outside first, and one that does not arrive there is no proof.
//
// How a probe is made is the business of package ways. This one makes no capture and reads
// no rule: broker/trial and ssh-capture have the capture, and say by which rules.
package leak
