// Package location tests that rules for a network follow the host: on machines whose
// addresses and domain change while programs are captured in each of the ways there are.
package location
