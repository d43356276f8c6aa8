// Package desktop owns both ends of a long-lived binary flow in the shape of a remote
// desktop: a negotiation in TPKT as of RDP, screens down, small input up, silence. It is
// no RDP: neither end draws anything.
package desktop
