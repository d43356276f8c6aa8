// Package tlstun owns the tunnel of kind TLS: it connects to a server by TLS 1.3, proves
// who both ends are by certificates, and carries flows in one of two ways.
//
//	to a gateway of ours   one connection, agreed on by ALPN, with streams of yamux in it;
//	                       what is said there is package wire's
//	to a proxy             HTTP/1.1 CONNECT (RFC 9110 section 9.3.6), a connection of its
//	                       own for each flow
//
// It does not choose servers, reconnect or count failures; that is the pool's. Nor does
// it make certificates, or decide what a gateway lets through.
//
// # Certificates
//
// The server's has to come from the authorities that the profile names, and has to have
// its name; there is no other way to trust it, and nobody is asked. Whether it was revoked
// is not looked up. Ours is read from its files again when they change. A change that is
// whole, certificate and key that fit, retires the connections of the one before: flows
// that are open go on until they end or the old certificate does, new ones connect anew.
// Sessions of TLS are resumed with the same certificate alone, as a server takes who
// resumes one for who began it.
//
// # How a flow to a proxy ends
//
// CONNECT has no end of one direction. The close_notify of TLS is one only between us and
// our gateway, which says so in its answer (Ssh-Gateway: half-close). To others our end
// is said once the far end has been silent for a while, as most of them take it for the
// end of both directions and lose what is on its way. A connection that ends without
// close_notify ends with a reset.
package tlstun
