// Package dial connects a gateway to a backend that has several addresses.
//
// It dials what it is given and nothing else: no names, no second lookup. Which
// addresses these are is the policy's to say.
package dial
