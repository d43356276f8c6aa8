// Package wire owns what the two ends of a TLS tunnel of ours say to each other, the
// broker (profiles/tlstun) and the gateway (broker/gateway). Both import it, so that
// neither can say what the other does not understand.
//
// It does not make TLS connections, check certificates, choose servers, or decide what
// a flow may reach.
//
// # The layers
//
//	TLS 1.3, ALPN "ssh-broker/1"      the connection
//	yamux                             its streams
//	one Request and one Answer        at the beginning of each stream
//	records                           from then on, where the Answer is OK
//
// A stream of KindServices has, in place of records, one list of services.
//
// # Records
//
// yamux can end one direction (FIN), and has no reset that its users could send. So
// what follows the Answer comes in records: one byte of kind, three of length, and so
// many bytes.
//
//	data     bytes of the flow
//	end      this direction has ended in order; the other goes on
//	reset    the flow is reset; only after end, else a FIN alone says it
//	ended    the same, with the reason why policy ends the flow
//
// A FIN after end means that its sender takes no more either. A FIN without one is a
// reset: unlike a record it needs no room in the window, so it can be sent whatever
// the reader does, and yamux delivers what came before it first.
//
// A FIN behind data is seen once the data was read. So a reader whose own destination
// takes nothing learns of a reset when it goes on, as with sshd.
package wire
