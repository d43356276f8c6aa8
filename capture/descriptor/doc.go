// Package descriptor lets one use the descriptor of a file or socket that package os or
// net has, and leaves it as it is.
//
// It owns no descriptor: what is done with one, and who closes it, is its users' business.
package descriptor
