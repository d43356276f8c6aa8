// Package endurance tests system-wide capture with many flows: that many at once and many
// new ones a second leave nothing behind, and that one user's flood leaves the others
// what is theirs.
//
// In its short form, which every run of the tests has, the numbers are small. With
// SSHBROKER_LONG=1 they are those that the program is to bear, and it takes minutes.
package endurance
