// Package wake tells when the host may have slept, or its clock was set: what was true
// of the network before need not be so any more, and time may have passed that no timer
// has counted.
//
// It does not say which of the two it was, nor for how long, and does nothing about it.
package wake
