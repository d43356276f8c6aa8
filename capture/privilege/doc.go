// Package privilege makes a process run with the capabilities it names and no others,
// and without a way to get more.
//
// It owns the change, which libcap makes in every thread or ends the process. Which
// capabilities a program needs, and what it does where one is missing, is the program's
// business.
package privilege
