// Package sshconf makes a profile from what a person types after --via and from the
// OpenSSH client's configuration, so that the aliases of ~/.ssh/config work.
//
// It owns the reading of [user@]host[:port] and the mapping of ssh_config(5) keywords.
// It opens no connection and reads nothing but the files it is told to; user, home and
// environment are the caller's. What it cannot honour it says, as an error where the
// connection would go another way than ssh's, as a warning elsewhere.
package sshconf
