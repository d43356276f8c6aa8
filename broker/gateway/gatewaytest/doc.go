// Package gatewaytest makes authorities and certificates for tests of the gateway and
// its clients. It is for tests alone.
package gatewaytest
