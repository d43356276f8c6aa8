// Package capturetest is a capture without a kernel: tests make attempts by hand and
// see what became of them. The program's side is a TCP connection over loopback.
package capturetest
