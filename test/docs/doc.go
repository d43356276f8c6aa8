// Package docs holds the documents and the completions to what the programs are:
// manual pages, README, guide, the list of limits, and the scripts for shells.
//
// Manual pages are written by hand, and their options, elements, attributes, reasons,
// events and fields are compared with the programs. Completions of programs without a
// command of their own behind the options are generated:
//
//go:generate go test . -run TestGeneratedCompletions -update
package docs
