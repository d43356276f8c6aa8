// Package ways makes the probes of package leak: it connects, sends and asks, as a program
// might that means no harm and knows no capture. The same code runs without a capture and
// inside of one.
//
// It owns the ways out by their names, and what each tells of what the kernel said. Where a
// probe goes, whether it arrived, and what that means is package leak's business.
package ways
