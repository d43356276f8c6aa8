// Package command starts the process that becomes a captured command: the calling program
// once more, which waits while what is around it is made.
//
// It owns that process, the socket between the two halves, and how either learns what
// became of the other. What is made, by which half, and what they say to each other about
// it is the business of the users: capture/netns and ssh-capture.
package command
