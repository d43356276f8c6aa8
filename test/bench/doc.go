// Package bench compares ssh-capture with ssh -L and with no tunnel at all, in one
// run on one machine; docs/performance.md says what is measured and how.
//
//	make bench
//	make bench BENCH='-quick -json figures.json'
//
// It owns the comparison: the ways, their order, the figures and the table. What
// makes the load is testprog, inside the capture like any other program; the
// networks are netns's. It never calls code of the programs under test.
package bench
