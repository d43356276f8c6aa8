// Package heap keeps the process's memory in proportion to what it does: room for
// garbage while data moves, and little while flows are idle.
//
// It owns the collector's settings of the whole process, and nothing else. Where
// GOGC is set in the environment it leaves the collector alone.
package heap
