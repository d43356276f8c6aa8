// Package proxy owns the way to a server through a SOCKS or HTTP proxy: the grammar of
// proxy/@ruleset of ssh-broker-config(5), which of its rules a server falls under, the
// proxies that the environment names, and the client's side of what is said to a proxy.
//
// It opens connections only through the DialFunc that it is given, and knows nothing
// of profiles, SSH or retries. Whatever a proxy sends is bounded in size and time, and
// no error shows the password that a proxy is given.
package proxy
