// Package queue speaks to one netfilter queue socket: it binds a queue number,
// reads the packets that rules send there, and gives verdicts.
//
// It owns the socket and the message format of linux/netfilter/nfnetlink_queue.h.
// It does not know why a packet was queued nor what should become of it. It never
// asks for fail-open and never sets bypass: without a reader, packets wait.
package queue
