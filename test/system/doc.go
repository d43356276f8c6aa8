// Package system tests captures of a whole host with several users on it: ssh-captured,
// a system broker, and users' own brokers, with real programs and a real server.
package system
