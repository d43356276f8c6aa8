// Package regular reads small files that others may have put there: whole, bounded, and
// never waiting for a pipe in a file's place. What is in them is its callers' business.
package regular
