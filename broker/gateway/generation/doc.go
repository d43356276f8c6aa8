// Package generation is what a gateway has in force at a time: a configuration with the
// content of the files that it names. It finds services, and judges handshakes.
//
// When another one comes, and what becomes of what is live then, is the gateway's to say.
package generation
