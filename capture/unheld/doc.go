// Package unheld is the source of attempts on a kernel without a packet queue: every
// connection is redirected at once, so its handshake is over when anybody is asked.
//
// It implements the same contract as capture/hold, as far as that can be: Admit
// returns the connection that was accepted long ago, and a refusal resets it. The
// program sees that connect() succeeded and then a reset, where it should have seen
// why; whoever shows a status says so. It owns the listeners it is given.
package unheld
