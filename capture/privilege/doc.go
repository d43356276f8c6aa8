// Package privilege makes a process run with the capabilities it names and no others,
// and without a way to get more.
//
// It owns the change and the proof that it took place. Which capabilities a program
// needs, and what it does where one is missing, is the program's business.
package privilege
