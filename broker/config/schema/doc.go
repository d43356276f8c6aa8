// Package schema owns the names in ssh-broker-config.xml: one table of all elements
// and attributes with their order, number and types (table.go), the check of a
// document against it, the hints for what was misspelt, the form in which problems
// are reported, and the DTD.
//
// It does not know what the elements mean, expand variables itself, or read files.
package schema
