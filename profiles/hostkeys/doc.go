// Package hostkeys owns the trust in a server's host key: OpenSSH known_hosts files
// (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT), directories of key files as Tectia has them,
// the one key that a profile may name, the policy for keys that are not known or have
// changed, and the storing of new ones. The files of a directory are described in
// directory.go.
//
// OpenSSH files that are only looked at are never written. Of certificates OpenSSH's
// are checked, against the @cert-authority lines of those files; X.509 is not.
//
// It does not make connections and keeps nothing between two of them: files are read
// anew each time, so that an edit counts at the next connect.
package hostkeys
