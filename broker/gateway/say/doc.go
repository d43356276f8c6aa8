// Package say logs what outsiders can have a gateway repeat as they like: up to a rate,
// with a count of what was left out.
package say
