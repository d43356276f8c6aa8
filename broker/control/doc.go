// Package control is the local protocol between ssh-broker and the programs that
// talk to it: ssh-capture, ssh-broker-ctl, and a second ssh-broker.
//
// It owns the address and its lock (one broker an address), the socket, the
// framing, the passing of descriptors, the check of the peer's credentials, and
// starting a broker on demand. It also holds the rows that both sides exchange,
// so that they cannot drift apart. It knows nothing of captures, rules or
// transports: what an operation does is its handler's business.
//
// # The wire
//
// The socket is unix SOCK_SEQPACKET, so a message is a packet: one JSON object of
// at most [MaxMessage] bytes, with at most [MaxFiles] descriptors on it. Both
// sides begin with a hello that carries the protocol number. A client then makes
// one call at a time:
//
//	client                      broker
//	call {op, args} +files  →
//	                        ←   row {body}            any number
//	                        ←   ask {id, prompt}      any number
//	answer {id, text}       →
//	note {body} +files      →                         any number, read by Call.Recv
//	                        ←   done {error, code, hint}
//
// Only the owner of the broker and root may call; a client talks only to a broker
// of its own user or of root. Nobody can stall the broker: every write has a time
// limit, what is unread is bounded, and a peer that breaks the protocol is told so
// and disconnected.
package control
