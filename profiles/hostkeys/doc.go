// Package hostkeys owns the trust in a server's host key: OpenSSH known_hosts files
// (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT), the one key that a profile may name, the
// policy for keys that are not known, and the storing of new ones.
//
// It does not make connections and keeps nothing between two of them: files are read
// anew each time, so that an edit counts at the next connect.
package hostkeys
