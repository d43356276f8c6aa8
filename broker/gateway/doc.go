// Package gateway is the far end of TLS tunnels: it takes connections of clients that
// show a certificate, decides what each flow in them may reach, and carries it there.
//
// It owns listeners, handshakes, the ways in which a flow can be asked for (a stream of
// profiles/tlstun/wire, HTTP CONNECT, or a connection whose service has a target), the
// life of a flow, and what ends one: its client's certificate, a reload, silence, the
// gateway's own end. Who may reach what is broker/gateway/policy, whose certificates
// count broker/gateway/trust, how much there may be broker/gateway/limit.
//
// A generation is one configuration with the files that it names. It is in force whole
// or not at all. A handshake and a flow are judged by the one that they find; when
// another comes, each connection and each flow is judged once more, without a lookup of
// names, and what is no longer allowed ends.
//
// Nothing that is decided is remembered for a connection: session tickets are off, so
// that no certificate is taken for valid because it once was.
package gateway
