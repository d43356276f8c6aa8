// Package processors keeps the process on as few processors as its work needs.
//
// A connection passes through several goroutines, each waking the next. The Go
// runtime wakes a thread on another processor for each of these, which costs more
// than the goroutine's work and takes the processor from the program that waits for
// it. On one processor they simply take turns.
//
// It owns GOMAXPROCS of the whole process, and nothing else. Where that is set in
// the environment it leaves it alone.
package processors
