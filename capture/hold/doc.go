// Package hold turns queued SYNs into attempts: it reads a packet queue, remembers
// which SYNs are waiting and what was decided of them, gives the verdicts, and
// matches the connections that arrive at the listeners to the attempts they answer.
//
// It owns the queue, the listeners and the diagnostics socket that it is given, and
// closes them. It decides nothing: every SYN waits until its Attempt is ended.
package hold
