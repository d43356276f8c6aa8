// Package trust knows whose client certificates a gateway takes: the authorities, and
// what they have revoked.
//
// It reads both from files and judges chains. Who a certificate names, and what that
// one may do, is the policy's to say.
package trust
